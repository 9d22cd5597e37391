"""A picture as the WD14 taggers read it."""

import numpy as np
from PIL import Image

from app.imaging.decode_child import to_colours
from app.imaging.on_white import flat


def tagger_input(image: Image.Image, side: int) -> np.ndarray:
    """[side, side, 3] float32 of 0 to 255, blue first: on white, in the middle of a white square, bicubic.

    As the taggers' author prepares pictures for the ONNX files; any mode is taken, 16-bit greys at their own depth.
    """
    image = image if image.mode == "RGB" else flat(to_colours(image))
    longest = max(image.size)
    if image.size != (longest, longest):
        square = Image.new("RGB", (longest, longest), "white")
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        image = square
    if longest != side:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image, dtype=np.float32)[:, :, ::-1])
