"""Faces cut out of many pictures at once as the face models cut them out of one, and pictures made worse at random."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.nn import functional

ARCFACE = torch.tensor(  # where the five points lie in a crop of 112 (insightface's template)
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
FFHQ = torch.tensor(  # the same in a crop of 512 (facexlib's template)
    [(192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935), (201.26117, 371.41043),
     (313.08905, 371.15118)]
)  # fmt: skip
LUMINANCE = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
BEHIND_A_FACE = ("background", "clothes", "hat", "left_ear", "right_ear", "earring", "neck", "necklace")


def to_unit(pictures: np.ndarray) -> torch.Tensor:
    """[n, height, width, 3] bytes to [n, 3, height, width] of 0 to 1."""
    return torch.tensor(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255


def similarity(points: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """[n, 2, 3]: turn, scale and shift that bring points [n, 5, 2] nearest to the template, by least squares."""
    mean, aim = points.mean(1, keepdim=True), template.mean(0)
    x, y = (points - mean).unbind(-1)
    u, v = (template - aim).unbind(-1)
    size = (x * x + y * y).sum(1)
    a, b = (x * u + y * v).sum(1) / size, (x * v - y * u).sum(1) / size
    turn = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    return torch.cat([turn, (aim - (turn @ mean.transpose(1, 2)).squeeze(-1))[..., None]], -1)


def warp(pictures: torch.Tensor, matrices: torch.Tensor, size: int, fill: float = 0.0) -> torch.Tensor:
    """[n, c, size, size]: what the matrices [n, 2, 3] (pixels of the picture to pixels of the crop) show; bilinear."""
    height, width = pictures.shape[-2:]
    turn, shift = matrices[..., :2], matrices[..., 2:]
    back = torch.linalg.inv(turn)
    back = torch.cat([back, -back @ shift], -1)
    places = torch.arange(size, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).view(1, -1, 2)
    source = grid @ back[..., :2].transpose(1, 2) + back[..., 2].unsqueeze(1)
    source = source.view(-1, size, size, 2) * 2 / torch.tensor([width - 1, height - 1]) - 1
    return functional.grid_sample(pictures - fill, source, "bilinear", "zeros", align_corners=True) + fill


def move(points: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Points [n, k, 2] of the pictures, in the crops."""
    return points @ matrices[..., :2].transpose(1, 2) + matrices[..., 2].unsqueeze(1)


def shake(matrices: torch.Tensor, size: int, generator: torch.Generator, much: float = 1.0) -> torch.Tensor:
    """The same crops with a small turn, scale and shift of their own: a detector is never exact."""
    n = len(matrices)
    angle = 0.06 * much * torch.randn(n, generator=generator)
    scale = 1 + 0.04 * much * torch.randn(n, generator=generator)
    a, b = scale * angle.cos(), scale * angle.sin()
    turn = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], 1)
    middle = torch.full((n, 2, 1), size / 2)
    shift = 0.015 * size * much * torch.randn(n, 2, 1, generator=generator)
    moved = turn @ (matrices - torch.cat([torch.zeros(n, 2, 2), middle], -1))
    return moved + torch.cat([torch.zeros(n, 2, 2), middle + shift], -1)


def worsen(pictures: torch.Tensor, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """Blur or sharpen the whole batch a little, change its light, add noise; [n, 3, height, width] of 0 to 1."""
    if rng.random() < 0.6:
        soft = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
        pictures = torch.lerp(pictures, soft, rng.uniform(-0.5, 1.0))
    light = 1 + 0.08 * torch.randn(len(pictures), 3, 1, 1, generator=generator)
    pictures = pictures * light + 0.03 * torch.randn(len(pictures), 1, 1, 1, generator=generator)
    if rng.random() < 0.5:
        pictures = pictures + rng.uniform(0, 0.04) * torch.randn(pictures.shape, generator=generator)
    return pictures.clamp(0, 1)


def grey_face(pictures: torch.Tensor, is_behind: torch.Tensor) -> torch.Tensor:
    """PuLID's view of a face: grey, white where there is no face; `is_behind` [n, 1, height, width] of bool."""
    grey = (pictures * LUMINANCE).sum(1, keepdim=True)
    return torch.where(is_behind, 1.0, grey).expand(-1, 3, -1, -1)
