"""OpenCV's GrabCut and inpainting behind the questions that segmenters and erasers are asked; they have no weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from app.errors import InvalidRequest
from app.imaging import grabcut
from app.imaging.prompts import Prompts
from app.imaging.segments import Segment
from app.imaging.smearing import smear
from app.models.spec import ModelSpec


class GrabCut:
    """See `app.imaging.grabcut`."""

    def at_work(self, turn: Any, check: Callable[[], None]) -> "GrabCut":
        """It needs no device, so it waits for no turn."""
        return self

    def segment(self, image: Image.Image, prompts: Prompts) -> list[Segment]:
        """Nothing foretells how good a mask is."""
        return [Segment(mask) for mask in grabcut.segment(image, prompts)]

    def everything(self, image: Image.Image) -> list[Segment]:
        """It knows no things and must be told where one is."""
        raise InvalidRequest("GrabCut finds nothing by itself: give points or a box.", field="everything")


class Smearing:
    """See `app.imaging.smearing`."""

    def at_work(self, turn: Any, check: Callable[[], None]) -> Callable[[Image.Image, Image.Image], Image.Image]:
        """It needs no device, so it waits for no turn."""
        return smear


def load_grabcut(spec: ModelSpec, path: Path | None, device: Any, parts: Sequence[Any] = ()) -> GrabCut:
    """There is nothing to open."""
    return GrabCut()


def load_smearing(spec: ModelSpec, path: Path | None, device: Any, parts: Sequence[Any] = ()) -> Smearing:
    """There is nothing to open."""
    return Smearing()
