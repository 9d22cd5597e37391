"""The vocabulary of wishes that make a picture larger or its faces clear: names, limits and descriptions."""

from typing import Annotated

from pydantic import Field

from app.core.fields import ImageReference, field

LANCZOS, GENERAL = "lanczos", "real-esrgan-general-x4v3"
"""The upscaler without weights, and the one that has a sibling to be mixed with."""
NO_WEIGHTS = (
    "Made larger by Lanczos' filter (no weights): smooth, and with no detail that was not there. "
    f"`eis models pull {GENERAL}` fetches a network that draws detail."
)

EnhanceImage = Annotated[ImageReference, field("The picture to make larger or clearer.", kind="image")]
Scale = Annotated[float, field("How many times as wide and high the result is.", ge=1, le=8)]
UpscalerModel = Annotated[
    str,
    field(
        "Id of what makes the picture larger; `auto` is the best that is installed, Lanczos where none is.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
TileSize = Annotated[
    int | None,
    field(
        "Pixels of the picture's side that are worked on at once; null: as the device's free memory allows.",
        ge=32,
        le=4096,
    ),
]
DenoiseStrength = Annotated[
    float | None,
    field(
        "real-esrgan-general-x4v3 only: how much noise goes, from 0 (grain is kept) to 1; null: 1, as trained.",
        ge=0,
        le=1,
    ),
]
RestorerModel = Annotated[
    str,
    field(
        "Id of what restores faces; `auto` is the best that is installed.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
PartsModel = Annotated[
    str,
    field(
        "Id of the face pack that finds the faces and names their parts; `auto` is the best that is installed.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
WhichFaces = Annotated[
    tuple[Annotated[int, Field(ge=0, le=99)], ...],
    field("Which faces of `image`, largest first from 0; an empty list: all of them.", kind="faces", max_length=100),
]
Blend = Annotated[float, field("How much of the restored face is taken: 0 leaves the picture as it is.", ge=0, le=1)]
FaceScale = Annotated[
    float, field("How many times as wide and high the result is; what is not a face is the upscaler's.", ge=1, le=8)
]
TileModel = Annotated[
    str | None,
    field(
        "Id of the tile ControlNet that holds each part to the picture; `auto` is the best installed one that fits the "
        "model; null, and where none is installed: none.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
TileScale = Annotated[float, field("How strictly the tile ControlNet holds to the picture.", ge=0, le=2)]
DiffusionScale = Annotated[float, field("How many times as wide and high the result is.", ge=1, le=4)]
DiffusionTile = Annotated[
    int | None,
    field(
        "Side of the parts that the model works on, in pixels of the result; null: the size that it was trained at.",
        ge=64,
        le=2048,
        multiple_of=8,
    ),
]
TileOverlap = Annotated[
    int, field("Pixels over which neighbouring parts fade into each other; at most half a part.", ge=0, le=512)
]
