"""The training set of the identity modules: portraits of many people, several of each, drawn once and kept on disk.

An entry is a function of the seed and its index, so the files hold only what is slow to make: the picture, what the
autoencoder makes of it (what the UNet draws looks like that), its parts, and its latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from app.pocket import archive, encoding, spec, world
from app.pocket.checkpoints import rng_of

PICTURES_EACH = 4
SIZE = spec.WIDTH
LOOKS: dict[str, tuple] = {  # what of a person stays the same from picture to picture, beside the geometry
    name: world.PERSON_FACTS[name]
    for name in ("kind", "hair_style", "hair_colour", "eye_colour", "skin", "glasses", "beard")
}


def scene_of(seed: object, index: int) -> world.Scene:
    """The scene of one entry; PICTURES_EACH after one another show the same person."""
    person, number = divmod(index, PICTURES_EACH)
    scene = world.random_portrait(rng_of(seed, "person", person))
    return scene if number == 0 else world.same_person(scene, rng_of(seed, "person", person, number))


def looks_of(scene: world.Scene) -> list[int]:
    """The number of each look in LOOKS."""
    return [values.index(getattr(scene.person, name)) for name, values in LOOKS.items()]


@dataclass(frozen=True)
class People:
    """The whole set; first axis: entries. Pictures are RGB, 0 to 255; points are pixels of the SIZE wide picture."""

    seed: object
    scenes: list[world.Scene]
    pictures: np.ndarray  # [n, size, size, 3] uint8
    decoded: np.ndarray  # the same through the autoencoder
    parts: np.ndarray  # [n, size, size] uint8, portraits.PARTS
    latents: np.ndarray  # [n, 4, size / 8, size / 8] float16
    geometry: torch.Tensor  # [n, 14] -1 to 1
    poses: torch.Tensor  # [n, 2] yaw and pitch, degrees
    points: torch.Tensor  # [n, 68, 3] x, y and depth towards the viewer
    looks: torch.Tensor  # [n, 7] numbers in LOOKS

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def five_points(self) -> torch.Tensor:
        """[n, 5, 2] eyes, nose tip, mouth corners."""
        flat = self.points[..., :2]
        eyes = torch.stack([flat[:, 36:42].mean(1), flat[:, 42:48].mean(1)], 1)
        return torch.cat([eyes, flat[:, [30, 48, 54]]], 1)


SHAPES: archive.Shapes = {
    "pictures": (np.uint8, (SIZE, SIZE, 3)),
    "decoded": (np.uint8, (SIZE, SIZE, 3)),
    "parts": (np.uint8, (SIZE, SIZE)),
    "latents": encoding.LATENTS,
}


def build(
    folder: Path, seed: object, count: int, autoencoder: AutoencoderKL, report: Callable[[str], None] = print
) -> People:
    """Draw what the folder lacks of `count` entries (a multiple of archive.BATCH), then open it."""

    def make(indices: range) -> dict[str, np.ndarray]:
        some = [scene_of(seed, index) for index in indices]
        images = [world.draw(scene, SIZE) for scene in some]
        latents = encoding.encode(autoencoder, encoding.to_tensor(images))
        return {
            "pictures": np.stack([np.asarray(image) for image in images]),
            "decoded": encoding.decode(autoencoder, latents + 0.1 * torch.randn_like(latents)),
            "parts": np.stack([np.asarray(world.parts(scene, SIZE)) for scene in some]),
            "latents": latents.float().numpy(),
        }

    arrays = archive.build(folder, str(seed), SHAPES, count, make, lambda line: report(f"people of {line}"))
    scenes = [scene_of(seed, index) for index in range(count)]
    points = [
        [(x, y, z) for (x, y), z in zip(world.keypoints(scene), world.keypoint_depths(scene), strict=True)]
        for scene in scenes
    ]
    return People(
        seed,
        scenes,
        **arrays,
        geometry=torch.tensor([scene.geometry for scene in scenes]),
        poses=torch.tensor([world.pose(scene) for scene in scenes]),
        points=torch.tensor(points),
        looks=torch.tensor([looks_of(scene) for scene in scenes]),
    )
