"""Training runs from nothing, and a run that was cut off ends in the same bits as one that was not."""

import pytest

torch = pytest.importorskip("torch")

from app.errors import InvalidRequest  # noqa: E402
from app.pocket import captions, latents, spec, train, train_autoencoder, train_text, train_unet  # noqa: E402
from app.pocket.checkpoints import Stage  # noqa: E402
from app.pocket.networks import build_pipeline  # noqa: E402

TINY = spec.PRESETS["tiny"]
CPU = torch.device("cpu")


def quiet(_: str) -> None:
    pass


def state_of(path):
    return torch.load(path, weights_only=True)


def assert_same(one, other) -> None:
    """Nested lists, dictionaries and tensors, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def pipeline_from_nothing():
    torch.manual_seed(0)
    return build_pipeline(TINY, captions.vocabulary())


def train_some(folder, cuts):
    """The autoencoder and the UNet, in runs that end at the given steps."""
    for until in cuts:
        pipeline = pipeline_from_nothing()
        train_autoencoder.train(pipeline.vae, TINY, folder, 0, CPU, until=until, report=quiet)
    latents.encode(pipeline.vae, TINY, folder, 0, CPU, report=quiet)
    for until in cuts:
        pipeline = pipeline_from_nothing()
        texts = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.tokenizer)
        train_unet.train(pipeline.unet, *texts, pipeline.scheduler, TINY, folder, 0, CPU, until=until, report=quiet)


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path):
    train_some(tmp_path / "whole", (4,))
    train_some(tmp_path / "resumed", (1, 3, 4))
    for name in ("autoencoder.pt", "unet.pt"):
        whole, resumed = (state_of(tmp_path / run / name) for run in ("whole", "resumed"))
        assert whole["number"] > 1
        assert_same(whole, resumed)
    assert (tmp_path / "whole/latents.bin").read_bytes() == (tmp_path / "resumed/latents.bin").read_bytes()


def test_one_command_trains_from_nothing_and_writes_a_loadable_folder(tmp_path):
    from diffusers import StableDiffusionXLPipeline

    out = tmp_path / "weights"
    command = [
        "--preset",
        "tiny",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--seed",
        "3",
    ]
    assert train.main(command) == 0
    pipeline = StableDiffusionXLPipeline.from_pretrained(out)
    assert all(parameter.dtype == torch.float32 for parameter in pipeline.unet.parameters())
    picture = pipeline("a red car", width=64, height=64, num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    written = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.safetensors")}
    assert train.main(command) == 0  # complete: nothing left to train, the same weights again
    assert written == {path.relative_to(out): path.read_bytes() for path in out.rglob("*.safetensors")}


def test_a_weights_folder_is_gone_on_from_without_its_checkpoints(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train.main(["--preset", "tiny", "--work", str(tmp_path / "a"), "--out", str(first), "--device", "cpu"]) == 0
    more = ["--preset", "tiny", "--work", str(tmp_path / "b"), "--out", str(second), "--device", "cpu"]
    assert train.main([*more, "--start", str(first)]) == 0
    for name in ("vae", "text_encoder", "text_encoder_2", "unet"):
        file = next((first / name).glob("*.safetensors")).name
        assert ((first / name / file).read_bytes() == (second / name / file).read_bytes()) == (name != "unet")
    with pytest.raises(InvalidRequest, match="not of this preset's size"):
        train.main([*more, "--preset", "cpu", "--start", str(first)])


def test_text_targets_name_every_fact():
    scene = captions.parse("a red car left of a big blue tree, white background")
    said = {
        fact: values[number - 1]
        for (fact, values), number in zip(train_text.FACTS.items(), train_text.targets(scene), strict=True)
        if number
    }
    assert said == {
        "background": "white", "relation": "left of", "thing 0 name": "car", "thing 0 colour": "red",
        "thing 1 name": "tree", "thing 1 colour": "blue", "thing 1 size": "big",
    }  # fmt: skip


def test_latents_are_standard_normal_after_normalising():
    pipeline = pipeline_from_nothing()
    train_autoencoder.normalise_latents(pipeline.vae, TINY, 0)
    image = train_autoencoder.pictures(0, -1, TINY.size, 64, TINY.size)
    with torch.no_grad():
        encoded = pipeline.vae.encode(image).latent_dist.mean
    assert torch.allclose(encoded.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(encoded.std((0, 2, 3)), torch.ones(4), atol=1e-3)


def test_a_longer_run_goes_on_from_before_the_cool_down(tmp_path):
    def stage(steps):
        torch.manual_seed(0)
        return Stage("line", tmp_path, [torch.nn.Linear(2, 1)], 1e-2, steps)

    def step_of(some):
        def step(number: int) -> float:
            loss = some.modules[0](torch.full((1, 2), float(number))).square().sum()
            loss.backward()
            return loss.item()

        return step

    short = stage(10)
    assert short.run(step_of(short), report=quiet)
    assert stage(10).number == 10
    longer = stage(20)
    assert longer.number == 7
    assert longer.run(step_of(longer), report=quiet)
