"""Faces drawn on their picture: a frame and a number for each, so that a person can say which one is meant."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from app.imaging.detected_faces import Face
from app.imaging.sizes import Size

FRAME, INK, EDGE = (47, 111, 237), (255, 255, 255), (16, 20, 28)
POINT = (255, 196, 61)
LINE_SHARE, TEXT_SHARE = 1 / 256, 1 / 22
"""Of the picture's shorter side: how thick a frame is and how high its number."""

SMALLEST_LINE, SMALLEST_TEXT = 1, 10


def draw_faces(image: Image.Image, faces: Sequence[Face]) -> Image.Image:
    """A copy with each face framed, its five points marked and its number (from 0, in the given order) at the frame.

    Numbers stay inside the picture; a frame is cut off where its face reaches over the picture's edge.
    """
    drawn = image.convert("RGB").copy()
    pencil = ImageDraw.Draw(drawn)
    side = min(image.size)
    line = max(SMALLEST_LINE, round(side * LINE_SHARE))
    text = max(SMALLEST_TEXT, round(side * TEXT_SHARE))
    # The largest last: where faces overlap, the frame that is most likely meant stands whole.
    for number, face in reversed(list(enumerate(faces))):
        left, top, right, bottom = (round(edge) for edge in face.box)
        for grown, colour in ((line, EDGE), (0, FRAME)):
            box = (left - grown, top - grown, right + grown, bottom + grown)
            pencil.rectangle(box, outline=colour, width=line if grown == 0 else 1)
        for x, y in face.keypoints:
            pencil.ellipse((x - line, y - line, x + line, y + line), fill=POINT, outline=EDGE)
        put_number(pencil, image.size, (left, top), number, text)
    return drawn


def put_number(pencil: ImageDraw.ImageDraw, size: Size, corner: Size, number: int, text: int) -> None:
    """A number on a filled plate at a frame's upper left corner, moved as far as it takes to be seen whole."""
    words = str(number)
    margin = max(1, text // 4)
    width = round(pencil.textlength(words, font_size=text)) + 2 * margin
    height = text + margin
    left = min(max(corner[0], 0), size[0] - width)
    top = min(max(corner[1], 0), size[1] - height)
    pencil.rectangle((left, top, left + width - 1, top + height - 1), fill=FRAME)
    pencil.text((left + width / 2, top + height / 2), words, fill=INK, font_size=text, anchor="mm")
