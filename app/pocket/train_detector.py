"""Train the detector: portraits among things, alone and in groups, on canvases of the size that it will see."""

from __future__ import annotations

import random

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from app.pocket import face_networks, people, world
from app.pocket.checkpoints import rng_of
from app.pocket.people import People

SIDE = 640
BATCH = 6
LARGEST = (90, 190, 10_000)  # the longer side of a face, in pixels, up to which each stride finds it
NEAR = 1.6  # strides from a face's middle within which a place answers for it


def box_of(points: np.ndarray) -> np.ndarray:
    """[..., 4] left, top, right, bottom of the face with points [..., 68, 2]: from the chin to some forehead."""
    left, top = points[..., 0].min(-1), points[..., 1].min(-1)
    right, bottom = points[..., 0].max(-1), points[..., 1].max(-1)
    return np.stack([left, top - 0.25 * (bottom - top), right, bottom], -1)


def canvas_of(some: People, rng: random.Random) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """A picture [640, 640, 3] and its faces: (box [4], points [5, 2])."""
    source = np.random.default_rng(rng.getrandbits(63))
    canvas = _ground(rng, source)
    five = some.five_points
    found: list[tuple[np.ndarray, np.ndarray]] = []

    def put(left: float, top: float, side: float, share: float) -> None:
        if rng.random() >= share:
            picture = np.asarray(world.draw(_things(rng)))
            index = None
        else:
            index = rng.randrange(len(some))
            picture = (some.decoded if rng.random() < 0.5 else some.pictures)[index]
        if rng.random() < 0.15:
            picture = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA)
        scale = side / people.SIZE
        matrix = np.array([[side / picture.shape[0], 0, left], [0, side / picture.shape[0], top]], np.float64)
        cv2.warpAffine(
            np.ascontiguousarray(picture), matrix, (SIDE, SIDE), dst=canvas, borderMode=cv2.BORDER_TRANSPARENT
        )
        area = np.array([left, top, left + side, top + side])
        found[:] = [face for face in found if _share_inside(face[0], area) < 0.3]
        if index is not None:
            shift = np.array([left, top])
            box = box_of(some.points[index].numpy()) * scale + np.tile(shift, 2)
            if _share_inside(box, np.array([0, 0, SIDE, SIDE])) > 0.85:
                found.append((box, five[index].numpy() * scale + shift))

    kind = rng.random()
    if kind < 0.35:  # one picture, letterboxed as insightface does it: at the top left
        side = SIDE * rng.uniform(0.5, 1.0) if rng.random() < 0.4 else SIDE
        put(0, 0, side, 0.75)
    elif kind < 0.7:
        count = rng.choice((2, 2, 3, 4, 5, 6))
        cell = SIDE / count
        for row in range(count):
            for column in range(count):
                put(column * cell, row * cell, cell, 0.7)
    else:
        for _ in range(rng.randint(1, 4)):
            side = rng.uniform(90, 600)
            put(rng.uniform(-0.1 * side, SIDE - 0.9 * side), rng.uniform(-0.1 * side, SIDE - 0.9 * side), side, 0.75)
    if rng.random() < 0.3:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 4))
    return canvas, found


def _things(rng: random.Random) -> world.Scene:
    while True:
        scene = world.random_scene(rng)
        if scene.person is None:
            return scene


def _ground(rng: random.Random, source: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    if kind < 0.35:
        return np.zeros((SIDE, SIDE, 3), np.uint8)
    if kind < 0.6:
        return np.full((SIDE, SIDE, 3), source.integers(0, 256, 3), np.uint8)
    cells = rng.choice((4, 16, 80, 320, 640))
    noise = source.integers(0, 256, (cells, cells, 3), np.uint8)
    return cv2.resize(noise, (SIDE, SIDE), interpolation=rng.choice((cv2.INTER_LINEAR, cv2.INTER_NEAREST)))


def _share_inside(box: np.ndarray, area: np.ndarray) -> float:
    width, height = np.minimum(box[2:], area[2:]) - np.maximum(box[:2], area[:2])
    return max(0, width) * max(0, height) / np.prod(box[2:] - box[:2])


def places_of(level: int) -> np.ndarray:
    """[places, 2] x and y of each anchor, as insightface counts them."""
    stride = face_networks.Detector.STRIDES[level]
    centres = np.stack(np.mgrid[: SIDE // stride, : SIDE // stride][::-1], -1).astype(np.float32).reshape(-1, 2)
    return np.repeat(centres * stride, face_networks.Detector.ANCHORS, 0)


PLACES = [places_of(level) for level in range(3)]


class DetectorTask:
    """See the module."""

    name, rate = "detector", 2e-3

    def __init__(self):
        self.network = face_networks.Detector()
        for head in self.network.heads:  # at first nearly every place says that no face is there
            nn.init.constant_(head[-1].bias, 0.0)
            with torch.no_grad():
                head[-1].bias[::15] = -4.0
        self.heads = nn.Module()

    def batch(self, some: People, number: int):
        rng = rng_of(some.seed, self.name, number)
        canvases, targets = [], [[] for _ in range(3)]
        for _ in range(BATCH):
            canvas, faces = canvas_of(some, rng)
            canvases.append(canvas)
            for level, places in enumerate(PLACES):
                targets[level].append(self._targets(level, places, faces))
        pictures = torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float().sub(127.5).div(128)
        return pictures, *(torch.from_numpy(np.stack(level)) for level in targets)

    @staticmethod
    def _targets(level: int, places: np.ndarray, faces) -> np.ndarray:
        """[places, 1 + 4 + 10]: whether a face is there, and how far its sides and points are."""
        stride = face_networks.Detector.STRIDES[level]
        target = np.zeros((len(places), 15), np.float32)
        for box, points in faces:
            size = (box[2:] - box[:2]).max()
            if size > LARGEST[level] or (level and size <= LARGEST[level - 1]):
                continue
            near = np.abs(places - (box[:2] + box[2:]) / 2).max(-1) < NEAR * stride
            at = places[near]
            target[near, 0] = 1
            target[near, 1:5] = np.concatenate([at - box[:2], box[2:] - at], -1) / stride
            target[near, 5:] = (points[None] - at[:, None]).reshape(-1, 10) / stride
        return target

    def loss(self, pictures: torch.Tensor, *targets: torch.Tensor) -> torch.Tensor:
        out = [part.float() for part in self.network(pictures)]
        total = 0.0
        for level, target in enumerate(targets):
            scores, is_face = out[level][..., 0].clamp(1e-6, 1 - 1e-6), target[..., 0]
            right = torch.where(is_face > 0, scores, 1 - scores)
            weight = torch.where(is_face > 0, 0.75, 0.25) * (1 - right) ** 2
            count = is_face.sum().clamp(min=1)
            total = total - (weight * right.log()).sum() / count
            there = is_face > 0
            if there.any():
                size = (target[..., 1] + target[..., 3])[there][:, None]
                for part, wanted in ((out[3 + level], target[..., 1:5]), (out[6 + level], target[..., 5:])):
                    gap = (part[there] - wanted[there]) / size * 20
                    total = total + functional.smooth_l1_loss(gap, torch.zeros_like(gap))
        return total

    def judge(self, some: People) -> str:
        return "judged by insightface itself, once it is a file"
