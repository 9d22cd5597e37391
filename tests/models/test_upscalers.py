"""Upscalers: any network of spandrel, without seams, in half precision that falls back, mixed with a sibling."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.errors import InvalidRequest, JobCancelled, OutOfMemory
from app.models import inspect_file, pickles, upscalers
from app.models.catalog import CATALOG
from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from tests.models.upscaling_networks import write_compact, write_dense, write_swin

WEIGHTS = os.environ.get("EIS_TEST_WEIGHTS")
PUBLISHED = "realesr-animevideov3-x4.safetensors"
ROOT = Path(__file__).resolve().parents[2]
SPEC = next(spec for spec in CATALOG if spec.id == "real-esrgan-general-x4v3")
published = pytest.mark.skipif(not WEIGHTS, reason="EIS_TEST_WEIGHTS names no folder of published weights")


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def opened(path, precision="float32", parts=()):
    upscaler = upscalers.load(SPEC, path, TorchDevice("cpu", precision), parts)
    upscaler.place()
    return upscaler


def at_work(upscaler, check=lambda: None):
    return upscaler.at_work(nullcontext, check)


def difference(one, other):
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def bare(upscaler, image):
    """Spandrel's own call on the whole picture."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return upscaler._model(pixels)[0].mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {
        "compact": write_compact(folder / "compact.safetensors"),
        "sibling": write_compact(folder / "sibling.safetensors", seed=1),
        "wrapped": write_compact(folder / "wrapped.safetensors", prefix="params_ema."),
        "huge": write_compact(folder / "huge.safetensors", gain=40.0),
        "dense": write_dense(folder / "dense.safetensors"),
        "swin": write_swin(folder / "swin.safetensors"),
    }


@published
@pytest.mark.parametrize("photo", ["astronaut", "chelsea"])
def test_the_published_network_answers_the_same_in_parts_of_any_size(photo):
    """Within 1/255 everywhere, of the whole photo and of spandrel's own call."""
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(getattr(data, photo)()).crop((120, 20, 330, 190))
    upscaler = opened(Path(WEIGHTS) / PUBLISHED)
    size = (image.width * 4, image.height * 4)
    assert upscaler.reach().pixels == 18
    expected = bare(upscaler, image)
    upscale = at_work(upscaler)
    whole = upscale(image, size)
    assert whole.tiles == 1 and difference(whole.image, expected) <= 1
    for side in (32, 61, 100):
        parts = upscale(image, size, tile_size=side)
        assert parts.tiles == -(-image.width // side) * -(-image.height // side) and parts.reach == 18
        assert difference(parts.image, expected) <= 1, side


@published
def test_a_narrower_ring_than_the_receptive_field_shows_on_the_published_network(monkeypatch):
    """The usual ten pixels: so the test above can fail."""
    data = pytest.importorskip("skimage.data")
    image = Image.fromarray(data.astronaut()).crop((120, 20, 330, 190))
    upscaler = opened(Path(WEIGHTS) / PUBLISHED)
    upscaler._reach = upscalers.Reach(10)
    parts = at_work(upscaler)(image, (840, 680), tile_size=61)
    assert difference(parts.image, bare(upscaler, image)) > 1


@pytest.mark.parametrize(("name", "exact"), [("compact", 5), ("dense", None), ("swin", None)])
def test_parts_answer_what_the_whole_does_whatever_the_network(files, name, exact):
    upscaler = opened(files[name])
    image = noise((150, 110))
    size = (image.width * upscaler.scale, image.height * upscaler.scale)
    whole, parts = at_work(upscaler)(image, size), at_work(upscaler)(image, size, tile_size=40)
    assert whole.tiles == 1 and parts.tiles == 12
    assert upscaler.reach().is_whole and exact in {None, upscaler.reach().pixels}
    assert difference(whole.image, bare(upscaler, image)) <= 1
    assert difference(parts.image, whole.image) <= 1


def test_a_network_without_an_end_is_told_and_its_parts_fade():
    """One that looks at the mean of all it sees answers parts differently: no step, and a sentence that says so."""
    reach = upscalers.measure_reach(lambda pixels: pixels * 0.5 + pixels.mean(), 3, 1, 1)
    assert not reach.is_whole and reach.ramp > 0


def test_the_grid_follows_the_free_memory(files, monkeypatch):
    upscaler, image = opened(files["compact"]), noise((200, 160))
    size, upscale = (800, 640), at_work(upscaler)
    seen = []
    for free in (10**6, 4 * 10**6, 10**9):
        monkeypatch.setattr(TorchDevice, "free_bytes", lambda device, free=free: free)
        made = upscale(image, size)
        seen.append(made.tiles)
        assert difference(made.image, bare(upscaler, image)) <= 1
    assert seen[0] > seen[1] > seen[2] == 1


@pytest.mark.parametrize(("scale", "passes"), [(1, 1), (2, 1), (2.5, 1), (4, 1), (8, 2)])
def test_every_scale_is_reached_by_passes_and_a_resize(files, scale, passes):
    upscaler, image = opened(files["compact"]), noise((40, 30))
    made = at_work(upscaler)(image, (round(40 * scale), round(30 * scale)))
    assert made.passes == passes and made.image.size == (round(40 * scale), round(30 * scale))
    if scale == 2:
        expected = Image.fromarray(bare(upscaler, image)).resize((80, 60), Image.Resampling.LANCZOS)
        assert difference(made.image, expected) <= 1


def test_half_precision_that_overflows_is_answered_in_full_precision_and_told(files):
    upscaler, image = opened(files["huge"], "float16"), noise((40, 30))
    expected = bare(opened(files["huge"]), image)
    assert upscaler.dtype is torch.float16
    made = at_work(upscaler)(image, (160, 120), tile_size=32)
    assert "32-bit" in made.notes[0] and upscaler.dtype is torch.float32
    assert difference(made.image, expected) <= 1 and np.asarray(made.image).max() > 0
    assert at_work(upscaler)(image, (160, 120)).notes == [], "it stays in what works"


def test_half_precision_that_holds_stays(files):
    upscaler, image = opened(files["compact"], "float16"), noise((40, 30))
    made = at_work(upscaler)(image, (160, 120))
    assert made.notes == [] and upscaler.dtype is torch.float16
    assert difference(made.image, bare(opened(files["compact"]), image)) <= 3


def test_a_black_picture_is_black_and_no_failure(files):
    upscaler = opened(files["compact"], "float16")
    made = at_work(upscaler)(Image.new("RGB", (40, 30)), (160, 120))
    assert made.notes == []


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_denoise_strength_stands_between_the_siblings_weights(files, tmp_path, strength):
    class Row:
        path = files["sibling"]

    mixed = opened(files["compact"], parts=[Row])
    image = noise((40, 30))
    made = at_work(mixed)(image, (160, 120), denoise_strength=strength)
    own, other = load_file(files["compact"]), load_file(files["sibling"])
    save_file({n: own[n] * strength + other[n] * (1 - strength) for n in own}, tmp_path / "mixed.safetensors")
    assert difference(made.image, bare(opened(tmp_path / "mixed.safetensors"), image)) <= 1
    again = at_work(mixed)(image, (160, 120))
    assert difference(again.image, bare(opened(files["compact"]), image)) <= 1, "the next wish finds its own weights"


def test_without_a_sibling_a_strength_is_refused(files):
    with pytest.raises(InvalidRequest, match="no weaker sibling"):
        at_work(opened(files["compact"]))(noise((20, 20)), (80, 80), denoise_strength=0.5)


def test_each_part_is_told_and_a_cancelled_run_ends_between_two(files):
    told = []
    at_work(opened(files["compact"]))(noise((100, 60)), (400, 240), tile_size=50, on_tile=lambda *at: told.append(at))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    asked = iter([None, None])

    def check():
        if next(asked, "end") == "end":
            raise JobCancelled

    with pytest.raises(JobCancelled):
        at_work(opened(files["compact"]), check)(noise((100, 60)), (400, 240), tile_size=50)


def test_out_of_memory_is_answered_with_smaller_parts_and_told(files, monkeypatch):
    upscaler, image = opened(files["compact"]), noise((100, 80))
    expected, run = bare(upscaler, image), upscaler.run

    def small_only(part):
        if part.width * part.height > 6000:
            raise MemoryError
        return run(part)

    monkeypatch.setattr(upscaler, "run", small_only)
    monkeypatch.setattr(upscaler, "area", lambda free: 8000.0)
    made = at_work(upscaler)(image, (400, 320))
    assert made.tiles > 1 and "smaller ones" in made.notes[0] and difference(made.image, expected) <= 1
    with pytest.raises(OutOfMemory, match="lower tile_size"):
        at_work(upscaler)(image, (400, 320), tile_size=100)


def test_wrapped_names_are_the_same_network(files):
    image = noise((30, 20))
    wrapped, plain = (at_work(opened(files[name]))(image, (120, 80)).image for name in ("wrapped", "compact"))
    assert wrapped.tobytes() == plain.tobytes()


def test_a_published_pickle_is_the_same_network_once_it_is_stored(files, tmp_path):
    """Real-ESRGAN's releases hold the weights and their moving average; the average is the better one."""
    own, other = load_file(files["compact"]), load_file(files["sibling"])
    torch.save({"params": other, "params_ema": own}, tmp_path / "published.pth")
    pickles.convert(tmp_path / "published.pth", tmp_path / "stored.safetensors")
    image = noise((30, 20))
    stored, plain = (at_work(opened(path))(image, (120, 80)).image
                     for path in (tmp_path / "stored.safetensors", files["compact"]))  # fmt: skip
    assert stored.tobytes() == plain.tobytes()


@pytest.mark.parametrize("name", ["compact", "wrapped", "dense", "swin"])
def test_a_file_of_ones_own_is_recognised_and_serves(files, name, tmp_path):
    """SwinIR by spandrel itself, in a child process; the others by their names."""
    library = ModelLibrary(tmp_path)
    row = library.add(files[name], id="mine")
    assert (row.spec.kind, row.spec.tasks) == ("upscaler", ("upscale",))
    assert library.choose(("upscale",)).spec.id == "mine", "it goes before Lanczos"


def test_what_is_no_picture_network_is_neither_recognised_nor_opened(tmp_path):
    save_file({"conv.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InvalidRequest, match="upscaler"):
        inspect_file.inspect(tmp_path / "other.safetensors")
    with pytest.raises(InvalidRequest, match="not one that makes pictures larger"):
        upscalers.load(SPEC, tmp_path / "other.safetensors", TorchDevice("cpu", "float32"))


LARGE = """
import json, sys
from contextlib import nullcontext
from pathlib import Path
import numpy as np
from PIL import Image
from app.imaging.metadata import encode
from app.models import upscalers
from app.models.catalog import CATALOG
from app.models.device import TorchDevice
from tests.own_memory import peak
size, factor, parts = tuple(map(int, sys.argv[2:4])), int(sys.argv[4]), int(sys.argv[5])
target = (size[0] * factor, size[1] * factor)
tile = np.random.default_rng(0).integers(0, 256, (125, 250, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
picture = Image.fromarray(np.tile(tile, (-(-size[1] // 250), -(-size[0] // 500), 1))[: size[1], : size[0]])
upscaler = upscalers.load(CATALOG[0], Path(sys.argv[1]), TorchDevice("cpu", "float32"))
upscaler.place()
upscaler.run(picture.crop((0, 0, 64, 64)))
before = peak()
seen = []
def on_tile(done, count):
    seen.append((done, count))
    if parts and done == parts:
        raise StopIteration
try:
    image = upscaler.at_work(nullcontext, lambda: None)(picture, target, on_tile=on_tile).image
except StopIteration:
    image = picture.resize(target, Image.Resampling.NEAREST)
at_work = peak()
stored = len(encode(image, "image/png"))
largest = peak()
print(json.dumps({"tiles": seen[-1][1], "done": seen[-1][0], "before": before, "at_work": at_work - before,
                  "peak": largest - before}))
"""


@published
def test_twelve_megapixels_take_less_than_two_gigabytes_above_the_model(record_property):
    """4000x3000 by the x4 network towards 8000x6000, and such a file, in a process of its own; its first parts."""
    command = [sys.executable, "-c", LARGE, str(Path(WEIGHTS) / PUBLISHED), "4000", "3000", "2", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1500, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    record_property("told", told)
    assert told["peak"] < 2e9 and told["tiles"] > 4 and told["done"] == 3, told
