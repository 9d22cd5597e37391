"""What a run borrows, as it sees it: a diffusion pipeline, an editor, and each of the smaller models beside them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from app.core.attachments import FaceReference


class Pipeline(Protocol):
    """A borrowed diffusers pipeline: called with diffusers' own argument names."""

    def __call__(self, **arguments: Any) -> Any:
        """Run it; the answer has `.images`, a list of PIL RGB pictures."""

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this (pixels)."""

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) that the model was trained at."""

    def count_timesteps(self, num_inference_steps: int, strength: float | None = None) -> int:
        """How often a call reports a step: some schedulers take two for one, `strength` leaves the first out."""


class FaceReader(Protocol):
    """What may be asked of the face models; faces, crops and matrices are those of `app.imaging.detected_faces`.

    Each raises what a caller is told: `NoFaceFound`, `FaceNotChosen`, `InvalidRequest`.
    """

    @property
    def thresholds(self) -> tuple[float, float]:
        """The cosines of two vectors from which faces count as one person's, and as those of people who look alike."""

    def find(self, wish: FaceReference) -> Any:
        """The `Face` that is meant."""

    def points(self, wish: FaceReference) -> Any:
        """68 points [68, 3] of the face that is meant, in its picture's pixels."""

    def vector(self, wish: FaceReference) -> Any:
        """ArcFace's vector [512] of the face that is meant; the cosine of two says whether they are one person."""

    def parts(self, wish: FaceReference) -> tuple[Any, Any]:
        """Which part each pixel of the upright face shows [512, 512], and the matrix [2, 3] from the picture to it."""

    def all(self, image: Image.Image) -> list[Any]:
        """Every `Face` of a picture, largest first."""

    def upright(self, wish: FaceReference) -> tuple[Image.Image, Any]:
        """The face that is meant on 512x512, and the matrix [2, 3] from the picture to there."""

    def parts_of(self, face: Image.Image) -> Any:
        """Which part each pixel of an upright face shows [512, 512]."""


class MapMaker(Protocol):
    """What draws maps that need weights."""

    def map(self, image: Image.Image, kind: str) -> Image.Image:
        """The map of this type of a picture, as large; `InvalidRequest` where it shows nothing of the kind."""


class Segmenter(Protocol):
    """Turns points and boxes into masks; prompts and segments are those of `app.imaging.prompts` and `.segments`."""

    def segment(self, image: Image.Image, prompts: Any) -> list[Any]:
        """A `Segment` for each guess at what points or one box mean, three at most, or for each of several boxes."""

    def everything(self, image: Image.Image) -> list[Any]:
        """A `Segment` for each thing of a picture; `InvalidRequest` where the model must be told where to look."""


class Eraser(Protocol):
    """Fills a hole with what could lie behind it."""

    def __call__(self, image: Image.Image, hole: Image.Image) -> Image.Image:
        """The picture with what is white in `hole` (PIL L, black and white) filled; as large."""


class Upscaler(Protocol):
    """Makes a picture larger; grids and answers are those of `app.imaging.tiles`."""

    def __call__(
        self,
        image: Image.Image,
        size: tuple[int, int],
        *,
        tile_size: int | None = None,
        denoise_strength: float | None = None,
        on_tile: Callable[[int, int], None] = ...,
    ) -> Any:
        """An `Enlarged` with the picture (PIL RGB) at this size; `on_tile` hears part i of n, and may raise."""


class FaceRestorer(Protocol):
    """Draws a face anew from what is left of it."""

    def __call__(self, face: Image.Image, seed: int) -> Image.Image:
        """The upright face (PIL RGB, 512x512) restored, as large; the same seed answers the same bytes."""


class Tagger(Protocol):
    """Names what pictures show; labels are those of `app.imaging.tags`."""

    @property
    def labels(self) -> Sequence[Any]:
        """What each score is about."""

    def scores(self, images: Iterator[Image.Image]) -> Iterator[Any]:
        """A score for each label [labels] of each picture in turn; pictures are taken several at a time."""


class Editor(Protocol):
    """A model that edits pictures by instructions and can be asked about pictures."""

    def __call__(self, **arguments: Any) -> Any:
        """The answer's `.images` hold one PIL RGB picture, at the size that the model works at."""

    def say(
        self, text: str, images: Sequence[Image.Image] = (), *, system: str, generator: Any, max_new_tokens: int = 512
    ) -> str:
        """The model's answer to a text about pictures; raises `JobCancelled` between two of its words."""


class Trainer(Protocol):
    """A model with a LoRA on it that learns; its files lie in folders that the caller names."""

    def prepare(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        class_images: Sequence[Image.Image] = (),
        class_prompt: str = "",
        sources: Sequence[Image.Image] = (),
    ) -> None:
        """Cut the pictures to their buckets and remember what the networks in front make of them and their texts.

        `sources` are what the pictures were made from, one for each, or none.
        The kinds of `class_prompt` (`kinds_of`) are those of the class pictures, in turn.
        """

    def step(self, number: int) -> float:
        """Learn from the batch of this number (from 1) while the device is held; answers its loss."""

    def save(self, folder: Path) -> None:
        """Write the LoRA's weights and the optimiser's state as they are after the last step."""

    def restore(self, folder: Path) -> None:
        """Be again as when this was saved."""

    def draw(self, **arguments: Any) -> Image.Image:
        """A picture with the LoRA as it is now, by diffusers' argument names."""

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the LoRA as a safetensors file with kohya's names."""
