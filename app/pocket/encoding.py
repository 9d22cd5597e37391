"""Between drawn pictures and the autoencoder's latents, in the form in which training sets hold both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from app.pocket import spec
from app.pocket.shards import mixed_precision

LATENTS = (np.float16, (4, spec.HEIGHT // 8, spec.WIDTH // 8))
"""The type and shape of one picture's latents in `archive.Shapes`."""


def to_tensor(images: Sequence[Image.Image] | np.ndarray) -> torch.Tensor:
    """PIL pictures, or bytes [n, height, width, 3], as [n, 3, height, width], -1 to 1."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """[n, 4, height / 8, width / 8] bfloat16: the mean latents of pictures as `to_tensor` has them."""
    with mixed_precision(pictures.device):
        return autoencoder.encode(pictures).latent_dist.mean


@torch.no_grad()
def decode(autoencoder: AutoencoderKL, latents: torch.Tensor) -> np.ndarray:
    """[n, height, width, 3] bytes: the pictures of these latents."""
    with mixed_precision(latents.device):
        pictures = autoencoder.decode(latents).sample.float().clamp(-1, 1)
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
