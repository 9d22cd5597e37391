"""Our attention against the fused kernel in float32, and the processor that carries it against the stock one."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from app.models import attention, cpu_profile
from app.models.attention import OwnAttention, Way, attend, chunked, put_on, sliced, take_off
from app.models.cpu_profile import Profile, quicker
from app.models.device import TorchDevice
from app.models.runtime import open_runtime
from tests.models.test_step_batching import Wish, draw

SHAPES = [(1, 8, 4096, 40), (2, 8, 1024, 80), (1, 5, 300, 64), (1, 3, 2049, 16)]


def heads(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_in_bfloat16_err_little_more_than_the_fused_kernel_may(shape):
    query, key, value = heads(*shape, dtype=torch.bfloat16)
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    drawn = chunked(query, key, value)
    assert drawn.dtype is torch.bfloat16 and drawn.shape == exact.shape
    # Sums over fewer tokens are larger, and their rounding is so with them.
    assert (drawn.float() - exact).abs().max() < 0.02 * exact.abs().max()
    assert (drawn.float() - exact).abs().mean() < 0.01 * exact.abs().mean() + 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_chunks_are_exact_in_float32(shape):
    query, key, value = heads(*shape)
    torch.testing.assert_close(chunked(query, key, value), F.scaled_dot_product_attention(query, key, value))


def test_slices_are_the_whole_with_and_without_a_mask():
    query, key, value = heads(2, 5, 96, 16)
    key, value = key[:, :, :40], value[:, :, :40]
    torch.testing.assert_close(sliced(query, key, value), F.scaled_dot_product_attention(query, key, value))
    mask = torch.where(torch.rand(2, 1, 1, 40, generator=torch.Generator().manual_seed(1)) < 0.5, 0.0, -1e4)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(sliced(query, key, value, mask), expected)
    assert not torch.allclose(sliced(query, key, value, mask), sliced(query, key, value))


@pytest.mark.parametrize(
    ("shape", "words", "dtype", "mask", "taken"),
    [
        ((1, 2, 256, 8), 256, torch.bfloat16, False, True),
        ((1, 2, 255, 8), 255, torch.bfloat16, False, False),
        ((1, 2, 512, 8), 77, torch.bfloat16, False, False),
        ((1, 2, 256, 8), 256, torch.float32, False, False),
        ((1, 2, 256, 8), 256, torch.bfloat16, True, False),
    ],
)
def test_chunks_are_taken_for_long_self_attention_in_bfloat16_alone(monkeypatch, shape, words, dtype, mask, taken):
    calls = []
    monkeypatch.setattr(attention, "chunked", lambda *parts: calls.append(1) or chunked(*parts))
    query, key, value = heads(*shape, dtype=dtype)
    key, value = key[:, :, :words], value[:, :, :words]
    bias = torch.zeros(1, 2, shape[2], words, dtype=dtype) if mask else None
    answer = attend(query, key, value, bias, Way(chunked=True))
    assert bool(calls) is taken
    torch.testing.assert_close(answer, F.scaled_dot_product_attention(query, key, value, bias), atol=0.02, rtol=0.1)
    calls.clear()
    attend(query, key, value, bias)
    assert not calls, "a plain way takes the fused kernel"


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"cross_attention_dim": 24},
        {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0, "bias": True},
        {"qk_norm": "layer_norm"},
        {"cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
    ],
)
def test_the_processor_does_what_the_stock_one_does(facts):
    torch.manual_seed(0)
    layer = Attention(query_dim=32, heads=4, dim_head=8, **facts).eval()
    assert type(layer.processor) is AttnProcessor2_0
    inputs = torch.randn(2, 32, 6, 5) if "norm_num_groups" in facts else torch.randn(2, 30, 32)
    words = torch.randn(2, 7, 24) if "cross_attention_dim" in facts else None
    mask = torch.zeros(2, 7).index_fill(1, torch.tensor([3, 4]), -1e4)[:, None] if words is not None else None
    with torch.no_grad():
        expected = layer(inputs, words, attention_mask=mask)
        replaced = put_on([layer], Way())
        assert isinstance(layer.processor, OwnAttention)
        assert torch.equal(layer(inputs, words, attention_mask=mask), expected)
        layer.processor.way = Way(sliced=True)
        torch.testing.assert_close(layer(inputs, words, attention_mask=mask), expected)
        take_off(replaced)
    assert type(layer.processor) is AttnProcessor2_0 and not replaced


class Clock:
    """Time that work makes pass."""

    now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        def run():
            self.now += seconds.pop(0) if isinstance(seconds, list) else seconds

        return run


def test_the_quicker_one_is_told_by_medians_after_a_warm_start():
    clock = Clock()
    assert quicker(clock.work(1.0), clock.work(2.0), clock)
    assert not quicker(clock.work(2.0), clock.work(1.0), clock)
    assert quicker(clock.work([90.0, 1, 1, 1, 1, 80.0]), clock.work(2.0), clock), "one slow start and one hiccup"


def small_unet(parameters):
    return {"unet": torch.nn.Linear(1, parameters, bias=False)}


def test_the_profile_is_for_large_models_whose_format_was_left_open(monkeypatch):
    monkeypatch.setattr(cpu_profile, "PUBLISHED", 100)
    monkeypatch.setattr(cpu_profile, "has_instructions", lambda: True)
    wanted = cpu_profile.is_wanted
    assert wanted(small_unet(100), TorchDevice("cpu", cpu_profile="auto"))
    assert not wanted(small_unet(99), TorchDevice("cpu", cpu_profile="auto"))
    assert not wanted(small_unet(100), TorchDevice("cpu", cpu_profile="plain"))
    assert not wanted(small_unet(100), TorchDevice("cpu", "float32", cpu_profile="auto"))
    assert wanted(small_unet(99), TorchDevice("cpu", cpu_profile="bf16"))
    monkeypatch.setattr(cpu_profile, "has_instructions", lambda: False)
    assert not wanted(small_unet(100), TorchDevice("cpu", cpu_profile="auto"))


@pytest.mark.parametrize(
    ("profile", "half"), [(Profile(half=True, chunked=True), True), (Profile(half=False, chunked=True), False)]
)
def test_auto_takes_what_measured_quicker(monkeypatch, profile, half):
    monkeypatch.setattr(cpu_profile, "PUBLISHED", 1)
    monkeypatch.setattr(cpu_profile, "has_instructions", lambda: True)
    monkeypatch.setattr(cpu_profile, "measure", lambda: profile)
    parts = {"unet": torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3)), "text_encoder": torch.nn.Linear(2, 2)}
    way = cpu_profile.apply(parts, TorchDevice("cpu", cpu_profile="auto"))
    assert way == Way(chunked=half)
    assert {module[0].weight.dtype if name == "unet" else module.weight.dtype for name, module in parts.items()} == {
        torch.bfloat16 if half else torch.float32
    }
    assert parts["unet"][0].weight.is_contiguous(memory_format=torch.channels_last) is half


def test_a_measured_profile_is_one_of_the_four():
    measured = cpu_profile.measure()
    assert isinstance(measured.half, bool) and isinstance(measured.chunked, bool)
    assert cpu_profile.measure() is measured, "it is measured once in a process"


def test_a_checkpoint_of_a_profile_draws_nearly_the_plain_picture(library, runtime, monkeypatch):
    monkeypatch.setattr(cpu_profile, "measure", lambda: Profile(half=True, chunked=True))
    monkeypatch.setattr(attention, "SMALLEST_CHUNKED", 4)
    taken = []
    monkeypatch.setattr(attention, "chunked", lambda *parts: taken.append(1) or chunked(*parts))
    profiled = open_runtime(device="cpu", library=library, cpu_profile="bf16")
    wish = Wish("text-to-image", {"prompt": "a red car", "num_inference_steps": 2, "guidance_scale": 1.0}, "DDIM", 1)
    try:
        rough = draw(profiled, "tiny-sd15", wish)[0]
    finally:
        profiled.close()
    exact = draw(runtime, "tiny-sd15", wish)[0]
    assert taken
    assert 0 < abs(rough - exact).mean() < 12 < exact.std()
