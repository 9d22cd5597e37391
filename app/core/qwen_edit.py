"""Qwen-Image-Edit: a picture changed by an instruction, as a whole or in its masked part, with up to two more shown."""

from typing import Any

from PIL import Image

from app.core import edit_fields as fields
from app.core.capability import Capability, Context, Door, Editor, Request, Result
from app.core.control_fields import PartMask
from app.core.drawing import sheet_for
from app.core.fields import (
    SEED_LIMIT,
    ImagesPerPrompt,
    Loras,
    MaskBlur,
    Model,
    NewHeight,
    NewWidth,
    Overlay,
    Seed,
    Steps,
)
from app.core.staying_put import stay_put
from app.errors import InvalidRequest
from app.imaging.align import undo_resize
from app.imaging.masks import fade_inwards, white_box
from app.imaging.sizes import LARGEST_WORK, Size, require_a_step, require_pixels, round_near

TASK, PLUS_TASK = "qwen-edit", "qwen-edit-plus"
MULTIPLE = 16


class QwenEditRequest(Request):
    """A picture, what to change about it, and what else the model is shown."""

    prompt: fields.Instruction
    image: fields.EditedImage
    further_images: fields.FurtherImages = ()
    mask_image: PartMask = None
    negative_prompt: fields.Unwanted = None
    model: Model = "auto"
    loras: Loras = ()
    num_inference_steps: Steps = None
    true_cfg_scale: fields.TrueGuidance = None
    strength: fields.EditStrength = 1.0
    padding_mask_crop: fields.WholePadding = None
    mask_blur: MaskBlur = 4
    overlay: Overlay = True
    width: NewWidth = None
    height: NewHeight = None
    align: fields.Align = True
    paste_changes: fields.PasteChanges = False
    paste_grow: fields.PasteGrow = 8
    paste_feather: fields.PasteFeather = 8
    num_images_per_prompt: ImagesPerPrompt = 1
    seed: Seed = None

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: seed, seed + 1, ... (modulo 2**32)."""
        return [((self.seed or 0) + number) % SEED_LIMIT for number in range(self.num_images_per_prompt)]


def check(request: QwenEditRequest, door: Door) -> None:
    """What is asked for goes together, and the model takes as many pictures as there are."""
    if request.further_images and not door.serves(PLUS_TASK):
        raise InvalidRequest(
            f"The model {request.model!r} takes one picture; Qwen-Image-Edit 2509 and 2511 take up to three.",
            field="further_images",
        )
    if request.mask_image:
        white_box(door.mask(request.mask_image))
        require_a_step(request.num_inference_steps, request.strength)
        if request.width or request.height:
            raise InvalidRequest("A masked picture keeps its size: leave out width and height.", field="width")
        if request.further_images:
            raise InvalidRequest("A masked part is painted from one picture alone.", field="further_images")
        if request.paste_changes:
            raise InvalidRequest("A mask keeps all around it: leave out paste_changes.", field="paste_changes")
    elif asked := size_asked_for(request, door.size(request.image)):
        if any(side % MULTIPLE for side in (request.width or 0, request.height or 0)):
            raise InvalidRequest(f"width and height must be multiples of {MULTIPLE} for this model.", field="width")
        require_pixels(asked, LARGEST_WORK)


def size_asked_for(request: QwenEditRequest, own: Size) -> Size | None:
    """(width, height) in whole cells, a side that is left out in the picture's shape; None where none is asked for."""
    if not (request.width or request.height):
        return None
    width = request.width or own[0] * (request.height or 0) / own[1]
    height = request.height or own[1] * width / own[0]
    return round_near(width, MULTIPLE), round_near(height, MULTIPLE)


def run(request: QwenEditRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    original = context.image(request.image)
    with context.editor(request.model, task=TASK, loras=request.loras) as editor:
        if request.mask_image:
            return repaint(request, context, editor, original, context.mask(request.mask_image))
        size = size_asked_for(request, original.size)
        shown = [original, *(context.image(reference) for reference in request.further_images)]
        width, height = size or (None, None)
        edits = edits_of(request, context, editor, image=shown, width=width, height=height)
    images, data, notes = [], [], []
    kept = original if size is None else original.resize(size, Image.Resampling.LANCZOS)
    for edited in edits:
        image, told, more = stay_put(request, kept, edited)
        images.append(image)
        data.append({"work_size": list(edited.size), **told})
        notes += [note for note in more if note not in notes]
    return Result(images=images, seeds=request.seeds, data={"kept": data}, notes=notes)


def repaint(
    request: QwenEditRequest, context: Context, editor: Editor, original: Image.Image, mask: Image.Image
) -> Result:
    """The masked part anew, every byte outside the mask the original's."""
    sheet, notes = sheet_for(original, mask, request.padding_mask_crop, editor)
    edits = edits_of(request, context, editor, image=[sheet.image], mask_image=sheet.mask, strength=request.strength)
    painted = [undo_resize(edited.convert("RGB"), sheet.image.size) for edited in edits]
    if request.overlay:
        alpha = fade_inwards(mask, request.mask_blur)
        images = [sheet.lay_over(original, picture, alpha) for picture in painted]
    else:
        images = [sheet.cut(picture) for picture in painted]
    where = {"box": list(sheet.box), "work_size": list(edits[0].size)}
    return Result(images=images, seeds=request.seeds, data=where, notes=notes)


def edits_of(request: QwenEditRequest, context: Context, editor: Any, **arguments: Any) -> list[Image.Image]:
    """The model's own pictures, one for each seed."""
    steps = editor.count_timesteps(request.num_inference_steps, arguments.get("strength"))
    context.expect_steps(steps * request.num_images_per_prompt)
    told = arguments | {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "true_cfg_scale": request.true_cfg_scale,
        "callback_on_step_end": context.on_step,
    }
    sources = context.generators(request.seed, request.num_images_per_prompt)
    return [editor(**told, generator=source).images[0] for source in sources]


QWEN_EDIT = Capability(
    name="qwen-edit",
    title="Qwen-Image-Edit",
    tab="instructions",
    group_title="Edit",
    summary="Change a picture by an instruction, whole or in a masked part, with up to two more pictures to take from.",
    request=QwenEditRequest,
    run=run,
    check=check,
    needs=(TASK,),
    example={"prompt": "make the car green", "seed": 7},
)
