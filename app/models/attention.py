"""Our own attention: PyTorch's fused kernel, and in its place where they pay, slices and chunks.

A way of attending never takes another processor's place: `put_on` replaces stock processors only and puts them back,
and a processor of ours that does more (an identity's, say) calls `attend` with the way that its module was given.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

SMALLEST_CHUNKED = 256
"""Tokens below which the fused kernel is as quick."""
ROWS = 128
"""Rows of queries in a chunk: its scores stay in a core's cache."""
HEADS = 2
"""Heads in a chunk of long sequences; short ones take all heads at once."""
LONG = 2048


@dataclass(frozen=True)
class Way:
    """How attention is computed: in slices of half the heads, or in chunks where the CPU's bfloat16 kernel is slow."""

    sliced: bool = False
    chunked: bool = False


PLAIN = Way()


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    way: Way = PLAIN,
) -> torch.Tensor:
    """softmax(query key^T / sqrt(width)) value for [batch, heads, tokens, width], as `scaled_dot_product_attention`."""
    if way.chunked and mask is None and _gains_from_chunks(query, key):
        return chunked(query, key, value)
    if way.sliced:
        return sliced(query, key, value, mask)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _gains_from_chunks(query: torch.Tensor, key: torch.Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and query.dtype is torch.bfloat16
        and query.shape[2] >= SMALLEST_CHUNKED
        and key.shape[2] >= SMALLEST_CHUNKED
    )


def sliced(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The same, one row of the batch and half of the heads at a time."""
    batch, heads, tokens, _ = query.shape
    answer = query.new_empty(batch, heads, tokens, value.shape[-1])
    step = max(1, heads // 2)
    if mask is not None:
        mask = mask.expand(batch, heads, *mask.shape[-2:])
    for row in range(batch):
        for first in range(0, heads, step):
            part = (slice(row, row + 1), slice(first, first + step))
            answer[part] = F.scaled_dot_product_attention(
                query[part], key[part], value[part], attn_mask=None if mask is None else mask[part]
            )
    return answer


def chunked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The same in plain matrix products over a few heads and rows at a time, whose scores stay in the cache.

    The softmax runs in the tensors' own format, so that in bfloat16 the error against float32 is up to twice that of
    the fused kernel.
    """
    batch, heads, tokens, width = query.shape
    query = (query * width**-0.5).reshape(batch * heads, tokens, width)
    transposed = key.reshape(batch * heads, -1, width).transpose(1, 2)
    value = value.reshape(batch * heads, -1, value.shape[-1])
    answer = query.new_empty(batch * heads, tokens, value.shape[-1])
    step = HEADS if key.shape[2] >= LONG else heads
    for first in range(0, batch * heads, step):
        keys, values = transposed[first : first + step], value[first : first + step]
        for row in range(0, tokens, ROWS):
            scores = torch.bmm(query[first : first + step, row : row + ROWS], keys)
            answer[first : first + step, row : row + ROWS] = torch.bmm(scores.softmax(-1), values)
    return answer.view(batch, heads, tokens, -1)


class OwnAttention(AttnProcessor2_0):
    """The stock processor with `attend` in the fused kernel's place."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way = way

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *args: object,
        **kwargs: object,
    ) -> torch.Tensor:
        """As diffusers' AttnProcessor2_0, step by step."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        shape = hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        words = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, length, _ = words.shape
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, length, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            words = hidden_states
        elif attn.norm_cross:
            words = attn.norm_encoder_hidden_states(words)
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(words), attn.to_v(words))
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        attended = attend(query, key, value, attention_mask, self.way).transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            attended = layer(attended)
        if len(shape) == 4:
            attended = attended.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            attended = attended + residual
        return attended / attn.rescale_output_factor


Replaced = list[tuple[Attention, AttnProcessor2_0]]


def put_on(modules: Iterable[torch.nn.Module], way: Way) -> Replaced:
    """Let the stock processors of these modules attend this way; answers what `take_off` puts back.

    Others, as an identity's, stay: they ask `attend` themselves.
    """
    replaced: Replaced = []
    for module in modules:
        for part in module.modules():
            if isinstance(part, Attention) and type(part.processor) is AttnProcessor2_0:
                replaced.append((part, part.processor))
                part.processor = OwnAttention(way)
    return replaced


def take_off(replaced: Replaced) -> None:
    """Put the stock processors back where ours still stand."""
    for part, processor in replaced:
        if isinstance(part.processor, OwnAttention):
            part.processor = processor
    replaced.clear()
