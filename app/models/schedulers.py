"""Noise schedulers by their common names: one table from the name to the diffusers class and its switches.

A scheduler keeps what belongs to the checkpoint (betas, prediction type, zero terminal SNR, timestep spacing) and takes
from the table only what the name says. Every borrow gets its own object, because schedulers keep state.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from app.errors import InvalidRequest

SMALLEST_ALPHA = 2.0**-24
"""What diffusers puts in the place of a terminal alpha of zero, so that the first sigma is finite."""


EDM_NAME = "Euler"
"""The method that is served for checkpoints that count in EDM's sigmas (Karras et al., arXiv 2206.00364)."""

COSXL: Mapping[str, Any] = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_schedule": "exponential",
    "sigma_data": 1.0,
    "sigma_min": 0.002,
    "sigma_max": 120.0,
}
"""The schedule that CosXL was published with; a file's own keys may say other sigmas."""


@dataclass(frozen=True)
class Choice:
    """A diffusers class and the switches that make it the named method."""

    class_name: str
    switches: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS: dict[str, Choice] = {
    "DDIM": Choice("DDIMScheduler"),
    "DDPM": Choice("DDPMScheduler"),
    "DPM++ 2M": Choice("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "DPM++ 2M Karras": Choice(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}
    ),
    "DPM++ 2M SDE": Choice("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 2M SDE Karras": Choice(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    ),
    "DPM++ SDE": Choice(
        "DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}
    ),
    "DPM++ SDE Karras": Choice(
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True, "use_karras_sigmas": True},
    ),
    "DPM2": Choice("KDPM2DiscreteScheduler"),
    "DPM2 a": Choice("KDPM2AncestralDiscreteScheduler"),
    "Euler": Choice("EulerDiscreteScheduler"),
    "Euler a": Choice("EulerAncestralDiscreteScheduler"),
    "Heun": Choice("HeunDiscreteScheduler"),
    "LCM": Choice("LCMScheduler"),
    "LMS": Choice("LMSDiscreteScheduler"),
    "PNDM": Choice("PNDMScheduler", {"skip_prk_steps": True}),
    "TCD": Choice("TCDScheduler"),
    "UniPC": Choice("UniPCMultistepScheduler"),
}

SIGMA_SWITCHES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""The name decides these, so what the checkpoint's own scheduler had is not taken over."""


def create(name: str | None, config: Mapping[str, Any], **overrides: Any) -> Any:
    """A fresh scheduler of this name for a checkpoint whose own scheduler has `config`.

    None is the checkpoint's own scheduler. `overrides` replace entries of `config` (a distilled part may need
    another timestep spacing). `InvalidRequest` for a name that is not in the table.
    """
    config = {**config, **overrides}
    if is_edm(config):
        if name not in {None, EDM_NAME}:
            raise InvalidRequest(
                f"This model was trained with EDM's noise, for which only {EDM_NAME} is served.", field="scheduler"
            )
        name = None
    if name is None:
        return getattr(diffusers, config["_class_name"]).from_config(config)
    choice = SCHEDULERS.get(name)
    if choice is None:
        raise InvalidRequest(f"There is no scheduler named {name[:40]!r}; there are: {', '.join(SCHEDULERS)}.")
    scheduler_class = getattr(diffusers, choice.class_name)
    accepted = inspect.signature(scheduler_class.__init__).parameters
    silent = set(config.get("_use_default_values", ()))
    own = {
        key: value
        for key, value in config.items()
        if key in accepted and key not in silent and key not in SIGMA_SWITCHES
    }
    switches = dict(choice.switches)
    if "clip_sample" in accepted:
        # Latents reach beyond [-1, 1]; the classes' own default would clip them where a config is silent.
        switches["clip_sample"] = own.get("clip_sample", False)
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in accepted:
        switches["trained_betas"] = zero_snr_betas(config).tolist()
    return scheduler_class.from_config(own, **switches)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's own scheduler counts in EDM's sigmas."""
    return str(config.get("_class_name")).startswith("EDM")


def start_at_sigma(scheduler: Any) -> None:
    """Let DPM++ 2M Karras begin with noise of its first sigma's size, as the reference of PuLID v1.1 does.

    diffusers begins with unit noise, k-diffusion with sigma / sqrt(1 + sigma^2) of it (SDXL: 0.99767): from there on
    both give the same picture. Other schedulers are left as they are.
    """
    own = scheduler.config
    is_meant = isinstance(scheduler, diffusers.DPMSolverMultistepScheduler) and own.use_karras_sigmas
    if is_meant and own.algorithm_type == "dpmsolver++":
        scheduler.init_noise_sigma = float((1 - scheduler.alphas_cumprod[-1]) ** 0.5)


def zero_snr_betas(config: Mapping[str, Any]) -> torch.Tensor:
    """The checkpoint's betas rescaled to zero terminal SNR, for the classes that cannot rescale themselves.

    The same numbers as diffusers' Euler with `rescale_betas_zero_snr` (arXiv 2305.08891, algorithm 1).
    """
    euler = diffusers.EulerDiscreteScheduler.from_config({**config, "use_karras_sigmas": False})
    cumulative = euler.alphas_cumprod.to(torch.float64)
    cumulative[-1] = SMALLEST_ALPHA
    alphas = torch.cat([cumulative[:1], cumulative[1:] / cumulative[:-1]])
    return 1 - alphas
