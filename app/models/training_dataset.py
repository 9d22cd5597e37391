"""What a trainer learns from, made once: pictures cut to buckets of their shape, as latents, and texts as embeddings.

Which pictures make the batch of a step, and the noise that is put on them, follow from the seed and the step's number
alone: a run that goes on from a checkpoint meets exactly what an unbroken run meets.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets
from PIL import Image, ImageOps

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Source:
    """What a picture was made from: its latents, the places down and across, and the picture as the language model
    reads it.

    `latents` are packed [1, places, channels], or their distribution [2 * channels, h, w] where the family draws them
    from it whenever it is used.
    """

    latents: torch.Tensor
    cells: tuple[int, int]
    read: Image.Image


@dataclass(frozen=True)
class Sample:
    """One picture: its latents' distribution [2 * channels, h, w] before scaling, its caption, SDXL's six numbers, and
    its source where an editing model learns from pairs.
    """

    moments: torch.Tensor
    caption: str
    time_ids: tuple[int, ...]
    source: Source | None = None

    @property
    def read(self) -> tuple[str, Source | None]:
        """What its embedding is made of."""
        return self.caption, self.source

    @property
    def shape(self) -> tuple[int, ...]:
        """What must agree in a batch."""
        return (*self.moments.shape, *(self.source.cells if self.source else ()))


@dataclass(frozen=True)
class Text:
    """A caption's embedding [1, tokens, width], SDXL's pooled one [1, width], and what else its network asks of it."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)


def buckets(resolution: int, multiple: int) -> list[Size]:
    """(width, height) of the shapes that pictures are cut to, each of about `resolution` squared pixels."""
    return [(width, height) for height, width in generate_aspect_ratio_buckets(resolution, multiple)]


def cut_to_bucket(image: Image.Image, sizes: Sequence[Size]) -> tuple[Image.Image, tuple[int, ...]]:
    """The picture scaled to cover the bucket nearest to its shape and cut around its middle; with SDXL's numbers:
    original height and width, top and left of the cut, target height and width.
    """
    heights_first = [(height, width) for width, height in sizes]
    width, height = sizes[find_nearest_bucket(image.height, image.width, heights_first)]
    scale = max(width / image.width, height / image.height)
    whole = round(image.width * scale), round(image.height * scale)
    left, top = max(0, (whole[0] - width) // 2), max(0, (whole[1] - height) // 2)
    cut = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return cut, (image.height, image.width, top, left, height, width)


def as_pixels(image: Image.Image) -> torch.Tensor:
    """[1, 3, height, width] in -1 to 1."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def moments_of(vae: Any, image: Image.Image) -> torch.Tensor:
    """The distribution of the picture's latents [2 * channels, h, w]: mean and log variance, in float32 on the CPU."""
    with torch.no_grad():
        pixels = as_pixels(image).to(vae.device, vae.dtype)
        return vae.encode(pixels).latent_dist.parameters[0].float().cpu()


class Batches:
    """The order of the pictures: in each epoch every one once, batches of one bucket."""

    def __init__(self, samples: Sequence[Sample], size: int, seed: int) -> None:
        self.samples = list(samples)
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._order: list[list[int]] = []
        self._per_epoch = len(self._arranged(0))

    def batch(self, number: int) -> list[Sample]:
        """The batch of this number, counted from 0 through all epochs."""
        epoch, place = divmod(number, self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._arranged(epoch)
        return [self.samples[index] for index in self._order[place]]

    def _arranged(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self._seed} {epoch}")
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(self.samples):
            by_shape.setdefault(sample.shape, []).append(index)
        found = []
        for indices in by_shape.values():
            chance.shuffle(indices)
            found += [indices[start : start + self._size] for start in range(0, len(indices), self._size)]
        chance.shuffle(found)
        return found
