"""Denoisers in fewer bits: smaller, still the picture that was meant, with LoRAs, and clear about what is missing."""

import numpy as np
import pytest
import torch

from app.core.fields import WeightedModel
from app.core.model_offload import Offload
from app.errors import DependencyMissing
from app.models import device, machine
from app.models.offloading import weight_bytes
from app.models.runtime import open_runtime
from tests.models.test_step_batching import Wish, draw

FORMATS = ["float8", "int8", "int4"]
WISH = Wish("text-to-image", {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 1.0}, "DDIM", 1)
LORA = Wish(**{**vars(WISH), "borrow": {"loras": [WeightedModel(model="lora-sd15-kohya", weight=2.0)]}})


@pytest.fixture(params=FORMATS)
def precision(request):
    """A format whose package is there."""
    try:
        machine.check_package(request.param)
    except DependencyMissing as error:
        pytest.skip(error.message)
    return request.param


@pytest.fixture
def small(library, precision):
    """A runtime that stores denoisers in this format."""
    runtime = open_runtime(device="cpu", library=library, precision=precision)
    yield runtime
    runtime.close()


@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sdxl"])
def test_a_denoiser_in_fewer_bits_is_smaller_and_draws_nearly_the_same(small, runtime, precision, model):
    exact = draw(runtime, model, WISH)[0]
    rough = draw(small, model, WISH)[0]
    assert 0 < np.abs(rough - exact).mean() < 12 < exact.std()
    sizes = {}
    for name, one in (("plain", runtime), ("small", small)):
        with one.borrow(model, task="text-to-image") as pipeline:
            sizes[name] = weight_bytes(pipeline.stock.unet)
            assert {weight.dtype for weight in pipeline.stock.vae.parameters()} == {torch.float32}
            assert {weight.dtype for weight in pipeline.stock.text_encoder.parameters()} == {torch.float32}
    assert sizes["small"] < 0.95 * sizes["plain"]
    told = next(entry for entry in small.memory()["models"] if entry["model"] == model)
    assert told["bytes"] < next(entry["bytes"] for entry in runtime.memory()["models"] if entry["model"] == model)


def test_a_lora_acts_on_a_denoiser_in_fewer_bits_and_comes_off(small, runtime):
    plain, moved = draw(small, "tiny-sd15", WISH)[0], draw(small, "tiny-sd15", LORA)[0]
    assert np.array_equal(draw(small, "tiny-sd15", WISH)[0], plain)
    wanted = draw(runtime, "tiny-sd15", LORA)[0] - draw(runtime, "tiny-sd15", WISH)[0]
    given = moved - plain
    # The same change of the picture, not just any.
    assert np.corrcoef(wanted.ravel(), given.ravel())[0, 1] > 0.5


def test_a_parked_denoiser_in_fewer_bits_comes_back_as_it_was(small):
    before = draw(small, "tiny-sd15", WISH)[0]
    checkpoint = next(iter(small._cache.models().values()))
    checkpoint.park()
    checkpoint.place()
    assert np.array_equal(draw(small, "tiny-sd15", WISH)[0], before)


@pytest.mark.parametrize(("precision", "package"), [("int8", "torchao"), ("int4", "optimum-quanto")])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(library, monkeypatch, precision, package):
    monkeypatch.setattr(machine, "_is_installed", lambda module: False)
    with pytest.raises(DependencyMissing, match=rf"{package}: pip install 'edit-image-service\[quant\]'"):
        open_runtime(device="cpu", library=library, precision=precision)
    runtime = open_runtime(device="cpu", library=library)
    with pytest.raises(DependencyMissing, match=package):
        runtime.configure(offload="auto", precision=precision, model_memory_bytes=None, parked_memory_bytes=None)
    assert runtime.device.precision == "auto"
    for plain in ("auto", "float32", "float8"):
        machine.check_package(plain)


def test_a_module_in_a_package_that_is_missing_is_not_installed():
    assert machine._is_installed("json.decoder")
    assert not machine._is_installed("no_such_package.inner")


@pytest.mark.parametrize("strategy", ["model_cpu", "sequential_cpu", "streamed"])
def test_fewer_bits_and_offloading_go_together(library, small, strategy):
    other = open_runtime(device="cpu", library=library, precision=small.device.precision)
    # Past the door that keeps these to GPUs: here the hooks move weights from RAM to RAM.
    other.device.offload = Offload(strategy)
    try:
        for wish in (WISH, LORA, WISH):
            assert np.array_equal(draw(other, "tiny-sd15", wish)[0], draw(small, "tiny-sd15", wish)[0])
        assert other.memory()["models"][0]["strategy"] == strategy
        next(iter(other._cache.models().values())).park()
    finally:
        other.close()


def test_large_models_compute_in_bfloat16_where_the_processor_can(library, precision, runtime, monkeypatch):
    monkeypatch.setattr(device, "FULL_SIZE", 1)
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    exact = draw(runtime, "tiny-sd15", WISH)[0]
    profiled = open_runtime(device="cpu", library=library, precision=precision)
    try:
        rough = draw(profiled, "tiny-sd15", WISH)[0]
        with profiled.borrow("tiny-sd15", task="text-to-image") as pipeline:
            assert {weight.dtype for weight in pipeline.stock.vae.parameters()} == {torch.bfloat16}
    finally:
        profiled.close()
    assert 0 < np.abs(rough - exact).mean() < 12 < exact.std()
