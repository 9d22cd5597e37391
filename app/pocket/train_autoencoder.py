"""Train the autoencoder: first on crops around eyes, things and edges, in the end on whole pictures.

Its latents are pressed to be standard normal with independent channels, the decoder sees them with a little noise, and
latents of half the size must decode to the picture of half the size. Without the first a channel dies and colours are
told by traces of the others; without the second a UNet's small errors become large ones in the picture; without the
third latents are rough, and a UNet learns rough latents slowly (Kouzelis et al. 2025, "EQ-VAE").
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from app.pocket import world
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.encoding import to_tensor
from app.pocket.shards import Ahead, Shards, mixed_precision
from app.pocket.spec import Preset

BATCH = 32
CROP = 64
CROPS_A_PICTURE = 2
WHOLE_PICTURES = 0.3  # of the steps, at the end
AREA = 4  # pixels
MOMENTS_WEIGHT = 0.02
HALVED_WEIGHT = 0.5
NOISE = 0.15  # of a latent's own spread, while training
SPREAD = 0.01  # what the trained encoder states as its own uncertainty
RATE = 2e-3


def _focus(scene: world.Scene, size: int, rng: random.Random) -> tuple[float, float]:
    """Where detail is: an eye, the mouth, hair or clothes of a portrait; near a thing; seldom anywhere."""
    if rng.random() < 0.12:
        return rng.uniform(0, size), rng.uniform(0, size)
    if scene.person is not None:
        points = world.keypoints(scene, size)
        x, y = (
            points[rng.choice((36, 39, 42, 45, 30, 51, 57))]
            if rng.random() < 0.7
            else rng.choice(((size / 2, size * 0.12), (size / 2, size * 0.9)))
        )
    else:
        box = rng.choice(world.layout(scene))
        x, y = box[0] * size, box[1] * size
    return x + rng.gauss(0, size / 10), y + rng.gauss(0, size / 10)


def pictures(seed: int, step: int, size: int, count: int, crop: int) -> torch.Tensor:
    """The batch of one step: half portraits, crops of `crop` pixels."""
    rng = rng_of(seed, "autoencoder", step)
    images = []
    a_picture = CROPS_A_PICTURE if crop < size else 1
    for i in range(count // a_picture):
        scene = world.random_portrait(rng) if i % 2 else world.random_scene(rng)
        picture = world.draw(scene, size)
        for _ in range(a_picture):
            if crop == size:
                images.append(picture)
                continue
            x, y = _focus(scene, size, rng)
            left, top = (round(min(max(at - crop / 2, 0), size - crop)) for at in (x, y))
            images.append(picture.crop((left, top, left + crop, top + crop)))
    return to_tensor(images)


def difference_loss(decoded: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, the error of the edges, and that of the mean colours of small areas."""
    difference = decoded - image
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    areas = functional.avg_pool2d(difference, AREA).abs().mean()
    return difference.abs().mean() + 2 * difference.square().mean() + 1.5 * edges + areas


def moments_loss(latents: torch.Tensor) -> torch.Tensor:
    """How far the channels' means, spreads and correlations are from 0, 1 and 0."""
    flat = latents.transpose(0, 1).flatten(1)
    moments = flat @ flat.T / flat.shape[1] - torch.eye(len(flat), device=flat.device)
    return moments.square().mean() + flat.mean(1).square().mean()


def train(
    autoencoder: AutoencoderKL,
    preset: Preset,
    folder: Path,
    seed: int,
    device: torch.device,
    compiled: bool = False,
    until: int | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Train to the end of the preset; leaves the averaged weights in `autoencoder`, its latents normalised."""
    autoencoder.to(device, memory_format=torch.channels_last).train()
    steps = max(1, preset.autoencoder_pictures // BATCH)
    stage = Stage("autoencoder", folder, [autoencoder], RATE, steps, horizon=100)
    crop_steps = int(steps * (1 - WHOLE_PICTURES))

    def forward(image: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with mixed_precision(device):
            latents = autoencoder.encode(image).latent_dist.mean.float()
            noisy = latents + NOISE * noise
            decoded = autoencoder.decode(noisy).sample.float()
            halved = autoencoder.decode(functional.avg_pool2d(noisy, 2)).sample.float()
        return (
            difference_loss(decoded, image)
            + HALVED_WEIGHT * difference_loss(halved, functional.avg_pool2d(image, 2))
            + MOMENTS_WEIGHT * moments_loss(latents)
        )

    run_forward = torch.compile(forward) if compiled else forward

    def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        crop = min(CROP, preset.size) if number < crop_steps else preset.size
        count = BATCH if crop < preset.size else BATCH // 4 if preset.size > CROP else BATCH
        generator = generator_of(seed, "autoencoder", number)
        return (
            pictures(seed, number, preset.size, count, crop),
            torch.randn(count, 4, crop // 8, crop // 8, generator=generator),
        )

    def step(number: int) -> float:
        image, noise = batches(number)
        image = image.to(device, memory_format=torch.channels_last)
        return shards.backward(image, noise.to(device))

    with Shards(device, stage.parameters, run_forward) as shards, Ahead(batch) as batches:
        complete = stage.run(step, until, report=report)
    stage.averages.copy_to_parameters()
    autoencoder.eval()
    normalise_latents(autoencoder, preset, seed)
    return complete


@torch.no_grad()
def normalise_latents(autoencoder: AutoencoderKL, preset: Preset, seed: int) -> None:
    """Fold each latent channel's mean and spread into the convolutions beside it, so that latents are standard
    normal over the world and scaling_factor is 1; the encoder's own uncertainty is stated as SPREAD."""
    device = next(autoencoder.parameters()).device
    image = pictures(seed, -1, preset.size, 64, preset.size).to(device)
    latents = autoencoder.encode(image).latent_dist.mean.float()
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = autoencoder.quant_conv, autoencoder.post_quant_conv
    out.bias.add_((out.weight * mean[None, :, None, None]).sum((1, 2, 3)))
    out.weight.mul_(spread[None, :, None, None])
    into.weight[:4].div_(spread[:, None, None, None])
    into.bias[:4].sub_(mean).div_(spread)
    into.weight[4:].zero_()
    into.bias[4:].fill_(2 * math.log(SPREAD))
    autoencoder.register_to_config(scaling_factor=1.0)
