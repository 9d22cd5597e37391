"""What points at a thing in a picture: points that belong to it, points that do not, boxes; as texts and as numbers."""

import re
from dataclasses import dataclass

from app.errors import InvalidRequest
from app.imaging.sizes import Size

Point = tuple[float, float]
FloatBox = tuple[float, float, float, float]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Prompts:
    """Points and boxes (left, top, right, bottom) in the picture's pixels.

    Points together mean one thing; each box means one. A single box may stand beside points, about the same thing.
    """

    points: tuple[Point, ...] = ()
    negative_points: tuple[Point, ...] = ()
    boxes: tuple[FloatBox, ...] = ()

    @classmethod
    def read(cls, points: str | None, negative_points: str | None, boxes: str | None) -> "Prompts":
        """From a request's texts, whose form the fields have checked."""
        return cls(_groups(points, 2), _groups(negative_points, 2), _groups(boxes, 4))

    def __bool__(self) -> bool:
        return bool(self.points or self.boxes)

    def require_within(self, size: Size) -> None:
        """`InvalidRequest` where a point or a box lies outside a picture of this size, or a box holds nothing."""
        width, height = size
        for field, points in (("points", self.points), ("negative_points", self.negative_points)):
            for x, y in points:
                if not (0 <= x < width and 0 <= y < height):
                    raise InvalidRequest(
                        f"The point {x:g},{y:g} lies outside the picture of {width}x{height}.", field=field
                    )
        for box in self.boxes:
            left, top, right, bottom = box
            named = ",".join(f"{edge:g}" for edge in box)
            if left >= right or top >= bottom:
                raise InvalidRequest(f"The box {named} holds nothing: it is left,top,right,bottom.", field="boxes")
            if left < 0 or top < 0 or right > width or bottom > height:
                raise InvalidRequest(f"The box {named} reaches beyond the picture of {width}x{height}.", field="boxes")


def _groups(text: str | None, count: int) -> tuple[tuple[float, ...], ...]:
    numbers = [float(number) for number in _NUMBER.findall(text or "")]
    return tuple(tuple(numbers[at : at + count]) for at in range(0, len(numbers), count))
