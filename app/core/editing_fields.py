"""What wishes to instruction editors say beside the usual words."""

from typing import Annotated

from pydantic import AfterValidator

from app.core.fields import ImageReference, field


def require_words(text: str) -> str:
    """The text itself; `ValueError` where it says nothing."""
    if not text.strip():
        raise ValueError("an instruction says what to change; this one is empty")
    return text


Instruction = Annotated[
    str,
    field("What to change, as an instruction; words in quotes are written letter by letter.", kind="prompt",
          max_length=2_000),
    AfterValidator(require_words),
]  # fmt: skip
Unwanted = Annotated[
    str | None, field("What guidance leads away from; null: nothing.", kind="prompt", max_length=2_000)
]
EditedImage = Annotated[ImageReference, field("The picture to change.", kind="image")]
Align = Annotated[bool, field("Measure how far the edited picture slid and grew against the picture, and lay it back.")]
PasteChanges = Annotated[bool, field("Paste only what changed into the picture, so that every other byte of it stays.")]
PasteGrow = Annotated[int, field("Pixels around what changed that are pasted too.", ge=0, le=64)]
PasteFeather = Annotated[int, field("Pixels over which what is pasted fades into the picture.", ge=0, le=64)]
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
