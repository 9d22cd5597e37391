"""Train what looks at faces: the measure of likeness, the face pack's networks, the image encoder.

Each is a stage of its own, with the people's pictures as its only source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from app.pocket import crops, face_networks, faces, likeness, people, portraits
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.people import LOOKS, People
from app.pocket.shards import mixed_precision

BATCH = 64
TEMPERATURE = 0.1
POINTS_WEIGHT = 10.0
HEAD_RATE, HEAD_BATCH, HEAD_NOISE = 2e-3, 128, 0.02
FILL = torch.tensor([132, 133, 135]).view(1, 3, 1, 1) / 255  # what facexlib puts around an aligned face (RGB)


def pictures_of(some: People, indices: list[int], rng) -> torch.Tensor:
    """The pictures of these entries, each half as drawn and half as the autoencoder gives them back."""
    return crops.to_unit(
        np.stack([(some.decoded if rng.random() < 0.5 else some.pictures)[index] for index in indices])
    )


def pick(some: People, number: int, name: str, pairs: bool = False):
    """(indices, random source, generator) of one batch; `pairs`: each person twice, one behind the other."""
    rng, generator = rng_of(some.seed, name, number), generator_of(some.seed, name, number)
    if not pairs:
        return [rng.randrange(len(some)) for _ in range(BATCH)], rng, generator
    indices: list[int] = []
    for person in rng.sample(range(len(some) // people.PICTURES_EACH), BATCH // 2):
        indices += [person * people.PICTURES_EACH + n for n in rng.sample(range(people.PICTURES_EACH), 2)]
    return indices, rng, generator


def truth_of(some: People, indices: list[int]) -> torch.Tensor:
    """[n, 16]: geometry, and the pose in units of likeness.DEGREES."""
    return torch.cat([some.geometry[indices], some.poses[indices] / likeness.DEGREES], -1)


def unit_points(some: People, indices: list[int], matrices: torch.Tensor, side: int) -> torch.Tensor:
    """[n, 68, 2] of -1 to 1: where the face's points lie in the crops."""
    return crops.move(some.points[indices][..., :2], matrices) * 2 / side - 1


class LikenessTask:
    """A whole portrait, moved a little, to its geometry and pose."""

    name, rate = "likeness", 4e-3

    def __init__(self):
        self.network = likeness.Likeness()
        self.heads = nn.Module()

    def crop(self, some: People, indices, pictures, generator):
        still = torch.eye(2, 3).expand(len(indices), 2, 3)
        return crops.warp(pictures, crops.shake(still, people.SIZE, generator, 0.5), people.SIZE)

    def head_loss(self, told: torch.Tensor, some: People, indices: list[int]) -> torch.Tensor:
        return functional.mse_loss(self.network.out(told), truth_of(some, indices))

    def batch(self, some: People, number: int):
        indices, rng, generator = pick(some, number, self.name)
        pictures = pictures_of(some, indices, rng)
        matrices = crops.shake(torch.eye(2, 3).expand(len(indices), 2, 3), people.SIZE, generator, 0.5)
        pictures, points = (
            crops.warp(pictures, matrices, people.SIZE),
            unit_points(some, indices, matrices, people.SIZE),
        )
        return crops.worsen(pictures, rng, generator), points, truth_of(some, indices)

    def loss(self, pictures: torch.Tensor, points: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        reader = self.network.reader
        maps, channels = reader.look(pictures * 2 - 1)
        numbers = self.network.out(self.network.head(face_networks.means_of(maps, reader.places), channels))
        placed = face_networks.misplaced(maps, points, reader.places)
        return functional.mse_loss(numbers.float(), truth) + placed

    @torch.no_grad()
    def judge(self, some: People) -> str:
        lines = []
        for name, source in (("drawn", some.pictures), ("through the autoencoder", some.decoded)):
            read = torch.cat([self.network(crops.to_unit(source[i : i + 64])) for i in range(0, len(some), 64)])
            truth = truth_of(some, list(range(len(some))))
            left = ((read - truth) ** 2).mean(0) / truth.var(0)
            names = [*faces.GEOMETRY, "yaw", "pitch"]
            each = ", ".join(f"{n} {1 - v:.2f}" for n, v in zip(names, left, strict=True))
            lines.append(
                f"R2 {name}: {each}; mean {1 - left[:14].mean():.3f}, "
                f"rms {(read - truth)[:, :14].square().mean().sqrt():.3f}"
            )
        return "\n".join(lines)


class Heads(nn.Module):
    """What an identity vector must tell: geometry and looks; left behind after training."""

    def __init__(self, width: int):
        super().__init__()
        self.geometry = nn.Linear(width, 14)
        self.looks = nn.ModuleList(nn.Linear(width, len(values)) for values in LOOKS.values())

    def loss(self, vectors: torch.Tensor, geometry: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
        named = [functional.cross_entropy(head(vectors), looks[:, i]) for i, head in enumerate(self.looks)]
        return functional.mse_loss(self.geometry(vectors), geometry) * 3 + sum(named) / len(named)

    def judge(self, vectors: torch.Tensor, some: People) -> str:
        left = ((self.geometry(vectors) - some.geometry) ** 2).mean(0) / some.geometry.var(0)
        right = [
            f"{name} {(head(vectors).argmax(-1) == some.looks[:, i]).float().mean():.0%}"
            for i, (name, head) in enumerate(zip(LOOKS, self.looks, strict=True))
        ]
        each = " ".join(f"{1 - v:.2f}" for v in left)
        return f"geometry R2 {1 - left.mean():.3f} ({each}); looks {', '.join(right)}"


def same_person_share(vectors: torch.Tensor) -> float:
    """AUC: how often two pictures of one person lie nearer than two of different people."""
    units = functional.normalize(vectors, dim=-1)
    near = units @ units.T
    group = torch.arange(len(units)) // people.PICTURES_EACH
    same = group[:, None] == group[None]
    other = near[~same]
    own = near[same & ~torch.eye(len(units), dtype=torch.bool)]
    other = other[torch.randperm(len(other), generator=torch.Generator().manual_seed(0))[:20000]].sort().values
    return float(torch.searchsorted(other, own).float().mean() / len(other))


def alike(vectors: torch.Tensor) -> torch.Tensor:
    """Both pictures of a person find each other among the whole batch (InfoNCE)."""
    units = functional.normalize(vectors.float(), dim=-1)
    near = units @ units.T / TEMPERATURE - 1e4 * torch.eye(len(units))
    partner = torch.arange(len(units)) ^ 1
    return functional.cross_entropy(near, partner)


class RecognitionTask:
    """ArcFace's crop to an identity vector that pose, expression and clothes leave alone."""

    name, rate, size = "recognition", 4e-3, 112

    def __init__(self):
        self.network = face_networks.Recognition()
        self.heads = Heads(face_networks.EMBEDDING)

    def head_loss(self, vectors: torch.Tensor, some: People, indices: list[int]) -> torch.Tensor:
        return self.heads.loss(vectors, some.geometry[indices], some.looks[indices]) + 0.1 * alike(vectors)

    def crop(self, some: People, indices, pictures, generator=None):
        return crops.warp(pictures, self.matrices(some, indices, generator), self.size)

    def matrices(self, some: People, indices, generator=None) -> torch.Tensor:
        matrices = crops.similarity(some.five_points[indices], crops.ARCFACE)
        return matrices if generator is None else crops.shake(matrices, self.size, generator, 0.4)

    def batch(self, some: People, number: int):
        indices, rng, generator = pick(some, number, self.name, pairs=True)
        matrices = self.matrices(some, indices, generator)
        pictures = crops.warp(pictures_of(some, indices, rng), matrices, self.size)
        points = unit_points(some, indices, matrices, self.size)
        pictures = crops.worsen(pictures, rng, generator) * 2 - 1
        return pictures, points, some.geometry[indices], some.looks[indices]

    def loss(self, pictures, points, geometry, looks) -> torch.Tensor:
        reader = self.network.reader
        maps, channels = reader.look(pictures)
        vectors = self.network.head(face_networks.means_of(maps, reader.places), channels).float()
        placed = face_networks.misplaced(maps, points, reader.places)
        return self.heads.loss(vectors, geometry, looks) + 0.1 * alike(vectors) + placed

    @torch.no_grad()
    def judge(self, some: People) -> str:
        found = []
        for first in range(0, len(some), BATCH):
            indices = list(range(first, first + BATCH))
            pictures = crops.to_unit(some.decoded[indices])
            found.append(self.network(self.crop(some, indices, pictures) * 2 - 1))
        vectors = torch.cat(found)
        norm = vectors.norm(dim=-1).mean()
        return f"{self.heads.judge(vectors, some)}; AUC {same_person_share(vectors):.4f}, norm {norm:.1f}"


class ImageEncoderTask:
    """PuLID's grey view of an aligned face to a pooled vector that tells geometry, looks, pose and where points lie.

    Points are what teaches it to look closely: numbers of geometry alone say little about where an eye ends.
    """

    name, rate, size = "image-encoder", 1e-3, face_networks.IMAGE_SIZE
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)

    def __init__(self):
        self.network = face_networks.build_image_encoder()
        self.heads = Heads(face_networks.POOLED)
        self.heads.pose = nn.Linear(face_networks.POOLED, 2)
        self.heads.points = nn.Linear(face_networks.POOLED, 2 * 68)
        behind = torch.zeros(len(portraits.PARTS), dtype=torch.bool)
        behind[[portraits.PARTS.index(name) for name in crops.BEHIND_A_FACE]] = True
        self.behind = behind

    def crop(self, some: People, indices, pictures, generator=None):
        return self.cut(some, indices, pictures, self.matrices(some, indices, generator))

    def matrices(self, some: People, indices, generator=None) -> torch.Tensor:
        matrices = crops.similarity(some.five_points[indices], crops.FFHQ * self.size / 512)
        return matrices if generator is None else crops.shake(matrices, self.size, generator, 0.4)

    def cut(self, some: People, indices, pictures, matrices: torch.Tensor) -> torch.Tensor:
        mask = self.behind[torch.from_numpy(some.parts[indices].astype(int))][:, None].float()
        mask = crops.warp(mask, matrices, self.size, 1.0) > 0.5
        return (crops.grey_face(crops.warp(pictures, matrices, self.size), mask) - self.mean) / self.deviation

    def batch(self, some: People, number: int):
        indices, rng, generator = pick(some, number, self.name)
        pictures = crops.worsen(pictures_of(some, indices, rng), rng, generator)
        matrices = self.matrices(some, indices, generator)
        truths = some.geometry[indices], some.looks[indices], some.poses[indices] / likeness.DEGREES
        points = unit_points(some, indices, matrices, self.size)
        return self.cut(some, indices, pictures, matrices), *truths, points

    def loss(self, pictures, geometry, looks, pose, points) -> torch.Tensor:
        vectors = self.network(pictures).float() * 2
        placed = (self.heads.points(vectors).unflatten(-1, (68, 2)) - points).abs().mean()
        turned = functional.mse_loss(self.heads.pose(vectors), pose)
        return self.heads.loss(vectors, geometry, looks) + turned + POINTS_WEIGHT * placed

    @torch.no_grad()
    def judge(self, some: People) -> str:
        found = []
        for first in range(0, len(some), BATCH):
            indices = list(range(first, first + BATCH))
            found.append(self.network(self.crop(some, indices, crops.to_unit(some.decoded[indices]))) * 2)
        vectors = torch.cat(found)
        return f"{self.heads.judge(vectors, some)}; norm {vectors.norm(dim=-1).mean() / 2:.1f}"


def look_at_all(task: Any, some: People) -> tuple[torch.Tensor, torch.Tensor]:
    """What a task's reader sees in every picture, cut out a little askew: ([n, POINTS, 2], [n, channels])."""
    points, channels = [], []
    for first in range(0, len(some), BATCH):
        indices = list(range(first, min(first + BATCH, len(some))))
        generator = generator_of(some.seed, task.name, "look", first)
        with torch.no_grad(), mixed_precision(torch.device("cpu")):
            pictures = task.crop(some, indices, crops.to_unit(some.decoded[indices]), generator)
            found = task.network.reader(pictures * 2 - 1)
        points.append(found[0].float())
        channels.append(found[1].float())
    return torch.cat(points), torch.cat(channels)


def finish(task: Any, some: People, folder: Path, steps: int, report: Callable[[str], None]) -> bool:
    """Train the head alone, on what the reader sees in every picture: a hundred times as quick a step.

    What is seen gets noise: there are too few people to learn where each one's points lie to a hundredth of a pixel.
    """
    own = [module for name, module in task.network.named_children() if name != "reader"]
    modules = [*own, task.heads]
    for module in modules:
        module.train()
    stage = Stage(f"{task.name}-head", folder, modules, HEAD_RATE, steps)
    if stage.number >= steps:
        return True
    points, channels = look_at_all(task, some)
    spread = points.std(0), channels.std(0)

    def step(number: int) -> float:
        rng, generator = (
            rng_of(some.seed, task.name, "head", number),
            generator_of(some.seed, task.name, "head", number),
        )
        indices: list[int] = []
        for person in rng.sample(range(len(some) // people.PICTURES_EACH), min(HEAD_BATCH, len(some) // 2) // 2):
            indices += [person * people.PICTURES_EACH + n for n in rng.sample(range(people.PICTURES_EACH), 2)]
        seen = [
            whole[indices] + HEAD_NOISE * wide * torch.randn(whole[indices].shape, generator=generator)
            for whole, wide in zip((points, channels), spread, strict=True)
        ]
        loss = task.head_loss(task.network.head(*seen), some, indices)
        loss.backward()
        return loss.item()

    complete = stage.run(step, report=report)
    for module in modules:
        module.eval()
    return complete


def train(
    make: Callable[[], Any],
    some: People,
    held_out: People,
    folder: Path,
    steps: int,
    head_steps: int = 900,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
):
    """(the trained task, whether it is complete); it is judged on people it has not seen."""
    torch.manual_seed(rng_of(some.seed, make.name).getrandbits(31))
    task = make()
    modules = [task.network, task.heads]
    for module in modules:
        module.train().to(memory_format=torch.channels_last)  # convolutions this narrow are a fifth quicker so
    stage = Stage(task.name, folder, modules, task.rate, steps)

    def step(number: int) -> float:
        pictures, *truths = task.batch(some, number)
        batch = (pictures.contiguous(memory_format=torch.channels_last), *truths)
        with mixed_precision(torch.device("cpu")):
            loss = task.loss(*batch)
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    task.network.eval()
    if complete and hasattr(task, "head_loss"):
        complete = finish(task, some, folder, head_steps, report)
    for module in modules:
        module.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    report(f"{task.name}: {task.judge(held_out)}")
    return task, complete
