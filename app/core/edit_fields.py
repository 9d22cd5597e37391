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
QuotingInstruction = Annotated[
    str,
    field("What to change, as an instruction; words in quotes are written letter by letter.", kind="prompt",
          max_length=2_000),
    AfterValidator(require_words),
]  # fmt: skip
Unwanted = Annotated[
    str | None, field("What guidance leads away from; null: nothing.", kind="prompt", max_length=2_000)
]
FurtherImages = Annotated[
    tuple[ImageReference, ...],
    field(
        "Up to two further pictures that the instruction may take from: it calls them Picture 2 and Picture 3 (the one "
        "to change is Picture 1). For models that were trained on several: Qwen-Image-Edit 2509 and 2511.",
        kind="images",
        max_length=2,
    ),
]
TrueGuidance = Annotated[
    float | None,
    field(
        "How far guidance leads away from `negative_prompt`; 1: no guidance, half the time for each step; null: what "
        "the model's row recommends, or that of a LoRA.",
        ge=1,
        le=20,
    ),
]
EditStrength = Annotated[
    float, field("With a mask: how much of the masked part is made anew; near 0 keeps it, 1 ignores it.", gt=0, le=1)
]
Align = Annotated[bool, field("Measure how far the edited picture slid and grew against the picture, and lay it back.")]
PasteChanges = Annotated[bool, field("Paste only what changed into the picture, so that every other byte of it stays.")]
PasteGrow = Annotated[
    int, field("Pixels around what changed that are pasted too.", only_with="paste_changes", ge=0, le=64)
]
PasteFeather = Annotated[
    int, field("Pixels over which what is pasted fades into the picture.", only_with="paste_changes", ge=0, le=64)
]
SizeLevel = Annotated[
    int,
    field("Side in pixels of the square with as many pixels as the model works on; the result has the picture's size.",
          ge=256, le=1536, multiple_of=16),
]  # fmt: skip
Thinking = Annotated[
    bool, field("Let the model rewrite the instruction first, into plain single edits; the answer states them.")
]
Reflection = Annotated[
    bool,
    field("Let the model judge its picture, and correct it or try anew while it finds fault; every judgement is told."),
]
MaxTries = Annotated[int, field("How many pictures reflection makes at most.", ge=1, le=5)]
