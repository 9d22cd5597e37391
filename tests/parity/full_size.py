"""SDXL's UNet at full size without its numbers: on torch's meta device."""

import json

import torch
from diffusers import UNet2DConditionModel

from app.models.single_files import LAYOUTS


def sdxl_unet() -> UNet2DConditionModel:
    """The UNet by the configuration that ships with the service."""
    config = json.loads((LAYOUTS / "sdxl" / "unet" / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(config)
