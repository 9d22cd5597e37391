"""An editor that runs out of the device's memory: what it tries, in order, and that the picture stays the same."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from app.core.model_offload import Offload
from app.errors import OutOfMemory
from app.models.library import ModelLibrary
from app.models.relief import IN_TILES, STREAMED
from app.models.runtime import open_runtime
from tests.models import tiny_qwen, tiny_step1x
from tests.models.test_runtime import failing
from tests.parity.cases import DATA

SIDE = 128
PHOTO = Image.effect_mandelbrot((SIDE, SIDE), (-2, -1.2, 0.8, 1.2), 60).convert("RGB")
EDITORS = {
    "tiny-qwen": ("qwen-edit", {"image": [PHOTO], "true_cfg_scale": 1.0}),
    "tiny-step1x": ("step1x-edit", {"image": PHOTO, "guidance_scale": 1.0, "size_level": 256}),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    published, patch = tmp_path_factory.mktemp("published"), pytest.MonkeyPatch()
    case = json.loads((DATA / "step1x_edit" / "case.json").read_text("utf-8"))
    library = ModelLibrary(tmp_path_factory.mktemp("home"))
    library.add(tiny_qwen.make_folder(published / "tiny-qwen"))
    library.add(tiny_step1x.make_folder(published / "tiny-step1x", case["keys"], case["config"], version="1.2"))
    sized = tiny_qwen.smaller(SIDE * SIDE)
    place = "diffusers.pipelines.qwenimage.pipeline_qwenimage_edit.calculate_dimensions"
    patch.setattr(place, lambda *told: (*sized(*told), None))
    yield library
    patch.undo()


@contextmanager
def borrowed(library, model, monkeypatch):
    """The editor, and its opened model, whose weights may be streamed as those of a GPU may."""
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    try:
        with runtime.editor(model, task=EDITORS[model][0]) as editor:
            opened = next(iter(runtime._cache.models().values()))

            def stream():
                # A CPU's weights have nowhere else to be; here it is told that they have, and nothing else is changed.
                if opened.placement.strategy is Offload.STREAMED:
                    return None
                opened.wardrobe.wear(None)
                return opened.placement.change(Offload.STREAMED)

            monkeypatch.setattr(opened, "stream", stream)
            yield editor, opened
    finally:
        runtime.close()


def draw(editor, model):
    source, steps = torch.Generator().manual_seed(3), []
    answer = editor(
        prompt="make the car green", num_inference_steps=2, generator=source,
        callback_on_step_end=lambda _editor, index, *_: steps.append(index), **EDITORS[model][1],
    )  # fmt: skip
    return np.asarray(answer.images[0], np.int16), steps


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("model", EDITORS)
def test_the_weights_are_streamed_then_it_decodes_in_tiles(library, model, times, monkeypatch):
    with borrowed(library, model, monkeypatch) as (editor, opened):
        expected, steps = draw(editor, model)
        assert steps == [0, 1] and editor.notes == []
        tiled = []
        watching = opened.vae.decoder.register_forward_pre_hook(lambda *_: tiled.append(opened.vae.use_tiling))
        hook = failing(opened.vae.decoder, times)
        drawn, steps = draw(editor, model)
        hook.remove()
        watching.remove()
        assert np.array_equal(drawn, expected) or (times == 2 and np.abs(drawn - expected).mean() < 16)
        assert steps == [0, 1] * (times + 1)
        assert editor.notes == [STREAMED, IN_TILES][:times] and opened.placement.strategy is Offload.STREAMED
        assert tiled[-1] == (times == 2) and opened.vae.use_tiling, "from the next run on as the strategy says"


@pytest.mark.parametrize("model", EDITORS)
def test_when_nothing_helps_it_is_told_and_the_next_run_draws(library, model, monkeypatch):
    with borrowed(library, model, monkeypatch) as (editor, opened):
        hook = failing(opened.vae.decoder, 99)
        with pytest.raises(OutOfMemory, match="decoded in tiles"):
            draw(editor, model)
        hook.remove()
        drawn, _ = draw(editor, model)
        assert drawn.std() > 0


def test_an_answer_in_words_is_tried_again_too_from_the_same_noise(library, monkeypatch):
    with borrowed(library, "tiny-step1x", monkeypatch) as (editor, opened):

        def say():
            told = {"system": "You look.", "max_new_tokens": 4}
            return editor.say("What is it?", [PHOTO], generator=torch.Generator().manual_seed(1), **told)

        expected = say()
        hook = failing(opened.text_encoder, 1)
        assert say() == expected
        hook.remove()
        assert editor.notes == [STREAMED]
