"""Removal without weights: OpenCV's inpainting by Telea's method, which carries colours inwards from a hole's edge."""

import numpy as np
from PIL import Image

from app.imaging.opencv import load_opencv

RADIUS = 5
"""Pixels around each one of which its colour is made (Telea, 2004)."""


def smear(image: Image.Image, hole: Image.Image) -> Image.Image:
    """The picture (PIL RGB) with what is white in `hole` filled: smooth things stay smooth, large holes blur."""
    cv2 = load_opencv()
    pixels = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
    filled = cv2.inpaint(pixels, np.asarray(hole), RADIUS, cv2.INPAINT_TELEA)
    return Image.fromarray(cv2.cvtColor(filled, cv2.COLOR_BGR2RGB))
