"""PuLID: pictures of a person from one photograph, a picture changed with the person kept, a face on another's picture.

What a null field means follows the mode and the installed base, by the authors' own settings for each.
"""

from typing import Any

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
from app.core.further_controls import (
    FOR_PROMPT_IMAGES,
    FurtherControls,
    PicturePrompted,
    control_arguments,
    controls_of,
    picture_prompt_of,
    require_controls,
)
from app.core.identity import IdentityRequest, likeness, references
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
from app.core.pulid_settings import advise, identity_of
from app.imaging.face_paste import require_face_in_mask
from app.imaging.masks import fade_inwards


class PulidRequest(IdentityRequest):
    """What every wish to PuLID may say."""

    pulid_model: PulidModel = "auto"
    mode: PulidMode = None
    id_scale: IdScale = None
    num_zero: NumZero = None
    ortho: Ortho = None
    id_start: IdStart = 0.0
    id_end: IdEnd = 1.0


class PulidGenerateRequest(PulidRequest, PicturePrompted, FurtherControls):
    """A person, and what the picture shows: in words, and in pictures that serve as a prompt or are followed."""

    width: Width = None
    height: Height = None


class PulidEditRequest(PulidRequest, PicturePrompted):
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


def generate(request: PulidGenerateRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    faces = references(request, context)
    nets, drawings = controls_of(request, context)
    attachments = [identity_of(request, faces), *picture_prompt_of(request, context), *nets]
    more = request.additions() | {"attachments": attachments}
    with context.borrow(request.model, task="text-to-image", **more) as pipeline:
        width, height = size_for(request.width, request.height, pipeline)
        images = draw_each(request, context, pipeline, width=width, height=height, **control_arguments(drawings))
    with context.faces(request.pulid_model) as reader:
        data = likeness(reader, faces[0], images)
    return Result(images=images, seeds=request.seeds, data=data)


def edit(request: PulidEditRequest, context: Context) -> Result:
    """The picture made anew in part, or repainted where the mask is white; the face is `face_image`'s or its own."""
    image = context.image(request.image)
    faces = references(request, context, own=request.image)
    identity = [identity_of(request, faces), *picture_prompt_of(request, context)]
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
    check=require_controls,
    additions_for=FOR_PROMPT_IMAGES,
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
    additions_for=FOR_PROMPT_IMAGES,
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
