"""Attention in chunks is attention, is taken only where it is faster, and the CPU profile draws the same picture."""

import itertools
import threading

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from app.models import attention, device
from app.models.attention import CHUNKS, AttentionPlan, chunked_attention, faster_attention, sliced_attention
from app.models.device import TorchDevice
from app.models.runtime import open_runtime


def tensors(heads: int, tokens: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    """Query, key and value as diffusers hands them over: heads are a view of the width."""
    draw = torch.Generator().manual_seed(tokens)
    parts = [torch.randn(batch, tokens, heads * width, generator=draw).bfloat16() for _ in range(3)]
    return [part.view(batch, tokens, heads, width).transpose(1, 2) for part in parts]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("shape", [(8, 1024, 40), (5, 300, 64), (3, 257, 80)])
def test_chunks_give_attention(shape, chunk):
    parts = tensors(*shape)
    exact = functional.scaled_dot_product_attention(*[part.float() for part in parts])
    stock = (functional.scaled_dot_product_attention(*parts).float() - exact).abs().max()
    chunked = chunked_attention(*parts, chunk)
    assert chunked.dtype is torch.bfloat16 and chunked.shape == exact.shape
    error = (chunked.float() - exact).abs().max()
    assert error < max(10 * stock, 0.02), (error, stock)
    halved = chunked_attention(*parts, chunk, scale=0.5 * shape[2] ** -0.5)
    expected = functional.scaled_dot_product_attention(*[part.float() for part in parts], scale=0.5 * shape[2] ** -0.5)
    assert (halved.float() - expected).abs().max() < 0.02


def planned(stock_seconds: float, chunk_seconds: dict) -> AttentionPlan:
    """A plan whose clock says that each way takes so long."""
    steps = itertools.chain.from_iterable(
        (0.0, seconds) for _ in range(attention.REPEATS) for seconds in (stock_seconds, *chunk_seconds.values())
    )
    return AttentionPlan(clock=lambda: next(steps))


def test_only_what_is_clearly_faster_is_taken():
    parts = tensors(2, 256, 16)
    slow, close, fast = ({chunk: seconds for chunk in CHUNKS} for seconds in (2.0, 0.95, 0.8))
    assert planned(1.0, slow).chunk(*parts) is None
    assert planned(1.0, close).chunk(*parts) is None, "within the noise stock attention stays"
    plan = planned(1.0, {**fast, CHUNKS[1]: 0.5})
    assert plan.chunk(*parts) == CHUNKS[1]
    assert plan.chunk(*parts) == CHUNKS[1], "measured once: the clock has no more times to tell"


def test_the_block_reaches_attention_of_its_own_thread_and_no_other(monkeypatch):
    taken = []

    def noting(*given):
        taken.append(threading.current_thread().name)
        return chunked_attention(*given)

    monkeypatch.setattr(attention, "chunked_attention", noting)
    fast = {chunk: 0.5 for chunk in CHUNKS}
    large, small, masked = tensors(2, 512, 16), tensors(2, 64, 16), torch.zeros(512, 512, dtype=torch.bfloat16)
    plan = planned(1.0, fast)
    with faster_attention(plan):
        first = functional.scaled_dot_product_attention(*large)
        measured = len(taken)
        functional.scaled_dot_product_attention(*large)
        assert len(taken) == measured + 1
        functional.scaled_dot_product_attention(*small)
        functional.scaled_dot_product_attention(*large, attn_mask=masked)
        functional.scaled_dot_product_attention(large[0], small[1], small[2])
        functional.scaled_dot_product_attention(*[part.float() for part in large])
        other = threading.Thread(target=lambda: functional.scaled_dot_product_attention(*large))
        other.start()
        other.join()
    functional.scaled_dot_product_attention(*large)
    assert len(taken) == measured + 1
    assert torch.equal(first, chunked_attention(*large, CHUNKS[0]))


def test_full_size_models_get_the_profile_where_the_processor_has_the_instructions(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    plain = TorchDevice("cpu")
    assert plain.for_model(2 * 10**9).dtype is torch.bfloat16
    assert plain.for_model(2 * 10**9).has_cpu_profile and not plain.has_cpu_profile
    assert plain.for_model(41_000_000) is plain and plain.dtype is torch.float32
    for asked in ("float32", "bfloat16"):
        assert not TorchDevice("cpu", asked).for_model(2 * 10**9).has_cpu_profile, "a precision that is asked for holds"
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: False)
    assert plain.for_model(2 * 10**9) is plain


@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sdxl"])
def test_the_profile_draws_the_same_picture(library, monkeypatch, model):
    def draw() -> tuple[np.ndarray, torch.nn.Module]:
        runtime = open_runtime(device="cpu", library=library)
        with runtime.borrow(model, task="text-to-image", scheduler="DDIM") as pipeline:
            words = {"prompt": "a red car", "width": 128, "height": 128, "num_inference_steps": 4}
            image = pipeline(**words, generator=runtime.generators(3, 1)).images[0]
            unet = pipeline.stock.unet
        runtime.close()
        return np.asarray(image).astype(float), unet

    exact, unet = draw()
    assert unet.dtype is torch.float32
    monkeypatch.setattr(device, "FULL_SIZE", 1)
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: True)
    drawn, unet = draw()
    assert unet.dtype is torch.bfloat16
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    noise = np.mean((drawn - exact) ** 2)
    assert 10 * np.log10(255**2 / noise) > 25, "the picture is another one"


class Noting(TorchFunctionMode):
    """Remembers the shapes of the queries that stock attention meets."""

    def __init__(self):
        super().__init__()
        self.queries = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            self.queries.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("facts", [{}, {"is_causal": True}, {"scale": 0.5}, {"enable_gqa": True}])
def test_slices_are_the_whole(facts):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 6, 40, 16, generator=generator) for _ in range(3))
    if "enable_gqa" in facts:
        key, value = key[:, :3], value[:, :3]
    stock = functional.scaled_dot_product_attention
    expected = stock(query, key, value, **facts)
    with Noting() as noting, sliced_attention():
        sliced = functional.scaled_dot_product_attention(query, key, value, **facts)
    torch.testing.assert_close(sliced, expected)
    assert noting.queries == [(1, 3, 40, 16)] * 4


def test_slices_keep_the_mask():
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, 5, 30, 16, generator=generator) for _ in range(3))
    mask = torch.where(torch.rand(2, 1, 1, 30, generator=generator) < 0.5, 0.0, -1e4)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with sliced_attention():
        sliced = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        unmasked = functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(sliced, expected)
    assert not torch.allclose(sliced, unmasked)
