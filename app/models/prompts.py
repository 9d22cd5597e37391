"""Prompts become embeddings: weighted words, prompts of any length, textual inversions, clip skip.

Syntax and arithmetic are AUTOMATIC1111's: `(word)` weighs 1.1, `(word:1.3)` weighs 1.3, `[word]` weighs 1/1.1,
nesting multiplies, `\\(` is a bracket, BREAK starts a new chunk. Weights multiply the embedding of their tokens; then
the mean of the chunk's whole embedding is restored. A prompt is cut into chunks of 75 tokens; a chunk that fills up
within 20 tokens after a comma is cut there. The pooled embedding (SDXL) is the first chunk's and is not weighted.

A prompt without weights of at most 75 tokens gives bit for bit what the stock pipeline's `encode_prompt` gives.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from app.errors import InvalidRequest
from app.models.offloading import working_device

CHUNK = 75
COMMA_BACKTRACK = 20
ROUND, SQUARE = 1.1, 1 / 1.1
LARGEST_WEIGHT = 100.0

_SYNTAX = re.compile(
    r"\\(?P<escaped>[\\()\[\]])|(?P<open>[(\[])|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<close>[)\]])"
    r"|(?P<text>[^\\()\[\]:]+|.)",
    re.DOTALL,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass
class Fragment:
    """A run of text with one weight; `text` None is a BREAK."""

    text: str | None
    weight: float = 1.0


@dataclass
class Chunk:
    """At most 75 token ids and their weights."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Encoder:
    """One text encoder with its tokenizer.

    `penultimate` is SDXL's way: the hidden state before the last, without the final norm. `vectors` maps the token of a
    textual inversion to the ids of its rows in the (extended) embedding table.
    """

    tokenizer: Any
    model: Any
    penultimate: bool
    vectors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """The ids of all rows of textual inversions."""
        return frozenset(number for ids in self.vectors.values() for number in ids)

    @cached_property
    def comma(self) -> int | None:
        """The id of a comma; None where the tokenizer has no token for it."""
        ids = _token_ids(self, ",")
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None


@dataclass(frozen=True)
class EncodedText:
    """One text: per encoder the chunks' embeddings, each [1, 77, width]; `pooled` [1, width] of the last encoder."""

    chunks: tuple[tuple[torch.Tensor, ...], ...]
    pooled: torch.Tensor | None


def parse(prompt: str) -> list[Fragment]:
    """The prompt as fragments of equal weight. Brackets left open reach to the end."""
    fragments: list[Fragment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, weight: float) -> None:
        for fragment in fragments[start:]:
            fragment.weight *= weight

    for found in _SYNTAX.finditer(prompt):
        kind, piece = found.lastgroup, found.group()
        if kind == "open":
            opened[piece].append(len(fragments))
        elif kind == "weight" and opened["("]:
            weigh(opened["("].pop(), float(found["weight"]))
        elif kind == "close" and piece == ")" and opened["("]:
            weigh(opened["("].pop(), ROUND)
        elif kind == "close" and piece == "]" and opened["["]:
            weigh(opened["["].pop(), SQUARE)
        elif kind == "escaped":
            fragments.append(Fragment(found["escaped"]))
        else:
            for number, part in enumerate(_BREAK.split(piece)):
                if number:
                    fragments.append(Fragment(None))
                fragments.append(Fragment(part))
    for start in opened["("]:
        weigh(start, ROUND)
    for start in opened["["]:
        weigh(start, SQUARE)
    return _joined(fragments)


def _joined(fragments: list[Fragment]) -> list[Fragment]:
    answer: list[Fragment] = []
    for fragment in fragments:
        if not math.isfinite(fragment.weight) or abs(fragment.weight) > LARGEST_WEIGHT:
            raise InvalidRequest(f"A weight in the prompt is beyond {LARGEST_WEIGHT:g}.", field="prompt")
        if answer and None not in (answer[-1].text, fragment.text) and answer[-1].weight == fragment.weight:
            answer[-1].text += fragment.text
        else:
            answer.append(Fragment(fragment.text, fragment.weight))
    return answer or [Fragment("")]


def split_into_chunks(encoder: Encoder, fragments: Sequence[Fragment]) -> list[Chunk]:
    """The fragments' tokens in chunks of 75; the vectors of one textual inversion stay together."""
    done: list[Chunk] = []
    chunk, last_comma = Chunk(), -1
    for fragment in fragments:
        if fragment.text is None:
            done.append(chunk)
            chunk, last_comma = Chunk(), -1
            continue
        for ids in _token_groups(encoder, fragment.text):
            if ids == (encoder.comma,):
                last_comma = len(chunk.ids)
            elif len(chunk.ids) == CHUNK and last_comma != -1 and CHUNK - last_comma <= COMMA_BACKTRACK:
                cut = last_comma + 1
                done.append(Chunk(chunk.ids[:cut], chunk.weights[:cut]))
                chunk, last_comma = Chunk(chunk.ids[cut:], chunk.weights[cut:]), -1
            if len(chunk.ids) + len(ids) > CHUNK:
                done.append(chunk)
                chunk, last_comma = Chunk(), -1
            chunk.ids.extend(ids)
            chunk.weights.extend([fragment.weight] * len(ids))
    return [*done, chunk] if chunk.ids or not done else done


def _token_groups(encoder: Encoder, text: str) -> list[tuple[int, ...]]:
    """The text's tokens, one by one, except that a textual inversion is one group."""
    if not encoder.vectors:
        return [(number,) for number in _token_ids(encoder, text)]
    by_token = {token.lower(): ids for token, ids in encoder.vectors.items()}
    longest_first = sorted(by_token, key=len, reverse=True)
    pattern = "|".join(rf"{_edge(token[0], '<!')}{re.escape(token)}{_edge(token[-1], '!')}" for token in longest_first)
    groups: list[tuple[int, ...]] = []
    for piece in re.split(f"({pattern})", text, flags=re.IGNORECASE):
        ids = by_token.get(piece.lower())
        if ids is not None:
            groups.append(ids)
        elif piece.strip():
            groups.extend((number,) for number in _token_ids(encoder, piece))
    return groups


def _edge(letter: str, side: str) -> str:
    """A token that begins or ends with a letter must not continue a word."""
    return rf"(?{side}\w)" if letter.isalnum() else ""


def _token_ids(encoder: Encoder, text: str) -> list[int]:
    return encoder.tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def encode_text(encoders: Sequence[Encoder], text: str, clip_skip: int | None = None) -> EncodedText:
    """The text through every encoder."""
    fragments = parse(text)
    encoded, pooled = [], None
    for encoder in encoders:
        answers = [_encode_chunk(encoder, chunk, clip_skip) for chunk in split_into_chunks(encoder, fragments)]
        encoded.append(tuple(embedding for embedding, _ in answers))
        pooled = answers[0][1] if answers[0][1] is not None else pooled
    return EncodedText(tuple(encoded), pooled)


def _encode_chunk(encoder: Encoder, chunk: Chunk, clip_skip: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    tokenizer, model = encoder.tokenizer, encoder.model
    filling = CHUNK - len(chunk.ids)
    ids = [tokenizer.bos_token_id, *chunk.ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * filling]
    tensor = torch.tensor([ids], device=working_device(model))
    with torch.no_grad():
        if clip_skip is None and not encoder.penultimate:
            output = model(tensor)
            embedding = output[0]
        else:
            output = model(tensor, output_hidden_states=True)
            embedding = _hidden_state(encoder, output.hidden_states, clip_skip or 0)
        pooled = output[0] if output[0].ndim == 2 else None
        if pooled is not None and not encoder.added_ids.isdisjoint(chunk.ids):
            # Published configs make CLIP pool at the largest id, which a textual inversion's rows exceed.
            pooled = model.text_projection(output.last_hidden_state[:, 1 + len(chunk.ids)])
        if any(weight != 1.0 for weight in chunk.weights):
            embedding = _weigh(embedding, [1.0, *chunk.weights, *[1.0] * (filling + 1)])
    return embedding, pooled


def _hidden_state(encoder: Encoder, states: Sequence[torch.Tensor], clip_skip: int) -> torch.Tensor:
    back = clip_skip + (2 if encoder.penultimate else 1)
    if back > len(states):
        most = len(states) - (2 if encoder.penultimate else 1)
        raise InvalidRequest(f"clip_skip is {clip_skip}; this model allows at most {most}.", field="clip_skip")
    if encoder.penultimate:
        return states[-back]
    # CLIPTextModel is flat in new versions of transformers and wraps a `text_model` in older ones.
    inner = getattr(encoder.model, "text_model", encoder.model)
    return inner.final_layer_norm(states[-back])


def _weigh(embedding: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    exact = embedding.float()
    weighted = exact * torch.tensor(weights, device=exact.device)[None, :, None]
    weighted = weighted * (exact.mean() / weighted.mean())
    if not bool(torch.isfinite(weighted).all()):
        raise InvalidRequest("The weights in the prompt cancel each other out.", field="prompt")
    return weighted.to(embedding.dtype)


class PromptEncoder:
    """Encodes prompts with one set of encoders and remembers the last few texts."""

    def __init__(self, encoders: Sequence[Encoder], *, zero_empty: bool, remembered: int = 16) -> None:
        self.encoders = tuple(encoders)
        self._zero_empty = zero_empty
        self._remembered = remembered
        self._texts: dict[tuple[str, int | None], EncodedText] = {}

    def arguments(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str] | None,
        *,
        guided: bool,
        clip_skip: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """The embeddings as the stock pipelines' arguments, one row for each prompt.

        As in diffusers, clip skip acts on the prompt alone, and no negative prompt at all (None) means zeros on models
        that were trained so. Without guidance nothing is computed for it.
        """
        texts = [self._encode(text, clip_skip) for text in prompts]
        zero = negatives is None and self._zero_empty
        others = [self._encode(text, None) for text in negatives or [""] * len(texts)] if guided and not zero else []
        count = max(len(chunks) for text in [*texts, *others] for chunks in text.chunks)
        answer = {"prompt_embeds": self._rows(texts, count, clip_skip)}
        if texts[0].pooled is not None:
            answer["pooled_prompt_embeds"] = torch.cat([text.pooled for text in texts])
        if not guided:
            return answer
        if zero:
            return answer | {"negative_" + name: torch.zeros_like(tensor) for name, tensor in answer.items()}
        answer["negative_prompt_embeds"] = self._rows(others, count, None)
        if others[0].pooled is not None:
            answer["negative_pooled_prompt_embeds"] = torch.cat([text.pooled for text in others])
        return answer

    def _rows(self, texts: Sequence[EncodedText], count: int, clip_skip: int | None) -> torch.Tensor:
        """[texts, 77 * count, width]: shorter texts are filled with empty chunks, encoders stand side by side."""
        rows = []
        for text in texts:
            sides = []
            for number, chunks in enumerate(text.chunks):
                missing = count - len(chunks)
                empty = self._encode("", clip_skip).chunks[number] if missing else ()
                sides.append(torch.cat([*chunks, *empty * missing], dim=1))
            rows.append(torch.cat(sides, dim=-1))
        return torch.cat(rows)

    def _encode(self, text: str, clip_skip: int | None) -> EncodedText:
        key = (text, clip_skip)
        known = self._texts.pop(key, None)
        if known is None:
            known = encode_text(self.encoders, text, clip_skip)
        self._texts[key] = known
        while len(self._texts) > self._remembered:
            self._texts.pop(next(iter(self._texts)))
        return known
