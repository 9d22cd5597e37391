"""The loss of a diffusion model that learns what was put under the noise, as diffusers' training scripts define it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr


def denoising_losses(
    unet: Any,
    noise_scheduler: Any,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    *,
    conditions: Mapping[str, Any],
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """The loss of each row [rows]: the squared error of what the UNet foretells at these timesteps.

    `latents` and `noise` are [rows, channels, h, w], `timesteps` [rows]; `conditions` are the UNet's own arguments
    (`encoder_hidden_states`, `added_cond_kwargs`). `snr_gamma` weighs by min-SNR (Hang et al., 2023).
    """
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, return_dict=False, **conditions)[0]
    kind = noise_scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = latents
    losses = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return losses
    snr = compute_snr(noise_scheduler, timesteps)
    least = torch.clamp(snr, max=snr_gamma)
    weights = least / (snr + 1) if kind == "v_prediction" else least if kind == "sample" else least / snr
    return losses * weights


def velocity_losses(
    foretell: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    timesteps: torch.Tensor,
    *,
    pack: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The loss of each row [rows] of a network that flows from noise to latents [rows, channels, h, w].

    `sigmas` and `timesteps` are [rows]; `foretell` answers, packed, the velocity at the noisy latents.
    """
    share = sigmas[:, None, None, None]
    predicted = foretell((1 - share) * latents + share * noise, timesteps)
    losses = F.mse_loss(predicted.float(), pack(noise - latents).float(), reduction="none")
    return losses.mean(dim=(1, 2))


def draw_latents(
    generator: torch.Generator,
    moments: torch.Tensor,
    scaling_factor: float | torch.Tensor,
    shift: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents out of their distribution [rows, 2 * channels, h, w], and noise like them.

    Both on the generator's device, in this order; a factor and a shift may be one for each channel [channels, 1, 1].
    """
    latents = draw_from(generator, moments, scaling_factor, shift)
    return latents, torch.randn(latents.shape, generator=generator)


def draw_from(
    generator: torch.Generator,
    moments: torch.Tensor,
    scaling_factor: float | torch.Tensor,
    shift: float | torch.Tensor,
) -> torch.Tensor:
    """Latents [rows, channels, h, w] out of their distribution, as `draw_latents` has them."""
    mean, log_variance = moments.chunk(2, dim=1)
    deviation = torch.exp(0.5 * torch.clamp(log_variance, -30.0, 20.0))
    return (mean + deviation * torch.randn(mean.shape, generator=generator) - shift) * scaling_factor
