"""A small network that names the thing in a box, trained on the renderer's pictures; the check's second opinion."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from app.pocket import measure, spec, world
from app.pocket.checkpoints import rng_of
from app.pocket.things import THINGS

FILE_NAME = "classifier.safetensors"
NAMES = tuple(THINGS)
BATCH = 64


class ThingClassifier(nn.Module):
    """Silhouette and brightness of a box, 40x40, to one of the things."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 25, 96), nn.ReLU(), nn.Linear(96, len(NAMES)),
        )  # fmt: skip

    def forward(self, boxes: torch.Tensor) -> torch.Tensor:
        return self.layers(boxes)


def features(found: measure.Found) -> np.ndarray:
    """[2, 40, 40]: the silhouette, and how each of its pixels differs from the thing's own mean brightness."""
    outline = measure.silhouette(found)
    brightness = found.pixels.astype(np.float32).mean(-1)
    contrast = np.where(found.mask, brightness - brightness[found.mask].mean(), 0) / 255
    height, width = found.mask.shape
    scale = measure.SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    inner = np.zeros_like(outline)
    left, top = (measure.SIDE - size[0]) // 2, (measure.SIDE - size[1]) // 2
    resized = Image.fromarray(contrast.astype(np.float32), "F").resize(size, Image.Resampling.BILINEAR)
    inner[top : top + size[1], left : left + size[0]] = np.asarray(resized)
    return np.stack([outline, inner])


def batch_of(seed: object, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of the renderer's things, some of them blurred, and their names' numbers."""
    rng = rng_of(seed, "classifier", number)
    boxes, names = [], []
    while len(boxes) < BATCH:
        scene = world.random_scene(rng)
        if scene.person is not None:
            continue
        picture = world.draw(scene)
        if rng.random() < 0.6:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.6)))
        for thing, region in zip(scene.things, measure.regions_of(scene), strict=True):
            found = measure.find(picture, region)
            if found is not None:
                boxes.append(_jitter(features(found), rng))
                names.append(NAMES.index(thing.name))
    return torch.from_numpy(np.stack(boxes)), torch.tensor(names)


def _jitter(box: np.ndarray, rng: random.Random) -> np.ndarray:
    return np.roll(box, (rng.randint(-2, 2), rng.randint(-2, 2)), axis=(1, 2))


def train(steps: int = 500, seed: int = 0) -> tuple[ThingClassifier, float]:
    """The trained classifier and its accuracy on pictures it has not seen."""
    torch.manual_seed(seed)
    network = ThingClassifier()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for number in range(steps):
        boxes, names = batch_of(seed, number)
        functional.cross_entropy(network(boxes), names).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval(), held_out_accuracy(network)


@torch.no_grad()
def held_out_accuracy(network: ThingClassifier, batches: int = 16) -> float:
    """The share of right names over pictures of another seed."""
    right = total = 0
    for number in range(batches):
        boxes, names = batch_of("held-out", number)
        right += int((network(boxes).argmax(-1) == names).sum())
        total += len(names)
    return right / total


def load(folder: Path = spec.WEIGHTS) -> ThingClassifier:
    """The classifier that lies beside the weights."""
    network = ThingClassifier()
    network.load_state_dict(load_file(folder / FILE_NAME))
    return network.eval()


@torch.no_grad()
def name_of(network: ThingClassifier, found: measure.Found) -> str:
    """The thing that the classifier sees in a box."""
    return NAMES[int(network(torch.from_numpy(features(found))[None]).argmax())]


def save(network: ThingClassifier, folder: Path) -> None:
    save_file(network.state_dict(), folder / FILE_NAME)
