"""Cross-attention to more than text, by row: what a job adds acts on its own rows of a shared forward, and on no other.

The processors go on a UNet for the one forward whose rows ask for them and come off with it, so between two forwards,
and in any forward without such rows, the UNet has its stock processors. Tokens, scales, masks and modes stand in the
job's branches, never in a processor: two jobs with different modes cannot meet.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from torch.nn import functional

from app.errors import InvalidRequest

Ortho = Literal["off", "ortho", "ortho_v2"]
TOKENS_OF_IDENTITY = 5
"""Of a face's tokens, the first so many count as identity where ortho_v2 asks how much a place looks at it."""

Layers = Mapping[int, tuple[torch.Tensor, torch.Tensor]]
"""Number of a cross-attention in `unet.attn_processors` (odd) -> weights of its key and value, [hidden, token width].

SDXL counts down blocks, up blocks, mid block, although it runs the mid block before the up blocks: published identity
adapters are numbered so.
"""


@dataclass(frozen=True)
class Halves:
    """Tokens [1, n, width] for the rows of the prompt, and for those of the negative prompt under guidance."""

    prompt: torch.Tensor
    negative: torch.Tensor

    def of(self, guided: bool) -> tuple[torch.Tensor, ...]:
        """In the order in which a pipeline stacks its rows: negative prompt first."""
        return (self.negative, self.prompt) if guided else (self.prompt,)


@dataclass(eq=False)
class Branch:
    """One more source that cross-attention looks at: `text + scale * attention(query, tokens)` before `to_out`.

    `scale` may be a number for each layer. `mask` [height, width] of 0 to 1 says where it acts. `start` and `end` are
    the share of the way from noise to picture between which it acts.
    """

    tokens: Halves
    layers: Layers
    scale: float | Mapping[int, float] = 1.0
    mask: torch.Tensor | None = None
    start: float = 0.0
    end: float = 1.0
    _known: dict[tuple[int, bool], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def is_windowed(self) -> bool:
        """Whether it acts in a part of the steps only."""
        return self.start > 0 or self.end < 1

    def scale_at(self, layer: int) -> float:
        """How strongly it acts in this layer."""
        return self.scale.get(layer, 0.0) if isinstance(self.scale, Mapping) else self.scale

    def attend(self, layer: int, heads: int, negative: bool, query: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What is added to `text` [rows, places, width]; `query` is [rows, heads, places, width of a head]."""
        scale = self.scale_at(layer)
        if not scale:
            return torch.zeros_like(text)
        key, value = self._keys_and_values(layer, heads, negative, query)
        rows = query.shape[0]
        found = functional.scaled_dot_product_attention(
            query, key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1)
        )
        found = found.transpose(1, 2).reshape(text.shape).to(text.dtype)
        found = self.combine(query, key, text, found)
        if self.mask is not None:
            found = found * self._mask_for(found)
        return scale * found

    def combine(self, query: torch.Tensor, key: torch.Tensor, text: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """What of `found` is added."""
        return found

    def _tokens(self, negative: bool) -> torch.Tensor:
        return self.tokens.negative if negative else self.tokens.prompt

    def _keys_and_values(
        self, layer: int, heads: int, negative: bool, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, heads, tokens, width of a head] each; they are the same at every step, so they are computed once."""
        known = self._known.get((layer, negative))
        if known is None:
            tokens = self._tokens(negative)
            # In the tokens' own format, and then in the query's, as the reference does it.
            known = tuple(
                functional.linear(tokens, weight.to(tokens))
                .view(1, -1, heads, query.shape[-1])
                .transpose(1, 2)
                .to(query)
                for weight in self.layers[layer]
            )
            if not torch.is_grad_enabled():
                self._known[layer, negative] = known
        return known

    def _mask_for(self, found: torch.Tensor) -> torch.Tensor:
        mask = IPAdapterMaskProcessor.downsample(self.mask[None], found.shape[0], found.shape[1], found.shape[2])
        return mask.to(found)


@dataclass(eq=False)
class IdentityBranch(Branch):
    """PuLID's way to add a face (arXiv 2404.16022; SDXL reference of ToTheBeginning/PuLID).

    `num_zero` zero tokens stand behind the face's own and soak up attention. `ortho` takes away from what is added what
    lies along the text's own answer: "ortho" all of it; "ortho_v2" at each place as much as the place does not look
    at the identity.
    """

    num_zero: int = 0
    ortho: Ortho = "off"

    def _tokens(self, negative: bool) -> torch.Tensor:
        tokens = super()._tokens(negative)
        return functional.pad(tokens, (0, 0, 0, self.num_zero)) if self.num_zero else tokens

    def combine(self, query: torch.Tensor, key: torch.Tensor, text: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """See `Branch`."""
        if self.ortho == "off":
            return found
        text32, found32 = text.float(), found.float()
        # Channel by channel, over all places. SDXL says "no negative prompt" with zeros, whose answer is zero: nothing
        # lies along it, where the reference, which always has a negative prompt, would divide by zero.
        length = (text32 * text32).sum(-2, keepdim=True)
        along = torch.where(length > 0, (text32 * found32).sum(-2, keepdim=True) / length, 0.0) * text32
        if self.ortho == "ortho":
            return (found32 - along).to(found)
        looks = (query.float() @ key.float().transpose(-1, -2)).softmax(-1).mean(1)
        at_identity = looks[..., :TOKENS_OF_IDENTITY].sum(-1, keepdim=True)
        return (found32 + (at_identity - 1) * along).to(found)


@dataclass(frozen=True)
class Part:
    """The rows of one call in a forward, and its branches. `timestep` is asked for only where a branch is windowed."""

    rows: int
    branches: Sequence[Branch] = ()
    guided: bool = True
    timestep: Callable[[], float] = lambda: 0.0

    def acting(self, train_timesteps: int) -> tuple[Branch, ...]:
        """The branches whose window is open."""
        if not any(branch.is_windowed for branch in self.branches):
            return tuple(self.branches)
        done = 1 - self.timestep() / train_timesteps
        return tuple(branch for branch in self.branches if branch.start <= done <= branch.end)


class RowAttention:
    """A cross-attention processor: diffusers' own arithmetic for text, and each part's branches on its rows."""

    def __init__(self, layer: int, parts: Sequence[tuple[int, bool, Sequence[Branch]]]) -> None:
        """`parts`: rows, whether they are a negative prompt's, and the branches that act on them; in order."""
        self.layer = layer
        self.parts = parts

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[rows, places, width] in and out, as `AttnProcessor2_0` for the cross-attention of a transformer block."""
        residual, rows = hidden_states, hidden_states.shape[0]
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, encoder_hidden_states.shape[1], rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        if attn.norm_cross:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.view(rows, -1, attn.heads, states.shape[-1] // attn.heads).transpose(1, 2)

        query = split(attn.to_q(hidden_states))
        key, value = split(attn.to_k(encoder_hidden_states)), split(attn.to_v(encoder_hidden_states))
        text = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        text = text.transpose(1, 2).reshape(rows, -1, query.shape[1] * query.shape[-1]).to(query.dtype)
        mixed, first = [], 0
        for count, negative, branches in self.parts:
            part = slice(first, first + count)
            # Each branch meets the text's answer alone, so that their order does not matter.
            added = [branch.attend(self.layer, attn.heads, negative, query[part], text[part]) for branch in branches]
            mixed.append(sum(added, text[part]))
            first += count
        out = attn.to_out[1](attn.to_out[0](torch.cat(mixed)))
        if attn.residual_connection:
            out = out + residual
        return out / attn.rescale_output_factor


def cross_attentions(unet: Any) -> dict[int, Any]:
    """Number in `unet.attn_processors` -> the attention module: every second one looks at the text."""
    return {
        number: unet.get_submodule(name.removesuffix(".processor"))
        for number, name in enumerate(unet.attn_processors)
        if number % 2
    }


@contextmanager
def attending(unet: Any, parts: Sequence[Part], train_timesteps: int = 1000) -> Iterator[None]:
    """Within the block, a forward of the UNet on the rows of these parts looks at their branches too."""
    plan = [entry for part in parts for entry in _rows_of(part, train_timesteps)]
    if not any(branches for _, _, branches in plan):
        yield
        return
    modules = cross_attentions(unet)
    stock = {number: module.processor for number, module in modules.items()}
    try:
        for number, module in modules.items():
            module.processor = RowAttention(number, plan)
        yield
    finally:
        for number, module in modules.items():
            module.processor = stock[number]


def _rows_of(part: Part, train_timesteps: int) -> list[tuple[int, bool, tuple[Branch, ...]]]:
    acting = part.acting(train_timesteps)
    if not part.guided:
        return [(part.rows, False, acting)]
    half = part.rows // 2
    return [(half, True, acting), (half, False, acting)]


def layers_from(state: Mapping[str, torch.Tensor], key: str, value: str) -> Layers:
    """The layers in a state dict; `key` and `value` are names with a place for the number, `ip_adapter.{}.to_k_ip`."""
    before, _, after = key.partition("{}")
    numbers = sorted(
        int(name.removeprefix(before).removesuffix(after))
        for name in state
        if name.startswith(before) and name.endswith(after)
    )
    return {number: (state[key.format(number)], state[value.format(number)]) for number in numbers}


def require_fit(id: str, layers: Layers, unet: Any, model: str) -> None:
    """`InvalidRequest` where what has this id was made for another UNet than that of the model."""
    wrong = misfit(layers, unet)
    if wrong is not None:
        raise InvalidRequest(f"{id!r} was not made for the model {model!r}: {wrong}.", model=id)


def misfit(layers: Layers, unet: Any) -> str | None:
    """What of these layers does not fit the UNet, in words; None where all of it does."""
    modules = cross_attentions(unet)
    if set(layers) != set(modules):
        return f"it has {len(layers)} cross-attentions, the model {len(modules)}"
    width = unet.config.cross_attention_dim
    for number, module in modules.items():
        hidden = module.inner_dim
        for weight in layers[number]:
            if tuple(weight.shape) != (hidden, width):
                return f"layer {number} is {tuple(weight.shape)} and the model's {(hidden, width)}"
    return None


def heads_of(width: int, head_dim: int) -> int:
    """How many heads of this width there are; `ValueError` where they do not fill it."""
    heads, rest = divmod(width, head_dim)
    if rest or not heads:
        raise ValueError(f"{width} channels are no whole number of heads of {head_dim}")
    return heads
