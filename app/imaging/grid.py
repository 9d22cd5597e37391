"""Several pictures on one sheet, in rows, with their names."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

GAP = 4
LINE = 16


def grid_of(images: Sequence[Image.Image], names: Sequence[str] = (), columns: int | None = None) -> Image.Image:
    """A sheet on white, as square as the count allows unless `columns` says it; each picture's name is below it."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    line = LINE if names else 0
    width, height = max(image.width for image in images) + GAP, max(image.height for image in images) + GAP + line
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "white")
    pencil = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left, top = number % columns * width, number // columns * height
        sheet.paste(image, (left, top))
        if names:
            pencil.text((left + 2, top + height - GAP - line + 2), names[number], fill="black", font_size=11)
    return sheet
