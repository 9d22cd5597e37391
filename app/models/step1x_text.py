"""Step1X-Edit's text: what is tokenised of an instruction and how it is cut at quotes, and where each token stands.

The prefixes before an instruction are constants of the checkpoints: so many tokens of theirs are dropped again, and
the network was trained behind them. They are data, with their source and licence, in `layouts/step1x/prefixes.json`.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.models.single_files import LAYOUTS

SYSTEM = "You are a helpful assistant."
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
IMAGE_PAD, VISION_END = "<|image_pad|>", "<|vision_end|>"
FIRST_QUOTE = 156
"""v1.0 and v1.1 heed quotes from this letter of the whole text on: before it stands what quotes a phrase itself."""
CELL = 28
"""Pixels of a side of what is one vision token."""
STRAIGHT = str.maketrans({"“": '"', "”": '"', "'": '"'})
CLOSING = {'"': '"', "“": "”"}


@dataclass(frozen=True)
class Version:
    """What differs between the published networks and not in the shapes of their weights.

    `dropped` tokens stand before the instruction and are left out, of the rest at most `max_tokens` count; `pads` fills
    up to them. `pixels` are the least and the most that the vision-language model sees. `normalises_above` is the time,
    from 0 to 1, above which guidance is divided by a power of its length; None: never.
    """

    name: str
    prefix: str
    dropped: int
    max_tokens: int
    pads: bool
    pixels: tuple[int, int]
    normalises_above: float | None
    reference_axis: int
    reference_shift: int


_FEW = (256 * CELL * CELL, 324 * CELL * CELL)
V1_0 = Version("1.0", "v1", 217, 640, True, _FEW, None, 0, 0)
V1_1 = Version("1.1", "v1", 217, 640, True, _FEW, 0.93, 1, 1)
V1_2 = Version("1.2", "v12", 90, 2048, False, (256 * CELL * CELL, 400 * CELL * CELL), 0.0, 1, 0)
"""v1.2 compares times up to 1000 with 0.93, so that every one counts as above."""


@functools.cache
def prefix_of(version: Version) -> str:
    """What stands before every instruction."""
    return json.loads((LAYOUTS / "step1x" / "prefixes.json").read_text("utf-8"))[version.prefix]["text"]


def chat(user: str, system: str = SYSTEM) -> str:
    """The vision-language model's form of a talk whose answer is to come."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def whole_text(version: Version, instruction: str) -> str:
    """The text that is tokenised: prefix, picture, instruction; v1.2 has the picture last."""
    if version is V1_2:
        return chat(f"{prefix_of(version)} {instruction}Picture 1: {IMAGE}")
    return chat(f"{prefix_of(version)}Picture 1: {IMAGE}{instruction}")


def cut_at_quotes(text: str, first: int = FIRST_QUOTE) -> list[str]:
    """v1.0 and v1.1: every letter in quotes is a piece by itself, in Chinese quotes; all quotes become straight ones.

    An apostrophe is taken for a quote as well, and what is not closed is quoted to the end.
    """
    text = text.translate(STRAIGHT)
    pieces, start, quoted = [], 0, False
    for at, letter in enumerate(text):
        if letter == '"' and at >= first:
            if not quoted:
                pieces.append(text[start : at + 1])
            start, quoted = at, not quoted
        elif quoted:
            pieces.append(f"“{letter}”")
    return pieces if quoted else pieces + [text[start:]] * bool(text[start:])


def cut_and_flag(text: str, prefix_length: int) -> tuple[list[str], list[bool]]:
    """v1.2: the letters in straight and in Chinese quotes are pieces by themselves, and flagged.

    Quotes within the first `prefix_length` letters are none; what is not closed is quoted not at all.
    """
    pieces: list[str] = []
    flags: list[bool] = []
    start, opened, closing = 0, 0, None
    for at, letter in enumerate(text):
        if at < prefix_length:
            continue
        if closing is None and letter in CLOSING:
            # A Chinese quote with nothing before it is left out: the published network never saw it.
            if letter == '"' or at > start:
                pieces.append(text[start : at + 1])
                flags.append(False)
            opened, closing = at + 1, CLOSING[letter]
        elif letter == closing:
            pieces += text[opened:at]
            flags += [True] * (at - opened)
            start, closing = at, None
    rest = text[opened:] if closing is not None else text[start:]
    if closing is not None and pieces and not flags[-1]:
        pieces[-1] += rest
    elif rest:
        pieces.append(rest)
        flags.append(False)
    return pieces, flags


def cut_at_tokens(text: str, prefix_length: int, special_tokens: Sequence[str]) -> tuple[list[str], list[bool]]:
    """`cut_and_flag` between special tokens, each of which is a piece by itself."""
    names = sorted(set(special_tokens), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    pieces: list[str] = []
    flags: list[bool] = []
    at = 0
    for part in parts:
        found = ([part], [False]) if part in names else cut_and_flag(part, max(0, prefix_length - at))
        if part:
            pieces += found[0]
            flags += found[1]
        at += len(part)
    return pieces, flags


def tokens_of(version: Version, instruction: str, tokenizer: Any, vision_tokens: int) -> tuple[list[int], list[bool]]:
    """The ids of the whole text, its picture taking `vision_tokens` of them, and which are letters in quotes."""
    text = whole_text(version, instruction)

    def encode(piece: str) -> list[int]:
        return tokenizer.encode(piece, add_special_tokens=False)

    pad, end = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_PAD, VISION_END))
    if version is V1_2:
        pieces, flags = cut_at_tokens(text, len(prefix_of(version)), list(tokenizer.get_added_vocab()))
        found = [(id, flag) for piece, flag in zip(pieces, flags, strict=True) for id in encode(piece)]
    else:
        opening, closing = encode("“"), encode("”")
        ids: list[int] = []
        for piece in cut_at_quotes(text):
            own = encode(piece)
            if own[: len(opening)] == opening and own[-len(closing) :] == closing:
                own = own[len(opening) : -len(closing)]
            ids += own
        # Up to the picture the text stands uncut.
        whole = encode(text)
        found = [(id, False) for id in whole[: whole.index(end)] + ids[ids.index(end) :]]
    at = next(place for place, (id, _) in enumerate(found) if id == pad)
    found[at : at + 1] = [(pad, False)] * vision_tokens
    return [id for id, _ in found], [flag for _, flag in found]


def grid_ids(height: int, width: int, axis: int = 0, shift: int = 0) -> torch.Tensor:
    """Where the places of a grid stand, row by row: [height * width, 3] of `axis`, y and x, the last two shifted."""
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
    )
    return torch.stack([torch.full_like(rows, axis), rows + shift, columns + shift], dim=-1).reshape(-1, 3)


def image_ids(version: Version, height: int, width: int) -> torch.Tensor:
    """The target's places, then the reference's."""
    reference = grid_ids(height, width, version.reference_axis, version.reference_shift)
    return torch.cat([grid_ids(height, width), reference])


def vision_affine(size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """From pixels (x, y, 1) of a picture of this (width, height) to vision tokens of this (height, width) grid."""
    width, height = grid[1] * CELL, grid[0] * CELL
    resized = torch.diag(torch.tensor([(width - 1) / (size[0] - 1), (height - 1) / (size[1] - 1), 1.0]))
    middle = -(CELL - 1) / 2 / CELL
    cells = torch.tensor([[1 / CELL, 0, middle], [0, 1 / CELL, middle], [0, 0, 1]])
    return cells @ resized


def vision_places(affine: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Where the vision tokens stand among the latents' places: [height * width, 2] of y and x."""
    latents = torch.tensor([[1 / 16, 0, -11 / 16], [0, 1 / 16, -11 / 16], [0, 0, 1]])
    to_latents = latents @ torch.linalg.inv(affine)
    places = grid_ids(*grid)[:, [2, 1]]
    return (places @ to_latents[:2, :2].T + to_latents[:2, 2])[:, [1, 0]]


def text_ids(
    positions: torch.Tensor, is_vision: torch.Tensor, size: tuple[int, int], grid: tuple[int, int]
) -> torch.Tensor:
    """v1.2: [tokens, 3] from the language model's own `positions` [tokens], which end before time 0.

    Vision tokens, marked in `is_vision` [tokens], stand where they lie in the picture of this (width, height).
    """
    ids = torch.zeros(len(positions), 3)
    ids[:, 0] = positions - positions.max() - 1
    ids[is_vision, 1:] = vision_places(vision_affine(size, grid), grid)[: int(is_vision.sum())]
    return ids
