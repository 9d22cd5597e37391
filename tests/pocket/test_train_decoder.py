"""The autoencoder's decoder learns on: what stays, what it is for, and that a run goes on where it stopped."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from diffusers import AutoencoderKL  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from app.pocket import encoding, people, spec, train_autoencoder, train_decoder  # noqa: E402
from app.pocket.check import load  # noqa: E402

FILE = "diffusion_pytorch_model.safetensors"


def learn(folder: Path, steps: int, *more: str) -> dict[str, torch.Tensor]:
    """Run the command; answers the weights that it wrote."""
    command = ["--steps", str(steps), "--work", str(folder / "work"), "--out", str(folder / "vae"), *more]
    assert train_decoder.main([*command, "--portraits", "32", "--scenes", "32"]) == 0
    return load_file(folder / "vae" / FILE)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A folder after two steps in two runs."""
    folder = tmp_path_factory.mktemp("learned")
    learn(folder, 2, "--seconds", "0")
    assert torch.load(folder / "work/decoder.pt", weights_only=True)["number"] == 1
    learn(folder, 2)
    return folder


def test_the_encoder_stays_to_the_bit_and_pocket_is_left_alone(learned: Path) -> None:
    shipped, written = load_file(spec.WEIGHTS / "vae" / FILE), load_file(learned / "vae" / FILE)
    assert shipped.keys() == written.keys()
    changed = {name for name in shipped if not torch.equal(shipped[name], written[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    assert all(tensor.dtype == torch.float16 for tensor in written.values())
    one, other = ((folder / "config.json").read_text() for folder in (spec.WEIGHTS / "vae", learned / "vae"))
    assert one == other


def test_a_run_that_was_cut_off_ends_in_the_same_bits(learned: Path, tmp_path: Path) -> None:
    whole, resumed = learn(tmp_path, 2), load_file(learned / "vae" / FILE)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_decoder_that_forgot_learns_pictures_again(tmp_path: Path) -> None:
    """What is learned is to decode: from a decoder with noise in it, the error on its pictures falls."""
    vae = load(spec.WEIGHTS).vae
    some = people.build(tmp_path, "train", 32, vae, lambda line: None)
    scenes = train_decoder.build_scenes(tmp_path, "train", 32, vae, lambda line: None)
    torch.manual_seed(0)
    with torch.no_grad():
        vae.decoder.conv_out.weight.add_(0.05 * torch.randn_like(vae.decoder.conv_out.weight))
    image = encoding.to_tensor(some.pictures[:8])
    latents = torch.from_numpy(some.latents[:8].astype("float32"))

    def error() -> float:
        with torch.no_grad():
            return train_autoencoder.difference_loss(vae.decode(latents).sample, image).item()

    before = error()
    assert train_decoder.learn(vae, some, scenes, tmp_path, "test", 12, report=lambda line: None)
    assert error() < 0.8 * before


def test_what_is_written_opens_by_itself(learned: Path) -> None:
    autoencoder = AutoencoderKL.from_pretrained(learned / "vae").float()
    picture = encoding.decode(autoencoder, torch.zeros(1, 4, spec.HEIGHT // 8, spec.WIDTH // 8))
    assert picture.shape == (1, spec.HEIGHT, spec.WIDTH, 3) and autoencoder.config.scaling_factor == 1.0
