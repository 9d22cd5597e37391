"""What compiled blocks draw, and when they step aside; `test_compiling` runs it in a process of its own.

torch.compile starts the threads of autograd, after which a process cannot be forked for training any more.
"""

import numpy as np
import torch

from app.core.fields import WeightedModel
from app.core.model_offload import Offload
from app.models import compiling
from app.models.runtime import open_runtime
from tests.models.mixed_jobs import Wish, draw

WISH = Wish("text-to-image", {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 5.0}, "DDIM", 1)
LORA = Wish(**{**vars(WISH), "borrow": {"loras": [WeightedModel(model="lora-sd15-kohya", weight=0.9)]}})


def codes(runtime) -> set[bool]:
    """Whether the blocks run compiled now."""
    checkpoint = next(iter(runtime._cache.models().values()))
    parts = checkpoint.components["unet"].modules()
    blocks = [part for part in parts if type(part).__name__ == "BasicTransformerBlock"]
    assert blocks
    return {block._compiled_call_impl is not None for block in blocks}


def test_compiled_blocks_draw_the_same_picture_and_step_aside_for_additions(library, runtime, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    plain, dressed = draw(runtime, "tiny-sd15", WISH)[0], draw(runtime, "tiny-sd15", LORA)[0]
    compiled = open_runtime(device="cpu", library=library, precision="float32", compile=True)
    try:
        torch._dynamo.utils.counters.clear()
        assert np.abs(draw(compiled, "tiny-sd15", WISH)[0] - plain).max() <= 1
        made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert made > 0 and codes(compiled) == {True}
        assert any((library.folder.parent / compiling.FOLDER).rglob("*.so")), "kept under the home"
        with compiled.borrow("tiny-sd15", task="text-to-image", **LORA.borrow) as pipeline:
            size = {"width": 64, "height": 64}
            seen = []
            arguments = {**LORA.arguments, **size, "generator": compiled.generators(1, 1)}
            pipeline(**arguments, callback_on_step_end=lambda *step: seen.append(codes(compiled)) or step[3])
        assert len(seen) >= 3 and all(step == {False} for step in seen), "a set of LoRAs would be compiled anew"
        assert np.array_equal(draw(compiled, "tiny-sd15", LORA)[0], dressed)
        assert np.abs(draw(compiled, "tiny-sd15", WISH)[0] - plain).max() <= 1
        assert codes(compiled) == {True}
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made, "nothing was compiled twice"
        checkpoint = next(iter(compiled._cache.models().values()))
        checkpoint.park()
        assert codes(compiled) == {False}
        checkpoint.placement.strategy = checkpoint.placement._wished = Offload.ATTENTION
        checkpoint.place()
        assert codes(compiled) == {False}, "slices are cut by hand"
    finally:
        compiled.close()
