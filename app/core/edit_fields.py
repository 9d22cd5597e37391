"""The vocabulary of wishes that say what to change: each name, its limits and its description, said once."""

from typing import Annotated

from pydantic import AfterValidator

from app.core.fields import ImageReference, field, refuse_foreign_syntax

MOST_INSTRUCTIONS, MOST_SCALES = 8, 4


def require_words(text: str) -> str:
    """The text itself; `ValueError` where it says nothing."""
    if not text.strip():
        raise ValueError("the instruction is empty: say what to change")
    return text


Instruction = Annotated[
    str,
    field("What to change, as an instruction: make it winter, add glasses.", kind="prompt", max_length=10_000),
    AfterValidator(refuse_foreign_syntax),
    AfterValidator(require_words),
]
MoreInstructions = Annotated[
    tuple[Annotated[str, field("An instruction."), AfterValidator(require_words)], ...],
    field(
        "Further instructions. Each is carried out on the picture as it was given, and what each changed is merged: "
        "nothing is decoded twice. Where two change the same place, the later shows.",
        max_length=MOST_INSTRUCTIONS - 1,
    ),
]
EditedImage = Annotated[ImageReference, field("The picture to change.", kind="image")]
ImageGuidance = Annotated[
    float,
    field(
        "How closely the picture is kept: 1 gives way to the instruction most. Has no effect without guidance.",
        ge=1,
        le=10,
    ),
]
GuidanceScales = Annotated[
    tuple[Annotated[float, field("A scale.", gt=1, le=30)], ...],
    field("For the undecided: several values of guidance_scale, one picture for each.", max_length=MOST_SCALES),
]
ImageGuidanceScales = Annotated[
    tuple[Annotated[float, field("A scale.", ge=1, le=10)], ...],
    field("Several values of image_guidance_scale, one picture for each pair of the two.", max_length=MOST_SCALES),
]
WholePadding = Annotated[
    int | None,
    field("Pixels kept around the mask when only its part is worked on; null: the whole picture is.", ge=0, le=512),
]
