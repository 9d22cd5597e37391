"""The vocabulary of wishes with control pictures: each name, its limits and its description, said once.

Fields that hold a list have an entry for each control picture; one entry alone stands for all of them.
"""

from typing import Annotated, Literal, get_args

from app.core.fields import ImageReference, field

MOST_CONTROLS = 4

ControlType = Literal[
    "canny",
    "depth",
    "openpose",
    "lineart",
    "lineart_anime",
    "softedge",
    "scribble",
    "segmentation",
    "normal",
    "tile",
    "inpaint",
]
MapType = Literal[*get_args(ControlType), "color"]
Preprocess = Literal["auto", "on", "off"]

ControlImages = Annotated[
    tuple[ImageReference, ...],
    field(
        "The pictures that are followed, one for each ControlNet: maps, or pictures of which maps are drawn.",
        kind="images",
        min_length=1,
        max_length=MOST_CONTROLS,
    ),
]
ControlTypes = Annotated[
    tuple[ControlType, ...],
    field("What each control picture is a map of, or is made one of.", min_length=1, max_length=MOST_CONTROLS),
]
ControlModels = Annotated[
    tuple[Annotated[str, field("An id.", min_length=1, max_length=200)], ...],
    field(
        "Id of each ControlNet; `auto` is the best installed one for the type and the model.",
        min_length=1,
        max_length=MOST_CONTROLS,
    ),
]
ControlScales = Annotated[
    tuple[Annotated[float, field("A scale.", ge=0, le=2)], ...],
    field("How strictly each control picture is followed.", min_length=1, max_length=MOST_CONTROLS),
]
ControlStarts = Annotated[
    tuple[Annotated[float, field("A share.", ge=0, le=1)], ...],
    field(
        "Share of the way from noise to picture from which each is followed.", min_length=1, max_length=MOST_CONTROLS
    ),
]
ControlEnds = Annotated[
    tuple[Annotated[float, field("A share.", ge=0, le=1)], ...],
    field(
        "Share of the way from noise to picture until which each is followed.", min_length=1, max_length=MOST_CONTROLS
    ),
]
ControlPictureOfLines = Annotated[
    ImageReference,
    field("The drawing to colour, or a picture of which the lines are drawn.", kind="image"),
]
LineModel = Annotated[
    str,
    field(
        "Id of the ControlNet for the lines of anime; `auto` is the best installed one that fits the model.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
LineScale = Annotated[float, field("How strictly the lines are followed.", ge=0, le=2)]
LineStart = Annotated[
    float, field("Share of the way from noise to picture from which the lines are followed.", ge=0, le=1)
]
LineEnd = Annotated[
    float, field("Share of the way from noise to picture until which the lines are followed.", ge=0, le=1)
]
LinePreprocess = Annotated[
    Preprocess, field("Whether the lines are drawn of the picture: auto unless it is a line drawing already.")
]
KeepLines = Annotated[bool, field("Lay the lines that were followed over the result, as dark as they were drawn.")]
AnimeClipSkip = Annotated[
    int | None,
    field(
        "Layers skipped at the end of the text encoder, as diffusers counts them; null: 1 for SD 1.5 (others call it "
        "CLIP skip 2), as anime checkpoints were trained, 0 for SDXL.",
        ge=0,
        le=11,
    ),
]
Preprocessing = Annotated[
    tuple[Preprocess, ...],
    field(
        "Whether a map is drawn of each control picture: auto unless it is one already.",
        min_length=1,
        max_length=MOST_CONTROLS,
    ),
]
StartImage = Annotated[ImageReference | None, field("A picture to start from; null: from noise alone.", kind="image")]
PartMask = Annotated[
    ImageReference | None,
    field("The part of the picture to repaint, as large: white is repainted; null: the whole picture.", kind="mask"),
]
StartStrength = Annotated[
    float | None,
    field(
        "How much of the picture is made anew: near 0 keeps it, 1 ignores it; null: 0.8, or 0.99 of a masked part.",
        gt=0,
        le=1,
    ),
]
MappedImage = Annotated[ImageReference, field("The picture of which a map is drawn.", kind="image")]
MapOf = Annotated[MapType, field("What the map shows.")]
LowThreshold = Annotated[int, field("Gradient from which an edge goes on, of canny maps.", ge=1, le=1000)]
HighThreshold = Annotated[int, field("Gradient at which an edge begins, of canny maps.", ge=1, le=1000)]
ReturnMaps = Annotated[bool, field("Answer the maps too, after the pictures.")]


def require_window(start: float, end: float) -> None:
    """`ValueError` where something is followed from a later moment than it ends."""
    if start >= end:
        raise ValueError(f"control_guidance_start {start:g} must lie before control_guidance_end {end:g}")
