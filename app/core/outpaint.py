"""Go on painting beyond the edges of a picture."""

from PIL import Image
from pydantic import model_validator

from app.core.capability import Capability, Context, Door, ModelRequest, Pipeline, Result
from app.core.drawing import paint_sheet
from app.core.fields import InitImage, Margin, Seam, Strength
from app.imaging.canvas import Margins, border_mask, extend, seam_alpha
from app.imaging.crop import Sheet, box_around, lay_out
from app.imaging.masks import white_box
from app.imaging.sizes import LARGEST_RESULT, largest_area, lost_strength, require_a_step, require_pixels, within_area


class OutpaintRequest(ModelRequest):
    """A picture and how far it goes on, on each side."""

    image: InitImage
    left: Margin = 0
    right: Margin = 0
    top: Margin = 0
    bottom: Margin = 0
    seam: Seam = 0
    strength: Strength = 1.0

    @model_validator(mode="after")
    def grows(self) -> "OutpaintRequest":
        """A wish that adds nothing is a mistake."""
        if not any(self.margins):
            raise ValueError("one of left, right, top and bottom must be more than 0")
        return self

    @property
    def margins(self) -> Margins:
        """The four margins together."""
        return Margins(self.left, self.top, self.right, self.bottom)


def check(request: OutpaintRequest, door: Door) -> None:
    """There is a step to take, and the grown picture has no more pixels than a result may have."""
    require_a_step(request.num_inference_steps, request.strength)
    require_pixels(request.margins.around(door.size(request.image)), LARGEST_RESULT)


def run(request: OutpaintRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    image = context.image(request.image)
    canvas = extend(image, request.margins)
    mask = border_mask(image.size, request.margins, request.seam)
    with context.borrow(request.model, task="inpaint", **request.additions()) as pipeline:
        sheet, notes = sheet_for(request, canvas, mask, pipeline)
        painted = paint_sheet(request, context, pipeline, sheet)
    alpha = seam_alpha(image.size, request.margins, request.seam)
    where = {"box": list(sheet.box), "work_size": list(sheet.scaled)}
    notes += lost_strength(request.num_inference_steps, request.strength)
    images = [sheet.lay_over(canvas, picture, alpha) for picture in painted]
    return Result(images=images, seeds=request.seeds, data=where, notes=notes)


def sheet_for(
    request: OutpaintRequest, canvas: Image.Image, mask: Image.Image, pipeline: Pipeline
) -> tuple[Sheet, list[str]]:
    """The whole canvas where the model works well at its size; else the new border with as much beside it."""
    multiple, limit = pipeline.size_multiple, largest_area(pipeline.default_size)
    box = (0, 0, *canvas.size)
    if canvas.width * canvas.height > limit:
        box = box_around(white_box(mask), max(request.margins), canvas.size, pipeline.default_size)
    size = (box[2] - box[0], box[3] - box[1])
    scaled = within_area(size, limit)
    sheet = lay_out(canvas, mask, box, scaled, multiple=multiple, cover=True)
    if scaled == size:
        return sheet, []
    return sheet, [
        f"The new border was painted at {scaled[0]}x{scaled[1]} and enlarged to {size[0]}x{size[1]}, because that is "
        "the most that this model works well at; smaller margins, one side at a time, keep more detail."
    ]


OUTPAINT = Capability(
    name="outpaint",
    title="Outpaint",
    tab="inpaint",
    summary="Go on painting beyond the edges of a picture.",
    request=OutpaintRequest,
    run=run,
    check=check,
    needs=("inpaint",),
    example={"prompt": "a red car, blue background", "left": 32, "right": 32, "seed": 7},
)
