"""The page that walks somebody through a new capability works as it is written: its blocks are run."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from app.core.capability import Capability, ModelRequest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-capability.md"


@pytest.fixture(scope="module")
def blocks():
    """The page's Python, block by block: the file, its test, a run with a model."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(found) == 3
    return found


def module_of(source, name):
    """A module made of a block of the page."""
    module = ModuleType(name)
    exec(compile(source, f"{PAGE.name}:{name}", "exec"), vars(module))
    return module


def test_the_mirror_passes_its_own_test(blocks, run_capability, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "app.core.mirror", module_of(blocks[0], "app.core.mirror"))
    module_of(blocks[1], "test_mirror").test_mirror_swaps_left_and_right(run_capability, picture)


def test_the_run_with_a_model_makes_each_picture_as_if_alone(blocks, run_capability):
    run = module_of(blocks[2], "words").run
    words = Capability("words", "Words", "Draw words.", ModelRequest, run, needs=("text-to-image",))
    wish = {"prompt": "a red car", "model": "tiny-sd15", "num_inference_steps": 2}
    both = run_capability(words, **wish, seed=7, num_images_per_prompt=2)
    alone = run_capability(words, **wish, seed=8)
    assert both.seeds == [7, 8] and len(both.images) == 2
    assert both.images[1].tobytes() == alone.images[0].tobytes() != both.images[0].tobytes()
