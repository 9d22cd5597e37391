"""LaMa's architecture at random weights, through spandrel: recognised, opened, and nothing outside the hole changes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageDraw
from safetensors.torch import load_file, save_file

from app.errors import InvalidRequest
from app.imaging import holes
from app.models import erasers
from app.models.catalog import CATALOG
from app.models.device import TorchDevice
from app.models.inspect_segmenters import recognise
from app.models.inspection import Header, read_header
from app.models.library import ModelLibrary
from app.models.runtime import Runtime
from tests.models.segmenting_networks import write_lama

SPANDREL = pytest.importorskip("spandrel")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home in which LaMa is installed, as a file of one's own."""
    folder = tmp_path_factory.mktemp("lama")
    library = ModelLibrary(folder / "home")
    row = library.add(write_lama(folder / "big-lama.safetensors"), id="my-lama")
    assert row.spec.kind == "eraser" and row.spec.tasks == ("erase",)
    return folder / "home"


@pytest.fixture(scope="module")
def runtime(home):
    opened = Runtime(
        TorchDevice("cpu", "float32"), ModelLibrary(home), model_memory_bytes=None, parked_memory_bytes=None
    )
    yield opened
    opened.close()


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def hole_in(size, *boxes):
    mask = Image.new("L", size, 0)
    for box in boxes:
        ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def same_outside(one, other, mask):
    outside = np.asarray(mask) == 0
    return np.array_equal(np.asarray(one)[outside], np.asarray(other)[outside])


def test_the_published_names_are_recognised_with_every_prefix(home):
    shapes = read_header(next((home / "models").rglob("*.safetensors"))).shapes
    assert len(shapes) == 989, "as many tensors as the published file has"
    bare = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    for prefix in ("model.", "", "generator."):
        found = recognise(Header({prefix + name: shape for name, shape in bare.items()}, {}), "any")
        assert found is not None and found.kind == "eraser"
    assert recognise(Header({"model.1.weight": (3, 3)}, {}), "any") is None


def test_one_with_weights_goes_before_opencv_and_the_catalogs_row_before_both(home):
    assert ModelLibrary(home).choose(("erase",)).spec.id == "my-lama"
    ranks = {spec.id: spec.rank for spec in CATALOG if "erase" in spec.tasks}
    assert ranks["lama"] > 0 > ranks["opencv-inpaint"]


def test_it_paints_what_spandrels_model_does_and_only_in_the_hole(home, runtime):
    picture, hole = noise((150, 90)), hole_in((150, 90), (40, 20, 100, 70))
    with runtime.alone("my-lama", task="erase") as erase:
        filled = erase(picture, hole)
    tensors = load_file(next((home / "models").rglob("*.safetensors")))
    model = SPANDREL.ModelLoader(device="cpu").load_from_state_dict(tensors).eval()
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    white = torch.from_numpy(np.array(hole) >= 128)[None, None].float()
    with torch.inference_mode():
        expected = model(pixels, white)[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(filled).astype(int) - expected).max() <= 1
    assert same_outside(filled, picture, hole) and not same_outside(filled, picture, ImageChops.invert(hole))


def test_part_by_part_nothing_outside_the_holes_changes(runtime):
    size = (260, 200)
    picture, mask = noise(size), hole_in(size, (20, 20, 200, 150), (230, 170, 250, 190))
    parts = holes.parts_of(mask, longest=160)
    assert len(parts) > 4
    with runtime.alone("my-lama", task="erase") as erase:
        filled = holes.fill(picture, mask, parts, erase, lambda number: None)
    assert same_outside(filled, picture, mask)
    changed = np.abs(np.asarray(filled).astype(int) - np.asarray(picture)).max(-1)[np.asarray(mask) > 0]
    assert (changed > 0).mean() > 0.95


def test_a_file_of_another_network_is_refused(tmp_path):
    save_file({"some.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    spec = next(spec for spec in CATALOG if spec.id == "lama")
    with pytest.raises(InvalidRequest, match="not one that fills holes"):
        erasers.load(spec, tmp_path / "other.safetensors", TorchDevice("cpu", "float32"))


LARGE = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image, ImageDraw
from app.imaging import holes
from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from app.models.runtime import Runtime
from tests.own_memory import peak
home, longest = Path(sys.argv[1]), int(sys.argv[2])
size = (6000, 4000)
tile = np.random.default_rng(0).integers(0, 256, (500, 750, 3), dtype=np.uint8)
picture = Image.fromarray(np.tile(tile, (8, 8, 1)))
mask = Image.new("L", size, 0)
ImageDraw.Draw(mask).rectangle((3000, 2000, 3300 + longest, 2020), fill=255)
ImageDraw.Draw(mask).ellipse((5900, 3900, 5999, 3999), fill=255)
runtime = Runtime(TorchDevice("cpu", "float32"), ModelLibrary(home), model_memory_bytes=None, parked_memory_bytes=None)
parts = holes.parts_of(mask, longest=longest)
with runtime.alone("my-lama", task="erase") as erase:
    filled = holes.fill(picture, mask, parts, erase, lambda number: None)
largest = peak()
before, after, hole = np.asarray(picture), np.asarray(filled), np.asarray(mask) > 0
same = all(np.array_equal(before[row][~hole[row]], after[row][~hole[row]]) for row in range(size[1]))
changed = float((before[hole] != after[hole]).any(-1).mean())
print(json.dumps({"parts": len(parts), "largest": max(p.box[2] - p.box[0] for p in parts), "peak": largest,
                  "same": same, "changed": changed}))
"""


def test_24_megapixels_take_less_than_four_gigabytes(home, record_property):
    """In a process of its own, with parts as large as they get."""
    run = subprocess.run(
        [sys.executable, "-c", LARGE, str(home), str(holes.LONGEST_PART)], capture_output=True, text=True, timeout=580
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout)
    record_property("told", told)
    assert told["same"] and told["changed"] > 0.95 and told["parts"] >= 3
    assert told["largest"] >= holes.LONGEST_PART - 200
    assert told["peak"] < 4e9, told
