"""Bring the image encoder closer to what it is shown in the product: it learns on, on the views of `face_views`.

The encoder first learns on views that the renderer's own points and parts cut, shaken by chance. Those of the product
err otherwise, and what a number of geometry is told by may lie just there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from app.models import eva_clip
from app.pocket import crops, face_networks, likeness
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.face_views import FaceViews
from app.pocket.people import People
from app.pocket.shards import mixed_precision
from app.pocket.train_faces import BATCH, ImageEncoderTask

NAME = "image-encoder-views"
RATE, HORIZON, COOL_DOWN = 1e-3, 200, 0.6
SHAKEN = 0.15


def batch_of(task: ImageEncoderTask, some: People, views: FaceViews, indices: list[int], rng, generator):
    """What `ImageEncoderTask.loss` takes: views, a little worse and a little moved, and what is true of them."""
    pictures = views.pictures(indices).expand(-1, 3, -1, -1)
    still = torch.eye(2, 3).expand(len(indices), 2, 3)
    moves = crops.shake(still, task.size, generator, SHAKEN)
    is_white = pictures > 0.999
    pictures = torch.where(is_white, 1.0, crops.worsen(pictures, rng, generator).mean(1, keepdim=True))
    pictures = (crops.warp(pictures, moves, task.size, 1.0) - task.mean) / task.deviation
    points = views.points(some, indices)
    points = crops.move((points + 1) * task.size / 2, moves) * 2 / task.size - 1
    return pictures, some.geometry[indices], some.looks[indices], some.poses[indices] / likeness.DEGREES, points


def train(
    file: Path,
    some: People,
    views: FaceViews,
    folder: Path,
    seed: object,
    steps: int,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[ImageEncoderTask, bool]:
    """(the task with its network, whether it is complete); `file`: the image encoder that it begins with."""
    torch.manual_seed(rng_of(seed, NAME).getrandbits(31))
    task = ImageEncoderTask()
    task.network.load_state_dict(eva_clip.open_file(file, face_networks.HEAD_DIM).tower.float().state_dict())
    stage = Stage(NAME, folder, [task.network.train(), task.heads], RATE, steps, HORIZON, COOL_DOWN)
    found = views.indices

    def step(number: int) -> float:
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        indices = [rng.choice(found) for _ in range(BATCH)]
        with mixed_precision(torch.device("cpu")):
            loss = task.loss(*batch_of(task, some, views, indices, rng, generator))
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    for module in (task.network, task.heads):
        module.eval().requires_grad_(False)
    return task, complete


@torch.no_grad()
def judge(task: ImageEncoderTask, some: People, views: FaceViews) -> str:
    """What the pooled vector tells of people's views, in words."""
    found = [index for index in views.indices if index < len(some)]
    pictures = (views.pictures(found).expand(-1, 3, -1, -1) - task.mean) / task.deviation
    vectors = torch.cat([task.network(part) * 2 for part in pictures.split(BATCH)])
    left = ((task.heads.geometry(vectors) - some.geometry[found]) ** 2).mean(0) / some.geometry[found].var(0)
    return f"geometry R2 {1 - left.mean():.3f} ({' '.join(f'{1 - v:.2f}' for v in left)})"
