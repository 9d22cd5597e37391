"""Draw the picture of docs/editing.md: a patch of scikit-image's astronaut is clicked and removed, without weights."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.imaging import grabcut, holes  # noqa: E402
from app.imaging.prompts import Prompts  # noqa: E402
from app.imaging.segments import made_ready  # noqa: E402
from app.imaging.smearing import smear  # noqa: E402

TILE, GAP = 256, 6
POINT = (171, 385)
COLOUR = (232, 62, 140)


def coloured(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the mask laid over it as on the page, and the point that was clicked."""
    shown = image.copy()
    shown.paste(Image.new("RGB", image.size, COLOUR), mask=mask.point(lambda grey: grey * 58 // 100))
    x, y = POINT
    ImageDraw.Draw(shown).ellipse((x - 7, y - 7, x + 7, y + 7), fill=(22, 128, 60), outline="white", width=2)
    return shown


def removed(image: Image.Image, mask: Image.Image) -> Image.Image:
    """As the capability does it with its own defaults."""
    hole = made_ready(mask, grow=7)
    filled = holes.fill(image, hole, holes.parts_of(hole), smear, lambda number: None)
    result = image.copy()
    result.paste(filled, mask=made_ready(hole, blur=4))
    return result


def main() -> None:
    """Write docs/images/editing-remove.webp."""
    from skimage import data

    image = Image.fromarray(np.asarray(data.astronaut()))
    masks = grabcut.segment(image, Prompts(points=(POINT,)))
    tiles = [image, *(coloured(image, mask) for mask in masks), removed(image, masks[0])]
    sheet = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (number * (TILE + GAP), 0))
    sheet.save(ROOT / "docs" / "images" / "editing-remove.webp", quality=88)


if __name__ == "__main__":
    main()
