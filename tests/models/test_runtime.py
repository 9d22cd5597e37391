"""The runtime as a worker meets it: borrow, share, make room, say what runs out, close."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from app.errors import InvalidRequest, OutOfMemory, UnknownModel
from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from app.models.pipelines import PIPELINES
from app.models.runtime import open_runtime
from tests.models import tiny_checkpoints as tiny

WORDS = {"prompt": "a red car", "width": 64, "height": 64, "num_inference_steps": 2}


def draw(pipeline, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipeline(**WORDS, **more, generator=generator).images[0])


@pytest.fixture
def fresh(library):
    """A runtime of its own, with room for one tiny SDXL (9 million bytes) and not for two models."""
    runtime = open_runtime(device="cpu", library=library, precision="float32", model_memory_bytes=10_000_000)
    yield runtime
    runtime.close()


def test_views_of_one_checkpoint_share_every_weight(runtime):
    with (
        runtime.borrow("tiny-sdxl", task="text-to-image") as text,
        runtime.borrow("tiny-sdxl", task="image-to-image") as image,
        runtime.borrow("tiny-sdxl", task="inpaint") as paint,
    ):
        tasks = ("text-to-image", "image-to-image", "inpaint")
        assert [type(part.stock) for part in (text, image, paint)] == [PIPELINES["sdxl"][task] for task in tasks]
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            assert getattr(text.stock, name) is getattr(image.stock, name) is getattr(paint.stock, name)
    assert [entry["model"] for entry in runtime.memory()["models"]].count("tiny-sdxl") == 1


def test_sizes_are_the_models_own(runtime):
    with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
        assert pipeline.size_multiple == 8
        assert pipeline.default_size == (64, 64)
        assert pipeline.num_inference_timesteps == 0


def test_the_least_recently_used_model_makes_room(fresh):
    with fresh.borrow("tiny-sdxl", task="text-to-image") as pipeline:
        before = draw(pipeline)
    assert fresh.resident() == ["tiny-sdxl"]
    with fresh.borrow("tiny-sd15", task="text-to-image"):
        assert fresh.resident() == ["tiny-sd15"]
    with fresh.borrow("tiny-sdxl", task="text-to-image") as pipeline:
        assert np.array_equal(draw(pipeline), before)
    memory = fresh.memory()
    assert memory["device"] == "cpu"
    assert 8_000_000 < memory["placed_bytes"] < 10_000_000
    assert memory["models"] == [
        {
            "model": "tiny-sdxl",
            "state": "placed",
            "bytes": memory["placed_bytes"],
            "borrowed": False,
            "strategy": "none",
        }
    ]
    assert memory["reserved_bytes"] > memory["placed_bytes"]
    assert 0 < memory["free_bytes"] < memory["total_bytes"]


def test_two_models_that_do_not_fit_together_are_told_and_the_next_run_works(fresh):
    with fresh.borrow("tiny-sdxl", task="text-to-image") as pipeline:
        with (
            pytest.raises(OutOfMemory, match="that running work holds"),
            fresh.borrow("tiny-sd15", task="text-to-image"),
        ):
            pytest.fail("both were placed")
        assert draw(pipeline).std() > 5
    with fresh.borrow("tiny-sd15", task="text-to-image") as pipeline:
        assert draw(pipeline).std() > 5


def test_a_model_larger_than_the_device_is_told(library):
    runtime = open_runtime(device="cpu", library=library, precision="float32", model_memory_bytes=1_000_000)
    with pytest.raises(OutOfMemory) as refused, runtime.borrow("tiny-sd15", task="text-to-image"):
        pytest.fail("it was placed")
    assert "EIS_MODEL_MEMORY_BYTES" in refused.value.message
    assert runtime.resident() == []


def test_running_out_inside_a_run_becomes_an_error_with_advice(runtime):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ):
        told = runtime.translate(error)
        assert isinstance(told, OutOfMemory)
        assert "Lower the width and height" in told.message
        assert "GiB" not in told.message
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        assert isinstance(runtime.translate(error), OutOfMemory)
    known = InvalidRequest("said")
    assert runtime.translate(known) is known
    assert runtime.translate(ValueError("a defect")) is None


def failing(module, times):
    """Make the module run out of memory at its next calls."""
    left = [times]

    def refuse(*_):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return module.register_forward_pre_hook(refuse)


def test_running_out_first_moves_other_models_away_and_draws_the_same_picture(library):
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    with runtime.borrow("tiny-sdxl", task="text-to-image"):
        pass
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a") as pipeline:
        expected = draw(pipeline)
        assert set(runtime.resident()) == {"tiny-sd15", "tiny-sdxl"}
        hook = failing(pipeline.stock.vae.decoder, 1)
        try:
            assert np.array_equal(draw(pipeline), expected)
        finally:
            hook.remove()
        assert runtime.resident() == ["tiny-sd15"]
        assert pipeline.notes == []


def test_running_out_then_decodes_in_tiles_and_says_so(runtime):
    larger = {**WORDS, "width": 128, "height": 128}
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a", vae_tiling=True) as pipeline:
        expected = pipeline(**larger, generator=runtime.generators(4, 1)).images[0]
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a") as pipeline:
        hook = failing(pipeline.stock.vae.decoder, 2)
        try:
            drawn = pipeline(**larger, generator=runtime.generators(4, 1)).images[0]
        finally:
            hook.remove()
        assert np.array_equal(np.asarray(drawn), np.asarray(expected))
        assert pipeline.notes == ["The device's memory did not suffice, so the picture was decoded in tiles."]
        vae = pipeline.stock.vae
    assert not vae.use_tiling


def test_a_run_that_breaks_off_while_decoding_in_another_format_leaves_the_formats(runtime):
    def switch(module, inputs):
        pipeline.stock.vae.to(torch.float64)  # as SDXL decodes in float32 what is kept in float16
        raise RuntimeError("broke off")

    with runtime.borrow("tiny-sdxl", task="text-to-image") as pipeline:
        expected = draw(pipeline)
        hook = pipeline.stock.vae.decoder.register_forward_pre_hook(switch)
        try:
            with pytest.raises(RuntimeError, match="broke off"):
                draw(pipeline)
        finally:
            hook.remove()
        assert pipeline.stock.vae.dtype is torch.float32
        assert np.array_equal(draw(pipeline), expected)


def test_running_out_again_and_again_is_told_and_the_next_run_works(runtime):
    with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
        hook = failing(pipeline.stock.unet, 99)
        try:
            with pytest.raises(OutOfMemory, match="decoded in tiles"):
                draw(pipeline)
        finally:
            hook.remove()
    with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
        assert not pipeline.stock.vae.use_tiling
        assert draw(pipeline).std() > 5


def test_a_seed_counts_on_and_wraps(runtime):
    one, two = runtime.generators(2**32 - 1, 2)
    assert (one.initial_seed(), two.initial_seed()) == (2**32 - 1, 0)
    assert {generator.device.type for generator in (one, two)} == {"cpu"}


def test_a_replaced_model_is_read_anew(sources, tmp_path):
    library = ModelLibrary(tmp_path / "home")
    library.add(tiny.make_sd15(tmp_path / "first", 1), id="mine")
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    with runtime.borrow("mine", task="text-to-image") as pipeline:
        first = draw(pipeline)
    library.remove("mine")
    with pytest.raises(UnknownModel), runtime.borrow("mine", task="text-to-image"):
        pytest.fail("it was borrowed")
    library.add(tiny.make_sd15(tmp_path / "second", 2), id="mine")
    with runtime.borrow("mine", task="text-to-image") as pipeline:
        assert not np.array_equal(draw(pipeline), first)
    assert runtime.resident() == ["mine"]


def test_an_error_in_a_step_leaves_the_model_usable(runtime):
    def stop(stock, index, timestep, tensors):
        raise RuntimeError("cancelled at a step")

    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a") as pipeline:
        expected = draw(pipeline)
    with (
        pytest.raises(RuntimeError, match="cancelled at a step"),
        runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a") as pipeline,
    ):
        draw(pipeline, callback_on_step_end=stop)
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a") as pipeline:
        assert np.array_equal(draw(pipeline), expected)


def test_the_step_callback_hears_every_step_and_the_whole_number(runtime):
    heard = []

    def hear(stock, index, timestep, tensors):
        heard.append((index, stock.num_timesteps, tuple(tensors["latents"].shape)))
        return tensors

    with runtime.borrow("tiny-sdxl", task="text-to-image", scheduler="DDIM") as pipeline:
        draw(pipeline, callback_on_step_end=hear)
        assert pipeline.num_inference_timesteps == 2
    assert heard == [(0, 2, (1, 4, 8, 8)), (1, 2, (1, 4, 8, 8))]


def test_a_repeated_prompt_is_not_encoded_again(runtime):
    with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
        draw(pipeline)
        runs = []
        hook = pipeline.stock.text_encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
            draw(pipeline)
            assert runs == []
            pipeline(**WORDS | {"prompt": "another car"})
            assert len(runs) == 1
    finally:
        hook.remove()


def test_weighted_words_change_the_picture(runtime):
    with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
        plain = draw(pipeline)
        weighted = pipeline(**WORDS | {"prompt": "a (red:1.6) car"}, generator=torch.Generator().manual_seed(0))
        escaped = pipeline(**WORDS | {"prompt": "a (red:1.0) car"}, generator=torch.Generator().manual_seed(0))
    assert not np.array_equal(np.asarray(weighted.images[0]), plain)
    assert np.array_equal(np.asarray(escaped.images[0]), plain)


def test_tiling_draws_large_pictures_in_tiles(runtime):
    tiles = []
    with runtime.borrow("tiny-sd15", task="text-to-image", vae_tiling=True) as pipeline:
        hook = pipeline.stock.vae.decoder.register_forward_hook(lambda *_: tiles.append(1))
        try:
            image = pipeline(**WORDS | {"width": 128, "height": 128}).images[0]
        finally:
            hook.remove()
    assert image.size == (128, 128)
    assert len(tiles) >= 4


def test_borrows_from_several_threads_share_the_model(runtime):
    seen, failures = [], []

    def work():
        try:
            with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
                seen.append(id(pipeline.stock.unet))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(seen) == 4 and len(set(seen)) == 1


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_precision_on_a_cpu(precision, dtype):
    assert TorchDevice("cpu", precision).dtype is dtype


def test_a_bfloat16_runtime_draws_nearly_the_same_picture(library, runtime):
    half = open_runtime(device="cpu", library=library, precision="bfloat16")
    with half.borrow("tiny-sdxl", task="text-to-image", scheduler="DDIM") as pipeline:
        assert pipeline.stock.unet.dtype is torch.bfloat16
        rough = draw(pipeline, guidance_scale=1.0).astype(float)
    with runtime.borrow("tiny-sdxl", task="text-to-image", scheduler="DDIM") as pipeline:
        exact = draw(pipeline, guidance_scale=1.0).astype(float)
    assert np.abs(rough - exact).mean() < 12 < exact.std()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told():
    assert TorchDevice("auto").name == "cpu"
    with pytest.raises(InvalidRequest, match="torch sees no GPU"):
        TorchDevice("cuda:0")


def test_close_drops_everything(library):
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    with runtime.borrow("tiny-sd15", task="text-to-image"):
        pass
    runtime.close()
    assert runtime.resident() == []
    assert runtime.memory()["placed_bytes"] == 0


def test_opening_says_nothing_that_an_operator_must_read():
    """A start prints the page's address, not what libraries think of each other's versions."""
    quiet = {name: value for name, value in os.environ.items() if "VERBOSITY" not in name and "WARNINGS" not in name}
    command = [sys.executable, "-c", "import app.models.runtime, diffusers; diffusers.StableDiffusionXLPipeline"]
    told = subprocess.run(command, env=quiet, capture_output=True, text=True, check=True)
    assert told.stdout + told.stderr == ""
