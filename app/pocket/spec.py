"""What pocket is, as plain data: its size, what it recommends, and where its weights lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAME = "pocket"
TITLE = "Pocket (embedded)"
LICENCE = "Apache-2.0"
ARCHITECTURE = "sdxl"
WEIGHTS = Path(__file__).parent / "weights"

WIDTH = HEIGHT = 128
NUM_INFERENCE_STEPS = 16
GUIDANCE_SCALE = 2.0
EDIT_GUIDANCE_SCALE = 2.0
"""Of the miniature of InstructPix2Pix: how much the wish counts."""

SCHEDULER = "DDIM"
DTYPE = "float32"  # how it computes on a CPU; the files hold float16


@dataclass(frozen=True)
class Preset:
    """One size of the model and the length of its training; pictures are counted, not steps."""

    size: int
    autoencoder_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    unet_layers: int
    text_widths: tuple[int, int]
    text_layers: int
    autoencoder_pictures: int
    latents: int
    text_captions: int
    unet_pictures: int
    batch: int
    classifier_steps: int = 500


PRESETS = {
    "cpu": Preset(128, (16, 16, 48, 96), (64, 128, 256), 1, (96, 160), 3, 130_000, 48_000, 100_000, 230_000, 64),
    "gpu": Preset(256, (32, 64, 128, 128), (96, 192, 320), 2, (256, 320), 4, 600_000, 400_000, 600_000, 6_000_000, 256),
    "tiny": Preset(64, (8, 8, 8, 8), (16, 32, 32), 1, (32, 32), 3, 160, 32, 64, 64, 8, 2),  # for tests: learns nothing
}
