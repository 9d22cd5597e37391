"""The slider between the picture that a result was made of and the result itself, where both have one shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.ui.wording import picture_url

ALIKE = 0.02
"""Share by which the proportions of two pictures of one shape may differ: sizes are rounded."""


@dataclass(frozen=True)
class Before:
    """The picture that a result was made of, and whether the slider stands open at once."""

    reference: str
    size: tuple[int, int]
    is_open: bool = False

    def fits(self, image: Mapping[str, Any]) -> bool:
        """Whether a result has this picture's shape."""
        across, down = self.size[0] * image["height"], self.size[1] * image["width"]
        return abs(across - down) <= ALIKE * max(across, down)

    def slider(self, image: Mapping[str, Any]) -> str:
        """Both pictures, one over the other, and the line between them."""
        shape = f"{image['width']}/{image['height']}"
        hidden = "" if self.is_open else " hidden"
        return (
            f'<div class="eis-slider"{hidden} style="--shape:{shape}"><div class="eis-slider-box" style="--at:50%">'
            f'<img loading="lazy" src="{picture_url(image["id"])}" alt="After" draggable="false">'
            f'<img loading="lazy" class="eis-before" src="{picture_url(self.reference)}" alt="Before" '
            'draggable="false">'
            '<span class="eis-slider-word">Before</span><span class="eis-slider-word eis-after">After</span>'
            '<i class="eis-slider-line"></i><input type="range" min="0" max="100" step="1" value="50" '
            'aria-label="How much of the picture before is seen"></div></div>'
        )

    def toggle(self) -> str:
        """The button that shows the slider in the picture's place, and the picture again."""
        pressed = str(self.is_open).lower()
        return (
            '<button type="button" class="eis-button" data-client="slider" '
            f'aria-pressed="{pressed}">Before and after</button>'
        )
