"""Contact sheets of what was drawn for a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

LINE = 14
"""Pixels above each row, for its name."""


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], count: int = 10) -> Image.Image:
    """A row for each name, its first pictures beside one another; all are squares of one size."""
    side = next(iter(rows.values()))[0].width
    sheet = Image.new("RGB", (side * count, (side + LINE) * len(rows)), "white")
    pencil = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(rows.items()):
        top = row * (side + LINE)
        pencil.text((2, top), name, fill="black", font_size=11)
        for column, image in enumerate(images[:count]):
            sheet.paste(image, (column * side, top + LINE))
    return sheet
