"""The vocabulary of requests: each name, its limits and its description, said once.

A capability writes `strength: Strength = 0.6`; the REST schema, the form, the shell flag and the documentation
read the same field. `kind` tells a face which widget or which kind of input a field needs; where it is absent the
type alone decides (a bounded number is a slider, a Literal a choice, a bool a tick).

Pictures stand in a Request as references (`ImageReference`), never as pixels: a face stores what it was given first.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

SEED_LIMIT = 2**32

ImageReference = Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{26}$")]
"""The opaque id of a stored picture, as `POST /api/v1/images` answers it."""


def field(
    description: str, *, kind: str | None = None, of: str | None = None, only_with: str | None = None, **limits: Any
) -> Any:
    """A pydantic field with a description, an optional face `kind`, and pydantic's own limits.

    `of` names the field of the picture in which this one chooses something; `only_with` the one without which it says
    nothing.
    """
    extra = {name: value for name, value in (("kind", kind), ("of", of), ("only_with", only_with)) if value}
    return Field(description=description, json_schema_extra=extra or None, **limits)


class WeightedModel(BaseModel):
    """An installed addition to a model and how strongly it acts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Id of the addition, as `eis models list` prints it.", min_length=1, max_length=200)
    weight: float = Field(1.0, ge=-4, le=4, description="Strength; 1 as trained, 0 none.")


SchedulerName = Literal[
    "DDIM",
    "DDPM",
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Karras",
    "DPM++ SDE",
    "DPM++ SDE Karras",
    "DPM2",
    "DPM2 a",
    "Euler",
    "Euler a",
    "Heun",
    "LCM",
    "LMS",
    "PNDM",
    "TCD",
    "UniPC",
]

_ADDITION = re.compile(r"<(lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
_EDITING = re.compile(r"\[[^\[\]|]*\||\|[^\[\]|]*\]|:\s*(\d+\.?\d*|\.\d+)\s*\]")


def refuse_foreign_syntax(text: str | None) -> str | None:
    """The text itself; `ValueError` where it holds what other programs read as an instruction and we as words."""
    plain = re.sub(r"\\.", "", text or "", flags=re.DOTALL)
    if _ADDITION.search(plain):
        raise ValueError("a tag like <lora:name:0.8> would be read as words; name the LoRA and its weight in `loras`")
    if _EDITING.search(plain):
        raise ValueError(
            "[from:to:when] and [one|other] (prompt editing) are not served and would be read as words; "
            "write what the whole picture shows"
        )
    return text


Prompt = Annotated[
    str,
    field(
        "What the picture shows, in plain words; `(word:1.2)` weighs a word, `[word]` lessens it.",
        kind="prompt",
        max_length=10_000,
    ),
    AfterValidator(refuse_foreign_syntax),
]
NegativePrompt = Annotated[
    str | None,
    field(
        "What the picture must not show; null: nothing, said as the model was trained to hear it (SDXL: zeros). An "
        "empty text is encoded as a text, as diffusers does.",
        kind="prompt",
        max_length=10_000,
    ),
    AfterValidator(refuse_foreign_syntax),
]
Model = Annotated[
    str, field("Id of the model; `auto` is the best installed one.", kind="model", min_length=1, max_length=200)
]
Loras = Annotated[
    tuple[WeightedModel, ...], field("LoRAs put on the model, each with its weight.", kind="loras", max_length=8)
]
TextualInversions = Annotated[
    tuple[str, ...],
    field("Textual inversions to load; their tokens then stand in the prompt.", kind="embeddings", max_length=16),
]
Scheduler = Annotated[
    SchedulerName | None, field("Noise scheduler by its common name; null: what the model's row recommends.")
]
Steps = Annotated[int | None, field("Number of denoising steps; null: what the model's row recommends.", ge=1, le=150)]
GuidanceScale = Annotated[
    float | None,
    field("How closely the prompt is followed; null: what the model's row recommends.", ge=0, le=30),
]
ClipSkip = Annotated[
    int | None,
    field("Layers skipped at the end of the text encoder, as diffusers counts them; null: none.", ge=0, le=11),
]
Seed = Annotated[
    int | None,
    field(
        "Start of the noise; picture n has seed + n. null: drawn when the job is accepted.",
        kind="seed",
        ge=0,
        lt=SEED_LIMIT,
    ),
]
ImagesPerPrompt = Annotated[int, field("How many pictures to make.", ge=1, le=16)]
Width = Annotated[
    int | None, field("Width in pixels; null: the model's own.", kind="size", ge=64, le=4096, multiple_of=8)
]
Height = Annotated[
    int | None, field("Height in pixels; null: the model's own.", kind="size", ge=64, le=4096, multiple_of=8)
]
Strength = Annotated[float, field("How much of the picture is made anew: near 0 keeps it, 1 ignores it.", gt=0, le=1)]
RepaintStrength = Annotated[
    float | None,
    field(
        "How much of the masked part is made anew: near 0 keeps it, 1 ignores it; null: 0.99, or 1 where that would "
        "leave out one of few steps.",
        gt=0,
        le=1,
    ),
]
InitImage = Annotated[ImageReference, field("The picture to start from.", kind="image")]
MaskImage = Annotated[
    ImageReference, field("The mask, as large as the picture: white is repainted, black is kept.", kind="mask")
]
MaskPadding = Annotated[
    int | None,
    field(
        "Pixels kept around the mask when working on its part of the picture; null: the whole picture.", ge=0, le=512
    ),
]
MaskBlur = Annotated[
    int, field("Pixels over which the mask's edge fades, inwards: nothing outside the mask changes.", ge=0, le=64)
]
Overlay = Annotated[
    bool,
    field("Lay the repainted part over the picture; false: the model's own picture of the part it worked on, whole."),
]
NewWidth = Annotated[
    int | None,
    field(
        "Width of the result in pixels; null: the picture's own, or what `height` gives in its shape.",
        ge=64,
        le=4096,
        multiple_of=8,
    ),
]
NewHeight = Annotated[
    int | None,
    field(
        "Height of the result in pixels; null: the picture's own, or what `width` gives in its shape.",
        ge=64,
        le=4096,
        multiple_of=8,
    ),
]
Seam = Annotated[
    int, field("Pixels of the picture's edge that fade into what is new; 0 keeps every pixel of it.", ge=0, le=256)
]
Margin = Annotated[int, field("Pixels to add on this side.", ge=0, le=2048)]
VaeTiling = Annotated[bool, field("Decode the picture in tiles: less memory for large pictures.")]
SecondPassScale = Annotated[
    float | None,
    field("Enlarge the first result by this factor and refine it in a second pass; null: no second pass.", ge=1, le=4),
]
SecondPassStrength = Annotated[float, field("How much of the enlarged picture the second pass makes anew.", gt=0, le=1)]
SecondPassSteps = Annotated[
    int | None, field("Denoising steps of the second pass; null: as many as the first.", ge=1, le=150)
]
