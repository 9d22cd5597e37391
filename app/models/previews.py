"""A cheap picture of what a run is about to make: one linear map from latent channels to colours, no decoder.

Shown is not the noisy latents of a step but what the step foretells of the finished ones: the scheduler's own
estimate where it gives one, else the arithmetic of its prediction type. The published autoencoders have known maps;
any other one's is fitted once, from how it encodes flat colours.
"""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

SMALLEST_SIDE = 256
PUBLISHED_CHANNELS = [128, 256, 512, 512]

# Latent channel -> R, G, B in [-1, 1], for latents of unit scale; measured by the InvokeAI project (Apache-2.0,
# invokeai/app/util/step_callback.py).
SD15_MAP = [
    [0.3444, 0.1385, 0.0670],
    [0.1247, 0.4027, 0.1494],
    [-0.3192, 0.2513, 0.2103],
    [-0.1307, -0.1874, -0.7445],
    [0.0, 0.0, 0.0],
]
SDXL_MAP = [
    [0.3816, 0.4930, 0.5320],
    [-0.3753, 0.1631, 0.1739],
    [0.1770, 0.3588, -0.2048],
    [-0.4350, -0.2644, -0.4289],
    [0.0, 0.0, 0.0],
]

_fitted: "weakref.WeakKeyDictionary[Any, torch.Tensor]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Step:
    """What one call of a scheduler's `step` was told and, where it said so, what it foretold; tensors [batch, ...]."""

    model_output: torch.Tensor
    timestep: Any
    sample: torch.Tensor
    foretold: torch.Tensor | None


_last_steps: "weakref.WeakKeyDictionary[Any, Step]" = weakref.WeakKeyDictionary()


@contextmanager
def watching(scheduler: Any) -> Iterator[None]:
    """Remember the scheduler's last step for `estimate`; on leaving, it is as it was."""
    step = scheduler.step

    # Pipelines read the signature of `step` to know what it takes; `wraps` keeps it readable.
    @functools.wraps(step)
    def watched(
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        *more: Any,
        return_dict: bool = True,
        **named: Any,
    ) -> Any:
        answer = step(model_output, timestep, sample, *more, return_dict=True, **named)
        foretold = getattr(answer, "pred_original_sample", getattr(answer, "denoised", None))
        _last_steps[scheduler] = Step(model_output, timestep, sample, foretold)
        return answer if return_dict else answer.to_tuple()

    scheduler.step = watched
    try:
        yield
    finally:
        del scheduler.step
        _last_steps.pop(scheduler, None)


def estimate(scheduler: Any, latents: torch.Tensor) -> torch.Tensor:
    """The finished latents as the last step foretells them; `latents` where it cannot be told."""
    last = _last_steps.get(scheduler)
    if last is None:
        return latents
    if last.foretold is not None:
        return last.foretold
    if not hasattr(scheduler, "alphas_cumprod"):
        # Flow matching: noise and picture lie on a straight line, and the step was counted already.
        return last.sample - scheduler.sigmas[scheduler.step_index - 1].to(last.sample) * last.model_output
    kept = scheduler.alphas_cumprod[int(last.timestep)].to(last.sample.device)
    match scheduler.config.prediction_type:
        case "epsilon":
            return (last.sample - (1 - kept).sqrt() * last.model_output) / kept.sqrt()
        case "v_prediction":
            return kept.sqrt() * last.sample - (1 - kept).sqrt() * last.model_output
        case _:
            return latents


def preview(vae: Any, latents: torch.Tensor) -> Image.Image:
    """The first of `latents` [batch, channels, height, width] as a small RGB picture."""
    remember_colours(vae, _colour_map)
    return draw(latents, vae)


def remember_colours(vae: Any, fit_map: Callable[[Any], torch.Tensor]) -> None:
    """Keep what `fit_map` says of the autoencoder, for `draw`; it is asked once."""
    if vae not in _fitted:
        _fitted[vae] = fit_map(vae)


def draw(latents: torch.Tensor, vae: Any) -> Image.Image:
    """As `preview`, by the colours that are remembered of the autoencoder."""
    with torch.no_grad():
        latent = latents[0].float()
        # Schedulers that count in sigmas hand out latents of any scale; the map expects about one.
        latent = latent / latent.std().clamp(min=1.0)
        channels_last = latent.movedim(0, -1).cpu()
        ones = torch.ones(*channels_last.shape[:-1], 1)
        colours = torch.cat([channels_last, ones], dim=-1) @ _fitted[vae]
        pixels = ((colours + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels), "RGB")
    factor = max(1, -(-SMALLEST_SIDE // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BILINEAR)


def _colour_map(vae: Any) -> torch.Tensor:
    """[channels + 1, 3]; the last row is the offset."""
    if list(vae.config.block_out_channels) == PUBLISHED_CHANNELS and vae.config.latent_channels == 4:
        return torch.tensor(SDXL_MAP if vae.config.scaling_factor < 0.15 else SD15_MAP)
    return fit_colour_map(vae)


def fit_colour_map(vae: Any) -> torch.Tensor:
    """Least squares over the autoencoder's latents of 27 flat colours, with a little weight on small coefficients."""
    colours = flat_colours()
    side = 2 ** (len(vae.config.block_out_channels) - 1) * 4
    pictures = colours[:, :, None, None].expand(-1, -1, side, side)
    parameter = next(vae.parameters())
    with torch.no_grad():
        encoded = vae.encode(pictures.to(parameter)).latent_dist.mean
        shift = vae.config.get("shift_factor") or 0.0
        latents = ((encoded - shift) * vae.config.scaling_factor).float().cpu()
    return fit(latents, colours)


def flat_colours() -> torch.Tensor:
    """[27, 3] of -1 to 1: what the map is fitted from."""
    levels = torch.tensor([-0.9, 0.0, 0.9])
    return torch.cartesian_prod(levels, levels, levels)


def fit(latents: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """[channels + 1, 3] out of the latents [colours, channels, height, width] of flat colours, their rims left out."""
    middle = latents[:, :, 1:-1, 1:-1].movedim(1, -1)
    samples = middle.reshape(-1, middle.shape[-1])
    wanted = colours[:, None, :].expand(-1, samples.shape[0] // len(colours), -1).reshape(-1, 3)
    inputs = torch.cat([samples, torch.ones(len(samples), 1)], dim=1)
    ridge = 1e-3 * len(samples) * torch.eye(inputs.shape[1])
    return torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ wanted)
