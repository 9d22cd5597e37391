"""The vocabulary of wishes about faces and picture prompts: each name, its limits and its description, said once."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.core.fields import ImageReference, WeightedModel, field

IDENTITY_ADDITION = "addition"
"""Kind of a field that names a model which goes on the request's model, or serves alone where the request has none;
`auto` is the best installed one that fits."""


def addition(what: str) -> Any:
    """The field of a model that goes on the request's model."""
    return field(
        f"Id of the {what}; `auto` is the best installed one that fits the model.",
        kind=IDENTITY_ADDITION,
        min_length=1,
        max_length=200,
    )


FaceImage = Annotated[ImageReference, field("A picture of the person whose face is kept.", kind="image")]
OwnFaceImage = Annotated[
    ImageReference | None,
    field("A picture of the person whose face is kept; null: the one in `image` itself.", kind="image"),
]
PartMaskImage = Annotated[
    ImageReference | None,
    field("The part to change, as large as the picture: white is repainted; null: the whole picture.", kind="mask"),
]
FaceImages = Annotated[
    tuple[ImageReference, ...],
    field("More pictures of the same person, one face in each.", kind="images", max_length=7),
]
FaceIndex = Annotated[
    int | None,
    field(
        "Which face of `face_image`, largest first from 0; null: the only one.",
        kind="face",
        of="face_image",
        ge=0,
        le=99,
    ),
]
FaceImagesIndex = Annotated[
    tuple[Annotated[int, Field(ge=0, le=99)] | None, ...],
    field(
        "Which face of each of `face_images`, largest first from 0; null, and an empty list: the only one.",
        kind="faces",
        of="face_images",
        max_length=7,
    ),
]
PoseFaceIndex = Annotated[
    int | None,
    field(
        "Which face of `pose_image`, largest first from 0; null: the only one.",
        kind="face",
        of="pose_image",
        ge=0,
        le=99,
    ),
]
FaceBox = Annotated[
    str | None,
    field(
        "Which face of `face_image`, as left,top,right,bottom in its pixels; null: the only one.",
        pattern=r"^\s*-?\d+(\.\d+)?(\s*,\s*-?\d+(\.\d+)?){3}\s*$",
        max_length=80,
    ),
]
TargetFaceIndex = Annotated[
    int | None,
    field(
        "Which face of `image` is changed, largest first from 0; null: the only one.",
        kind="face",
        of="image",
        ge=0,
        le=99,
    ),
]
SeenImage = Annotated[ImageReference, field("The picture to look at.", kind="image")]
DrawFaces = Annotated[bool, field("Answer the picture too, with its faces framed and numbered.")]
FacesModel = Annotated[
    str,
    field("Id of a face pack, or of a model that has one as its part; `auto` is the best pack that is installed.",
          kind=IDENTITY_ADDITION, min_length=1, max_length=200),
]  # fmt: skip
PulidModel = Annotated[str, addition("PuLID weights")]
InstantIdModel = Annotated[str, addition("InstantID weights")]
EcomIdModel = Annotated[str, addition("EcomID weights")]
IpAdapterModel = Annotated[str, addition("IP-Adapter")]
PulidMode = Annotated[
    Literal["standard", "lightning", "fidelity"] | None,
    field(
        "What steps, guidance, scheduler and the fields below default to: 30 steps, 4 (for few-step models), or 50 "
        "with the face first; null: lightning where the model's row recommends few steps, else standard.",
    ),
]
IdScale = Annotated[float | None, field("How strongly the face acts; null: what the mode says.", ge=0, le=5)]
NumZero = Annotated[
    int | None,
    field("Empty tokens beside the face's: more leave the prompt more say; null: what the mode says.", ge=0, le=256),
]
Ortho = Annotated[
    Literal["off", "ortho", "ortho_v2"] | None,
    field(
        "How the face makes way for the prompt: not, everywhere, or where a place does not look at the face; null: "
        "what the mode says.",
    ),
]
IdStart = Annotated[float, field("Share of the way from noise to picture from which the face acts.", ge=0, le=1)]
IdEnd = Annotated[float, field("Share of the way from noise to picture until which the face acts.", ge=0, le=1)]
IpStart = Annotated[float, field("Share of the way from noise to picture from which the pictures act.", ge=0, le=1)]
IpEnd = Annotated[float, field("Share of the way from noise to picture until which the pictures act.", ge=0, le=1)]
EcomIdMethod = Annotated[
    Literal["fidelity", "style", "neutral"],
    field("fidelity keeps the face closest, style leaves the prompt more say, neutral does neither."),
]
ControlScale = Annotated[float, field("How strictly the keypoints are followed.", ge=0, le=2)]
FaceAdapterScale = Annotated[
    float, field("How strongly the face acts; above 0.8 words lose.", title="Strength of the face", ge=0, le=2)
]
IpScale = Annotated[float, field("How strongly the picture prompt acts; above 0.6 words lose.", ge=0, le=2)]
PoseImage = Annotated[
    ImageReference | None,
    field("A picture whose face is where the new face is to be; null: as in `face_image`.", kind="image"),
]
Keypoints = Annotated[
    str | None,
    field(
        "Where the face is to be: x,y of both eyes, the nose and both mouth corners, in the result's pixels, left "
        "first; null: as in a picture.",
        pattern=r"^\s*\d+(\.\d+)?\s*,\s*\d+(\.\d+)?([\s;]+\d+(\.\d+)?\s*,\s*\d+(\.\d+)?){4}\s*$",
        max_length=200,
    ),
]
EnhanceNonFace = Annotated[
    bool, field("Let the face and its keypoints act around the face only, so that the rest follows the words.")
]
Pose = Literal["front", "left", "right", "up", "down"]
Poses = Annotated[
    tuple[Pose, ...],
    field("Which ways the head looks, one picture each; left is the picture's left.", min_length=1, max_length=16),
]
PromptImages = Annotated[
    tuple[ImageReference, ...], field("The pictures that serve as a prompt.", kind="images", min_length=1, max_length=8)
]
PromptWeights = Annotated[
    tuple[float, ...],
    field("A weight for each picture; empty: the pictures are looked at as one.", max_length=8),
]
FurtherPromptImages = Annotated[
    tuple[ImageReference, ...],
    field("Pictures that serve as a prompt beside the words, looked at as one.", kind="images", max_length=4),
]
PromptMasks = Annotated[
    tuple[ImageReference, ...],
    field(
        "A mask for each picture, in the result's proportions: white where it acts; empty: everywhere.",
        kind="images",
        max_length=8,
    ),
]
Blocks = Annotated[
    Literal["all", "style", "layout", "style and layout"],
    field("Which of SDXL's blocks look at the picture: all, those that decide on style, those on layout."),
]
ShortcutScale = Annotated[
    float,
    field(
        "FaceID plus v2 only: how much the look of the face adds to who it is; above 1 it looks more like its picture.",
        ge=0,
        le=3,
    ),
]
ControlImages = Annotated[
    tuple[ImageReference, ...],
    field(
        "Control pictures beside the face (edges, depth, a body's pose), in the result's proportions.",
        kind="images",
        max_length=3,
    ),
]
ControlNets = Annotated[
    tuple[WeightedModel, ...],
    field("For each control picture the ControlNet that follows it, and its weight.", kind="controlnets", max_length=3),
]
Portion = Annotated[float, Field(ge=0, le=1)]
ControlStarts = Annotated[
    tuple[Portion, ...],
    field("For each control picture the share of the way from which it is followed; empty: 0.", max_length=3),
]
ControlEnds = Annotated[
    tuple[Portion, ...],
    field("For each control picture the share of the way until which it is followed; empty: 1.", max_length=3),
]
