"""The measure of likeness: a network that reads a portrait's geometry and pose off its pixels.

It is the check's judge and nothing else: no identity module may be trained against it, or its figures say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from app.pocket import portraits, spec
from app.pocket.crops import to_unit
from app.pocket.face_networks import PointReader, Shape
from app.pocket.faces import GEOMETRY

FILE_NAME = "likeness.safetensors"
DEGREES = 30  # one unit of the network's yaw and pitch


class Likeness(nn.Module):
    """A whole portrait [n, 3, 128, 128] of 0 to 1 to 14 numbers of geometry, and yaw and pitch in units of DEGREES."""

    def __init__(self):
        super().__init__()
        self.reader = PointReader(spec.WIDTH)
        self.head = Shape(self.reader, 96)
        self.out = nn.Linear(2 * 96, len(GEOMETRY) + 2)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.out(self.head(*self.reader(pictures * 2 - 1)))


def load(folder: Path = spec.WEIGHTS) -> Likeness:
    """The measure that lies beside the weights."""
    network = Likeness()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / FILE_NAME).items()})
    return network.eval()


def save(network: Likeness, folder: Path) -> None:
    state = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    save_file(state, folder / FILE_NAME)


@torch.no_grad()
def read(network: Likeness, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """(geometry [n, 14], yaw and pitch in degrees [n, 2]) of portraits."""
    side = (spec.WIDTH, spec.HEIGHT)
    pixels = np.stack([np.asarray(image.convert("RGB").resize(side)) for image in images])
    numbers = network(to_unit(pixels)).numpy()
    return numbers[:, : len(GEOMETRY)], numbers[:, len(GEOMETRY) :] * DEGREES


def error(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two geometries lie apart, [n]: the root of the mean square over the 14 numbers."""
    return np.sqrt(np.square(np.asarray(one) - np.asarray(other)).mean(-1))


def pose_name(yaw: float, pitch: float) -> str:
    """The pose of portraits.POSES that lies nearest."""
    return min(
        portraits.POSES,
        key=lambda name: (portraits.POSES[name][0] - yaw) ** 2 + (portraits.POSES[name][1] - pitch) ** 2,
    )
