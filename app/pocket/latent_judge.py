"""The identity loss's own judge: geometry and looks read off latents, so that training never decodes a picture.

It shares nothing with the measure of likeness: other input, other architecture, other seed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from app.pocket.checkpoints import generator_of, rng_of
from app.pocket.face_networks import SHARPNESS, head_of, means_of, misplaced, places_of
from app.pocket.people import LOOKS, SIZE, People

NAME = "latent-judge"
RATE, BATCH = 3e-3, 64


class LatentJudge(nn.Module):
    """[n, 4, 16, 16] latents to 14 numbers of geometry, the logits of every look, and the face's 68 points.

    Geometry is read off points, each the mean of all places weighted by a map's softmax, and off coarse channels.
    """

    POINTS = 80

    def __init__(self, width: int = 48):
        super().__init__()
        self.enter = nn.Conv2d(4, width, 3, padding=1)

        def block() -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            )  # fmt: skip

        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.shrink = nn.Conv2d(width, width, 2, 2)
        self.coarse_blocks = nn.ModuleList(block() for _ in range(2))
        self.maps = nn.Conv2d(width, self.POINTS, 1)
        self.leave = nn.Sequential(nn.Conv2d(width, 12, 1), nn.Flatten())
        self.register_buffer("places", places_of(16), persistent=False)
        self.hidden = nn.Sequential(head_of(2 * self.POINTS + 12 * 64, 192, 192), nn.SiLU())
        self.geometry = nn.Linear(192, 14)
        self.looks = nn.ModuleList(nn.Linear(192, len(values)) for values in LOOKS.values())

    def read(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(maps [n, POINTS, places], states [n, 192])."""
        states = self.enter(latents)
        for block in self.blocks:
            states = states + block(states)
        coarse = self.shrink(states)
        for block in self.coarse_blocks:
            coarse = coarse + block(coarse)
        states = states + functional.interpolate(coarse, scale_factor=2, mode="nearest")
        maps = self.maps(states).flatten(2).float() * SHARPNESS
        points = means_of(maps, self.places)
        return maps, self.hidden(torch.cat([points.flatten(1), self.leave(coarse).float()], -1))

    def states(self, latents: torch.Tensor) -> torch.Tensor:
        return self.read(latents)[1]

    def loss(self, latents: torch.Tensor, geometry: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
        """[n]: how far these latents are from showing this face."""
        states = self.states(latents)
        named = sum(
            functional.cross_entropy(head(states), looks[:, i], reduction="none") for i, head in enumerate(self.looks)
        )
        return (self.geometry(states) - geometry).square().mean(-1) * 3 + 0.3 * named / len(self.looks)


def loss_of(judge: LatentJudge, some: People, number: int) -> torch.Tensor:
    """The loss of one batch: latents with noise on them, as a prediction halfway has."""
    rng, generator = rng_of(some.seed, NAME, number), generator_of(some.seed, NAME, number)
    indices = [rng.randrange(len(some)) for _ in range(BATCH)]
    latents = torch.from_numpy(some.latents[indices].astype("float32"))
    noise = torch.rand(BATCH, 1, 1, 1, generator=generator).square() * 0.5
    latents = latents + noise * torch.randn(latents.shape, generator=generator)
    points = some.points[indices][..., :2] * 2 / SIZE - 1
    placed = misplaced(judge.read(latents)[0], points, judge.places)
    return judge.loss(latents, some.geometry[indices], some.looks[indices]).mean() + placed


@torch.no_grad()
def judge_held_out(judge: LatentJudge, some: People) -> str:
    states = judge.states(torch.from_numpy(some.latents.astype("float32")))
    left = ((judge.geometry(states) - some.geometry) ** 2).mean(0) / some.geometry.var(0)
    right = [
        f"{name} {(head(states).argmax(-1) == some.looks[:, i]).float().mean():.0%}"
        for i, (name, head) in enumerate(zip(LOOKS, judge.looks, strict=True))
    ]
    return f"geometry R2 {1 - left.mean():.3f}; {', '.join(right)}"
