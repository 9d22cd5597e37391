"""PuLID: pictures of a person from one photograph, a picture changed with the person kept, a face on another's picture.

What a null field means follows the mode and the installed base, by the authors' own settings for each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.attachments import FaceReference, PulidIdentity
from app.core.capability import Capability, Context, Result
from app.core.drawing import draw_each, make_anew, repaint, require_work, size_for
from app.core.face_swap import swap
from app.core.fields import (
    Height,
    InitImage,
    MaskBlur,
    MaskPadding,
    NewHeight,
    NewWidth,
    Prompt,
    Strength,
    Width,
)
from app.core.identity import IdentityRequest, first_stated, likeness, references
from app.core.identity_fields import (
    IdEnd,
    IdScale,
    IdStart,
    NumZero,
    Ortho,
    OwnFaceImage,
    PartMaskImage,
    PulidMode,
    PulidModel,
    TargetFaceIndex,
)
from app.imaging.face_paste import require_face_in_mask
from app.imaging.masks import fade_inwards

MODES: dict[str, dict[str, Any]] = {
    "standard": {"num_inference_steps": 30, "guidance_scale": 7.0, "scheduler": "DPM++ 2M Karras", "id_scale": 0.8,
                 "num_zero": 20, "ortho": "ortho_v2"},
    "lightning": {"num_inference_steps": 4, "guidance_scale": 1.2, "scheduler": "DPM++ 2M", "id_scale": 0.8,
                  "num_zero": 8, "ortho": "ortho_v2"},
    "fidelity": {"num_inference_steps": 50, "guidance_scale": 5.0, "scheduler": "DPM++ 2M Karras", "id_scale": 1.0,
                 "num_zero": 8, "ortho": "ortho_v2"},
}  # fmt: skip
STATED = {"id_scale": float, "num_zero": int, "ortho": str}
"""What a row of weights may state of itself in its options."""


class PulidRequest(IdentityRequest):
    """What every wish to PuLID may say."""

    pulid_model: PulidModel = "auto"
    mode: PulidMode = None
    id_scale: IdScale = None
    num_zero: NumZero = None
    ortho: Ortho = None
    id_start: IdStart = 0.0
    id_end: IdEnd = 1.0


class PulidGenerateRequest(PulidRequest):
    """A person, and what the picture shows."""

    width: Width = None
    height: Height = None


class PulidEditRequest(PulidRequest):
    """A picture to change by words, whole or where a mask is white; the person in it stays who it is."""

    image: InitImage
    face_image: OwnFaceImage = None
    mask_image: PartMaskImage = None
    strength: Strength = 0.6
    padding_mask_crop: MaskPadding = 32
    mask_blur: MaskBlur = 4
    width: NewWidth = None
    height: NewHeight = None


class PulidSwapRequest(PulidRequest):
    """A picture, and the person whose face goes on it."""

    prompt: Prompt = "portrait of a person"
    image: InitImage
    target_face_index: TargetFaceIndex = None
    strength: Strength = 0.6


def advise(values: Mapping[str, Any], base: Any, added: Mapping[str, Any]) -> dict[str, Any]:
    """What null fields mean: the mode's settings; a base or weights with settings of their own keep those."""
    recommended = base.recommended
    is_quick = recommended is not None and recommended.is_for_few_steps
    mode = values.get("mode") or ("lightning" if is_quick else "standard")
    own: dict[str, Any] = {"mode": mode}
    if base.embedded and recommended:
        own |= {"scheduler": recommended.scheduler, "guidance_scale": recommended.guidance_scale}
    options = added["pulid_model"].options
    own |= {name: kind(options[name]) for name, kind in STATED.items() if name in options}
    return first_stated(own, MODES[mode])


def identity_of(request: PulidRequest, faces: Sequence[FaceReference]) -> PulidIdentity:
    """The wish's face as it is put on a model."""
    return PulidIdentity(
        request.pulid_model,
        request.id_start,
        request.id_end,
        faces=faces,
        id_scale=request.id_scale,
        num_zero=request.num_zero,
        ortho=request.ortho,
    )


def generate(request: PulidGenerateRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    faces = references(request, context)
    more = request.additions() | {"attachments": [identity_of(request, faces)]}
    with context.borrow(request.model, task="text-to-image", **more) as pipeline:
        width, height = size_for(request.width, request.height, pipeline)
        images = draw_each(request, context, pipeline, width=width, height=height)
    with context.faces(request.pulid_model) as reader:
        data = likeness(reader, faces[0], images)
    return Result(images=images, seeds=request.seeds, data=data)


def edit(request: PulidEditRequest, context: Context) -> Result:
    """The picture made anew in part, or repainted where the mask is white; the face is `face_image`'s or its own."""
    image = context.image(request.image)
    faces = references(request, context, own=request.image)
    identity = [identity_of(request, faces)]
    if request.mask_image is None:
        images, notes = make_anew(request, context, image, identity)
    else:
        mask = context.mask(request.mask_image)
        if not request.face_image:
            with context.faces(request.pulid_model) as reader:
                require_face_in_mask(mask, reader.find(faces[0]).box)
        painted, sheet, notes = repaint(request, context, image, mask, identity)
        images = [sheet.lay_over(image, picture, fade_inwards(mask, request.mask_blur)) for picture in painted]
    with context.faces(request.pulid_model) as reader:
        data = likeness(reader, faces[0], images)
    return Result(images=images, seeds=request.seeds, data=data, notes=notes)


def swap_face(request: PulidSwapRequest, context: Context) -> Result:
    """The face of one person on the other's picture."""
    faces = references(request, context)
    return swap(request, context, request.pulid_model, faces, [identity_of(request, faces)])


def _capability(name: str, title: str, summary: str, request: Any, run: Any, task: str, **more: Any) -> Capability:
    return Capability(
        name=f"pulid/{name}",
        title=title,
        summary=summary,
        request=request,
        run=run,
        needs=(task,),
        additions={"pulid_model": "pulid"},
        advise=advise,
        group_title="PuLID",
        **more,
    )


PULID_GENERATE = _capability(
    "generate",
    "Generate",
    "Make pictures of a person from words and a photograph.",
    PulidGenerateRequest,
    generate,
    "text-to-image",
    example={"prompt": "a portrait of a person, smiling, blue background", "seed": 7},
)
PULID_EDIT = _capability(
    "edit",
    "Edit",
    "Change a picture by words and keep who is on it.",
    PulidEditRequest,
    edit,
    "image-to-image",
    check=require_work,
    example={"prompt": "a portrait of a person, yellow background", "seed": 7},
)
PULID_SWAP = _capability(
    "swap",
    "Face swap",
    "Put a person's face on another picture and keep every byte outside the face.",
    PulidSwapRequest,
    swap_face,
    "inpaint",
    check=require_work,
    example={"seed": 7},
)
