"""The vocabulary of wishes about tags: each name, its limits and its description, said once."""

from typing import Annotated

from pydantic import StringConstraints

from app.core.fields import ImageReference, field

MOST_PICTURES = 256

TagWords = Annotated[str, StringConstraints(min_length=1, max_length=200)]
TaggedImages = Annotated[
    tuple[ImageReference, ...],
    field("Further pictures, tagged in batches with the first.", kind="images", max_length=MOST_PICTURES - 1),
]
Tagger = Annotated[
    str,
    field(
        "Id of what names the contents; `auto` is the best that is installed, pocket's own tagger where none is.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
Threshold = Annotated[float, field("Least score of a tag; lower lets in more, and more wrong ones.", ge=0, le=1)]
CharacterThreshold = Annotated[float, field("Least score of a character by name.", ge=0, le=1)]
MeanCut = Annotated[
    bool,
    field("Cut where each picture's scores leave the widest gap (MCut) instead of at `threshold`."),
]
CharacterMeanCut = Annotated[
    bool, field("The same for characters, instead of `character_threshold`; never below 0.15.")
]
Underscores = Annotated[bool, field("Keep the underscores of tags; faces made of letters (`^_^`) always keep theirs.")]
EscapeBrackets = Annotated[bool, field("Write \\( and \\) for brackets, which weigh words in a prompt.")]
Exclude = Annotated[tuple[TagWords, ...], field("Tags that are left out.", max_length=500)]
Prepend = Annotated[
    tuple[TagWords, ...], field("Words that stand first in each caption, such as a trigger word.", max_length=100)
]
RatingInCaption = Annotated[bool, field("End the caption with the rating.")]
