"""Train the networks that say where everything in a face lies: the 68 points, and what each pixel shows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from app.pocket import crops, face_networks, people, portraits
from app.pocket.checkpoints import generator_of, rng_of
from app.pocket.people import People
from app.pocket.train_detector import box_of
from app.pocket.train_faces import pick, pictures_of

LANDMARKS_SIDE = 192
LANDMARKS_LOOSE = 1.5  # the crop's side in longer sides of the face's box
PARSING_SIDE = face_networks.PARSING_SIDE
PARSING_BATCH = 16


def around(boxes: torch.Tensor) -> torch.Tensor:
    """[n, 2, 3]: the crops that insightface's landmark network is given for boxes [n, 4]."""
    size = (boxes[:, 2:] - boxes[:, :2]).amax(-1)
    scale = LANDMARKS_SIDE / (size * LANDMARKS_LOOSE)
    turn = scale[:, None, None] * torch.eye(2)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    return torch.cat([turn, LANDMARKS_SIDE / 2 - scale[:, None, None] * middle[..., None]], -1)


class LandmarksTask:
    """A loose crop about the face to its 68 points in depth."""

    name, rate = "landmarks", 4e-3

    def __init__(self):
        self.network = face_networks.Landmarks()
        self.heads = nn.Module()

    def crop(self, some: People, indices, pictures, generator=None):
        points = some.points[indices]
        boxes = torch.from_numpy(box_of(points.numpy())).float()
        matrices = around(boxes)
        matrices = matrices if generator is None else crops.shake(matrices, LANDMARKS_SIDE, generator, 0.8)
        scale = torch.linalg.det(matrices[..., :2]).sqrt()[:, None, None]
        flat = crops.move(points[..., :2], matrices) / (LANDMARKS_SIDE / 2) - 1
        target = torch.cat([flat, points[..., 2:] * scale / (LANDMARKS_SIDE / 2)], -1)
        return crops.warp(pictures, matrices, LANDMARKS_SIDE), target.flatten(1)

    def batch(self, some: People, number: int):
        indices, rng, generator = pick(some, number, self.name)
        pictures, target = self.crop(some, indices, pictures_of(some, indices, rng), generator)
        return crops.worsen(pictures, rng, generator) * 2 - 1, target

    def loss(self, pictures: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 20 * (self.network(pictures)[:, -204:].float() - target).abs().mean()

    @torch.no_grad()
    def judge(self, some: People) -> str:
        indices = list(range(min(256, len(some))))
        pictures, target = self.crop(some, indices, crops.to_unit(some.decoded[indices]))
        gap = (self.network(pictures * 2 - 1)[:, -204:] - target).view(-1, 68, 3) * LANDMARKS_SIDE / 2
        flat, depth = gap[..., :2].norm(dim=-1).mean(), gap[..., 2].abs().mean()
        return f"mean distance {flat:.2f} px of {LANDMARKS_SIDE}, depth {depth:.2f}"


class ParsingTask:
    """The aligned face to the part that each pixel shows."""

    name, rate = "parsing", 4e-3

    def __init__(self):
        self.network = face_networks.build_parsing()
        self.heads = nn.Module()
        self.network.out_img_conv.requires_grad_(False)  # a picture that nobody looks at

    def batch(self, some: People, number: int):
        rng, generator = rng_of(some.seed, self.name, number), generator_of(some.seed, self.name, number)
        indices = [rng.randrange(len(some)) for _ in range(PARSING_BATCH)]
        matrices = crops.shake(self.matrices(some, indices), PARSING_SIDE, generator, 0.5)
        pictures = crops.warp(pictures_of(some, indices, rng), matrices, PARSING_SIDE, 0.52)
        return crops.worsen(pictures, rng, generator) * 2 - 1, nearest_parts(some, indices, matrices, PARSING_SIDE)

    @staticmethod
    def matrices(some: People, indices: list[int]) -> torch.Tensor:
        return crops.similarity(some.five_points[indices], crops.FFHQ * PARSING_SIDE / 512)

    def loss(self, pictures: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.network(pictures)[0].float(), parts)

    @torch.no_grad()
    def judge(self, some: People) -> str:
        indices = list(range(min(128, len(some))))
        matrices = self.matrices(some, indices)
        pictures = crops.warp(crops.to_unit(some.decoded[indices]), matrices, PARSING_SIDE, 0.52)
        found = self.network(pictures * 2 - 1)[0].argmax(1)
        truth = nearest_parts(some, indices, matrices, PARSING_SIDE)
        behind = torch.tensor([portraits.PARTS.index(name) for name in crops.BEHIND_A_FACE])
        face = torch.isin(found, behind) == torch.isin(truth, behind)
        return f"{(found == truth).float().mean():.1%} of the pixels right, face or not {face.float().mean():.1%}"


def nearest_parts(some: People, indices, matrices: torch.Tensor, side: int) -> torch.Tensor:
    """[n, side, side] the part at each pixel of the crops; background beyond the picture."""
    turn = torch.linalg.inv(matrices[..., :2])
    places = torch.arange(side, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1).view(1, -1, 2)
    source = ((grid - matrices[..., 2].unsqueeze(1)) @ turn.transpose(1, 2)).round().long()
    inside = ((source >= 0) & (source < people.SIZE)).all(-1)
    x, y = source.clamp(0, people.SIZE - 1).unbind(-1)
    parts = torch.from_numpy(some.parts[indices]).long()
    found = parts[torch.arange(len(indices))[:, None], y, x]
    return torch.where(inside, found, 0).view(-1, side, side)
