"""Soft edges of a thing on a canvas, as ControlNets for soft edges follow them: white on black, without weights."""

import numpy as np
from PIL import Image, ImageFilter

from app.imaging.opencv import load_opencv

SIGMAS = (1.0, 2.0, 4.0)
"""Blurs, in pixels, at which the colour's gradient is taken; the wide ones make the edge soft."""
FAINTEST = 16.0
"""A contrast, in steps of 255, below which an edge is the noise of an even surface."""
REACH = 9
"""Pixels around the thing within which its outline is drawn."""


def soft_edges(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The outline and the inner edges of what the mask (PIL L, as large) is white on; black everywhere else."""
    cv2 = load_opencv()
    # The outline counts whatever the ground's colour is: a white thing on a white ground has one too.
    grey = np.asarray(mask.convert("L"), np.float32)[..., None]
    layers = np.concatenate([np.asarray(image.convert("RGB"), np.float32) * (grey > 127), grey], axis=2)
    total = np.zeros(layers.shape[:2], np.float32)
    for sigma in SIGMAS:
        smooth = cv2.GaussianBlur(layers, (0, 0), sigma)
        across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        total += np.hypot(across, down).max(axis=2) * sigma
    brightest = max(float(np.percentile(total, 99)), FAINTEST * len(SIGMAS))
    near = np.asarray(mask.convert("L").filter(ImageFilter.MaxFilter(REACH))) > 127
    drawn = (total / brightest * 255).clip(0, 255) * near
    return Image.fromarray(drawn.astype(np.uint8)).convert("RGB")
