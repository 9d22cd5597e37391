"""Soft edges of a thing on a canvas, as ControlNets for soft edges follow them: white on black, without weights."""

import numpy as np
from PIL import Image, ImageFilter

from app.imaging.control_maps import contrast

REACH = 9
"""Pixels around the thing within which its outline is drawn."""


def soft_edges(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The outline and the inner edges of what the mask (PIL L, as large) is white on; black everywhere else."""
    # The outline counts whatever the ground's colour is: a white thing on a white ground has one too.
    grey = np.asarray(mask.convert("L"), np.float32)[..., None]
    layers = np.concatenate([np.asarray(image.convert("RGB"), np.float32) * (grey > 127), grey], axis=2)
    near = np.asarray(mask.convert("L").filter(ImageFilter.MaxFilter(REACH))) > 127
    return Image.fromarray((contrast(layers) * 255 * near).astype(np.uint8)).convert("RGB")
