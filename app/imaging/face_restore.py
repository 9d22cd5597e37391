"""The pixels of a restored face: from its upright crop back into the picture it was cut from.

Invariant: where the mask is black, and wherever `blend` is 0, every byte of the picture stays as it was. The mask is
made of what was parsed in the restored face: skin and everything in it, ears and hair, soft at its edge; hat, neck,
clothes and background are the picture's own (facexlib, `FaceRestoreHelper`).
"""

import math

import numpy as np
from PIL import Image

from app.errors import InvalidRequest
from app.imaging.opencv import load_opencv
from app.imaging.sizes import Size

RESTORED_PARTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17)
"""Skin, brows, eyes, glasses, ears, earring, nose, mouth, lips and hair in BiSeNet's numbers."""

WINDOW, SIGMA, BORDER = 101, 11, 10
"""Of the blur that softens the mask, twice, and the rim of the crop that is never laid back; pixels of 512."""

SMALLEST_FACE_AREA = 0.01


def shows_face(parts: np.ndarray) -> bool:
    """Whether enough of an upright crop is a face; `parts` [512, 512] are BiSeNet's numbers."""
    return bool(np.isin(parts, RESTORED_PARTS).mean() >= SMALLEST_FACE_AREA)


def crop_mask(parts: np.ndarray) -> np.ndarray:
    """How much of each pixel of the crop is laid back, [512, 512] in 0..1; `InvalidRequest` where it shows no face."""
    cv2 = load_opencv()
    if not shows_face(parts):
        raise InvalidRequest("No parts of a face were seen where the face was found.")
    soft = np.isin(parts, RESTORED_PARTS).astype(np.float32)
    for _ in range(2):
        soft = cv2.GaussianBlur(soft, (WINDOW, WINDOW), SIGMA)
    soft[:BORDER] = soft[-BORDER:] = 0
    soft[:, :BORDER] = soft[:, -BORDER:] = 0
    return soft


def enlarged_matrix(matrix: np.ndarray, size: Size, target: Size) -> np.ndarray:
    """The matrix [2, 3] to the crop from a picture that was made larger; a pixel's middle stays the same place."""
    across, down = (own / wanted for own, wanted in zip(size, target, strict=True))
    way_back = np.array([[across, 0, across / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])
    return matrix @ way_back


def lay_back(image: Image.Image, face: Image.Image, mask: np.ndarray, matrix: np.ndarray, blend: float) -> Image.Image:
    """The picture (PIL RGB) with the restored face (512x512) in its place, as far as the mask and `blend` say.

    `matrix` [2, 3] maps the picture's pixels to the crop's. Only the face's own box is worked on.
    """
    if blend <= 0:
        return image
    cv2 = load_opencv()
    box = _box_of(matrix, face.size, image.size)
    if box is None:
        return image
    size = (box[2] - box[0], box[3] - box[1])
    within = matrix @ np.array([[1, 0, box[0]], [0, 1, box[1]], [0, 0, 1.0]])
    pixels, weights = np.asarray(face), mask.astype(np.float32)
    # A face smaller than its crop is shrunk first: taken pixel by pixel it would sparkle.
    shrink = 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if shrink < 1:
        side = max(1, round(face.width * shrink))
        factor = side / face.width
        pixels, weights = (cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA) for part in (pixels, weights))
        within = np.array([[factor, 0, factor / 2 - 0.5], [0, factor, factor / 2 - 0.5]]) @ np.vstack(
            [within, [0, 0, 1]]
        )
    drawn = cv2.warpAffine(
        pixels, within, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(weights, within, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    result = image.copy()
    alpha = np.clip(alpha * blend * 255 + 0.5, 0, 255).astype(np.uint8)
    result.paste(Image.fromarray(drawn), box[:2], mask=Image.fromarray(alpha))
    return result


def _box_of(matrix: np.ndarray, crop: Size, size: Size) -> tuple[int, int, int, int] | None:
    """The part of the picture that the crop covers; None where that is nothing."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    corners = np.array([[0, 0, 1], [crop[0], 0, 1], [0, crop[1], 1], [crop[0], crop[1], 1]]) @ inverse.T
    left, top = np.floor(corners[:, :2].min(0)).astype(int)
    right, bottom = np.ceil(corners[:, :2].max(0)).astype(int) + 1
    box = (max(0, int(left)), max(0, int(top)), min(size[0], int(right)), min(size[1], int(bottom)))
    return box if box[0] < box[2] and box[1] < box[3] else None
