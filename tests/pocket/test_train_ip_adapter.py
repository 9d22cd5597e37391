"""Pocket's IP-Adapter: what its parts learn, that a run goes on where it stopped, and files that the product opens."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from app.pocket import check_ip_adapter, spec, train_ip_adapter, train_pulid, world  # noqa: E402
from app.pocket.check import load  # noqa: E402


def learn(folder: Path, *more: str) -> dict[str, torch.Tensor]:
    """Run the command; answers what it wrote of encoder and adapter."""
    command = ["--scenes", "32", "--tell-steps", "2", "--steps", "2", "--work", str(folder / "work")]
    assert train_ip_adapter.main([*command, "--out", str(folder / "out"), *more]) == 0
    return {
        f"{name}.{key}": tensor
        for name, file in train_ip_adapter.FILES.items()
        if (folder / "out" / name / file).exists()
        for key, tensor in load_file(folder / "out" / name / file).items()
    }


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A folder after two steps of each part, cut off after the first step of each."""
    folder = tmp_path_factory.mktemp("learned")
    assert learn(folder, "--seconds", "0") == {}, "the second part waits for the first"
    for _ in range(3):
        learn(folder, "--seconds", "0")
    return folder


def test_a_run_that_was_cut_off_ends_in_the_same_bits(learned: Path, tmp_path: Path) -> None:
    resumed, whole = learn(learned), learn(tmp_path)
    assert whole.keys() == resumed.keys() and len(whole) > 100
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_what_it_wrote_is_small_and_is_opened_and_looks_at_the_whole_picture(learned: Path) -> None:
    written = learn(learned)
    assert all(tensor.dtype == torch.float16 for tensor in written.values())
    assert 2 * sum(tensor.numel() for tensor in written.values()) < 15_000_000
    adapter = check_ip_adapter.open_adapter(learned / "out")
    adapter.check_fit(load(spec.WEIGHTS).unet, "pocket")
    scene = check_ip_adapter.scenes_of("t", 1)[0]
    one, wide = world.draw(scene), Image.new("RGB", (256, 128))
    wide.paste(one, (64, 0))
    tokens = adapter.tokens([one])
    assert tokens.prompt.shape == tokens.negative.shape == (1, train_ip_adapter.TOKENS, 256)
    assert not torch.equal(tokens.prompt, tokens.negative)
    assert not torch.equal(tokens.prompt, adapter.tokens([wide]).prompt)


def test_the_first_part_learns_to_say_what_captions_say(tmp_path: Path) -> None:
    """Of a few pictures, by heart: what is said of them comes nearer to the words, and of nothing to no words."""
    pipeline = load(spec.WEIGHTS)
    frozen = train_pulid.Frozen(pipeline)
    some = train_ip_adapter.Pictures(tmp_path, "t", 32, pipeline.vae, lambda line: None)
    torch.manual_seed(0)
    learning = train_ip_adapter.build()
    shown = torch.cat([torch.ones(31), torch.zeros(1)])
    texts = [train_ip_adapter.said_of(some.scene(index)) if index < 31 else "" for index in range(32)]
    wished = frozen.text(texts)[0][:, : train_ip_adapter.TOKENS]

    def missed() -> torch.Tensor:
        with torch.no_grad():
            said = learning.projection(learning.states(some.pictures(list(range(32))), shown)[0])
        return (said - wished).square().mean((1, 2)) / wished.var(0).mean()

    before = missed()
    assert train_ip_adapter.tell(learning, frozen, some, tmp_path, "t", 40, report=str)
    after = missed()
    assert after[:31].mean() < 0.8 * before[:31].mean() and after[31] < before[31]


def test_pictures_are_seen_as_the_product_prepares_them_and_what_is_not_shown_as_the_negative(tmp_path: Path) -> None:
    some = train_ip_adapter.Pictures(tmp_path, "t", 32, load(spec.WEIGHTS).vae, lambda line: None)
    drawn = np.stack([np.asarray(world.draw(some.scene(index))) for index in (3, 4)])
    pictures = some.pictures([3, 4])
    assert torch.equal((pictures * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(drawn))
    learning = train_ip_adapter.build()
    learning.encoder.eval()
    with torch.no_grad():
        shown, hidden = learning.states(pictures, torch.tensor([1.0, 0.0]))[0]
        pixels = learning.encoder.preprocess(pictures[:1])
        same, nothing = (learning.encoder.encode(seen).hidden[-1][0] for seen in (pixels, torch.zeros_like(pixels)))
    assert torch.allclose(shown, same, atol=1e-5) and torch.allclose(hidden, nothing, atol=1e-5)


def test_the_other_background_is_no_colour_of_the_scene() -> None:
    for number, scene in enumerate(check_ip_adapter.scenes_of("t", 60)):
        other = check_ip_adapter.other_background(scene, "t", number)
        worn = () if scene.person is None else (scene.person.clothing_colour,)
        assert other not in {scene.background, *worn, *(thing.colour for thing in scene.things)}
        assert other == check_ip_adapter.other_background(scene, "t", number)


def test_the_renderers_own_pictures_reach_the_goals_and_empty_ones_do_not() -> None:
    scenes = check_ip_adapter.scenes_of("t", 40)
    own = check_ip_adapter.measured(scenes, [world.draw(scene) for scene in scenes])
    assert all(own.share(question) >= goal for question, goal in check_ip_adapter.GOALS.items())
    none = check_ip_adapter.measured(scenes, [Image.new("RGB", (128, 128), (255, 0, 255))] * 40)
    assert none.share("right thing") == 0 and none.share("background colour") < 0.3
