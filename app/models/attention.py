"""Attention in chunks, where that is faster than torch's own: it depends on the processor, so it is measured.

Several bfloat16 kernels for CPUs are written for AMX; on a processor that has AVX512-BF16 alone, a plain batched matrix
product over a few heads and a block of rows beats them by a factor of two (docs/performance.md). `faster_attention` is
a block inside which `scaled_dot_product_attention` takes the faster way, whichever attention processor calls it.
`sliced_attention` is such a block for the least memory: one picture and half of the heads at a time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SMALLEST = 256
"""Tokens below which chunks cannot pay."""
CHUNKS = ((2, 128), (1, 256), (8, 128))
"""Heads and query rows of one matrix product that are tried."""
WORTH = 0.9
"""Share of stock attention's time that the best chunks must stay below to be taken."""
REPEATS = 3

Shape = tuple[int, ...]
Chunk = tuple[int, int]


def chunked_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, chunk: Chunk, scale: float | None = None
) -> torch.Tensor:
    """softmax(query @ key.T * scale) @ value for [batch, heads, tokens, width], a few heads and rows at a time.

    `scale` defaults to width ** -0.5. The softmax runs in the tensors' own format, as the kernels that it replaces.
    """
    heads, rows = chunk
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    answer = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    for batch in range(query.shape[0]):
        for head in range(0, query.shape[1], heads):
            some = (batch, slice(head, head + heads))
            keys, values, queries = key[some].transpose(-1, -2), value[some], query[some] * factor
            for row in range(0, query.shape[2], rows):
                weights = torch.bmm(queries[:, row : row + rows], keys).softmax(-1)
                answer[(*some, slice(row, row + rows))] = torch.bmm(weights, values)
    return answer


class AttentionPlan:
    """For each shape, which chunks beat stock attention on this processor: measured at its first use."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._chosen: dict[Shape, Chunk | None] = {}

    def chunk(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Chunk | None:
        """The chunks for tensors of these shapes; None where stock attention is as fast."""
        shape = (*query.shape[1:], key.shape[2])
        if shape not in self._chosen:
            self._chosen[shape] = self._measure(query[:1], key[:1], value[:1])
        return self._chosen[shape]

    def _measure(self, *parts: torch.Tensor) -> Chunk | None:
        ways: dict[Chunk | None, Callable[[], Any]] = {None: lambda: functional.scaled_dot_product_attention(*parts)}
        for chunk in CHUNKS:
            ways[chunk] = lambda chunk=chunk: chunked_attention(*parts, chunk)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(REPEATS):
            for way, attend in ways.items():
                begun = self._clock()
                attend()
                best[way] = min(best[way], self._clock() - begun)
        fastest = min(CHUNKS, key=lambda chunk: best[chunk])
        return fastest if best[fastest] < WORTH * best[None] else None


class _Slicing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and len(args) == 3 and args[0].ndim == 4:
            return _in_slices(*args, **kwargs)
        return func(*args, **kwargs)


def _in_slices(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    if kwargs.get("enable_gqa"):
        key, value = (part.repeat_interleave(heads // part.shape[1], 1) for part in (key, value))
        kwargs = kwargs | {"enable_gqa": False}
    answer = query.new_empty(batch, heads, tokens, value.shape[-1])
    if attn_mask is not None:
        attn_mask = attn_mask.expand(batch, heads, *attn_mask.shape[-2:])
    step = max(1, heads // 2)
    for row in range(batch):
        for first in range(0, heads, step):
            part = (slice(row, row + 1), slice(first, first + step))
            mask = None if attn_mask is None else attn_mask[part]
            answer[part] = functional.scaled_dot_product_attention(
                query[part], key[part], value[part], attn_mask=mask, **kwargs
            )
    return answer


class _Attending(TorchFunctionMode):
    def __init__(self, plan: AttentionPlan) -> None:
        super().__init__()
        self._plan = plan

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Inside this method the mode is off, so that measuring meets stock attention.
        if func is functional.scaled_dot_product_attention and _may_chunk(args, kwargs):
            chunk = self._plan.chunk(*args[:3])
            if chunk is not None:
                return chunked_attention(*args[:3], chunk, kwargs.get("scale"))
        return func(*args, **kwargs)


def _may_chunk(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Self-attention without a mask or dropout, in bfloat16, of enough tokens."""
    if len(args) != 3 or kwargs.get("attn_mask") is not None:
        return False
    if kwargs.get("dropout_p") or kwargs.get("is_causal") or kwargs.get("enable_gqa"):
        return False
    query, key, _ = args
    return query.dtype is torch.bfloat16 and query.ndim == 4 and query.shape[2] == key.shape[2] >= SMALLEST


_PLAN = AttentionPlan()


@contextmanager
def faster_attention(plan: AttentionPlan = _PLAN) -> Iterator[None]:
    """Within the block, and in this thread, attention takes the way that was measured to be the fastest."""
    with _Attending(plan):
        yield


@contextmanager
def sliced_attention() -> Iterator[None]:
    """Within the block, and in this thread, attention takes one row of the batch and half of the heads at a time."""
    with _Slicing():
        yield
