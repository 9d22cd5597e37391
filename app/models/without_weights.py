"""OpenCV's GrabCut and inpainting, and Lanczos, behind the questions that models are asked; they have no weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from app.errors import InvalidRequest
from app.imaging import grabcut
from app.imaging.prompts import Prompts
from app.imaging.segments import Segment
from app.imaging.smearing import smear
from app.imaging.tiles import Enlarged
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


class Lanczos:
    """A resize by Lanczos' filter: smooth, and without anything that was not in the picture."""

    def at_work(self, turn: Any, check: Callable[[], None]) -> "Lanczos":
        """It needs no device, so it waits for no turn."""
        return self

    def __call__(
        self,
        image: Image.Image,
        size: tuple[int, int],
        *,
        tile_size: int | None = None,
        denoise_strength: float | None = None,
        on_tile: Callable[[int, int], None] = lambda done, count: None,
    ) -> Enlarged:
        """The picture at this size, in one piece."""
        if denoise_strength is not None:
            raise InvalidRequest("Lanczos takes no noise away.", field="denoise_strength")
        on_tile(0, 1)
        enlarged = image.resize(size, Image.Resampling.LANCZOS)
        on_tile(1, 1)
        return Enlarged(enlarged, 1, 1, 0)


def load_grabcut(spec: ModelSpec, path: Path | None, device: Any, parts: Sequence[Any] = ()) -> GrabCut:
    """There is nothing to open."""
    return GrabCut()


def load_smearing(spec: ModelSpec, path: Path | None, device: Any, parts: Sequence[Any] = ()) -> Smearing:
    """There is nothing to open."""
    return Smearing()


def load_lanczos(spec: ModelSpec, path: Path | None, device: Any, parts: Sequence[Any] = ()) -> Lanczos:
    """There is nothing to open."""
    return Lanczos()
