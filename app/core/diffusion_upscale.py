"""Diffusion upscale: make a picture larger and let a model draw detail into it, part by part.

The picture is made larger first, by the upscaler; then each part is drawn anew a little, from the words and, where it
is installed, held to the picture by the tile ControlNet. Each part begins with noise of its own, and fades into its
neighbours.
"""

from PIL import Image

from app.core import enhance_fields as fields
from app.core.attachments import ControlNet
from app.core.capability import Capability, Context, Door, ModelRequest, Pipeline, Result
from app.core.fields import Strength
from app.imaging.crop import pad_to_multiple
from app.imaging.sizes import lost_strength, require_a_step, require_large_result, round_up, times
from app.imaging.tiles import Grid, Pass, cores, enlarge

TILE_TASK = "controlnet-tile"
NO_TILE_CONTROL = (
    "No tile ControlNet held the parts to the picture: none is installed for this model, so a high strength may draw "
    "things twice. `eis models pull controlnet-tile-sdxl` fetches the one for SDXL."
)


class DiffusionUpscaleRequest(ModelRequest):
    """A picture, words for what it shows, and how far its parts may go from it."""

    image: fields.EnhanceImage
    scale: fields.DiffusionScale = 2.0
    strength: Strength = 0.3
    upscaler: fields.UpscalerModel = "auto"
    tile_size: fields.DiffusionTile = None
    tile_overlap: fields.TileOverlap = 64
    tile_controlnet: fields.TileModel = "auto"
    controlnet_conditioning_scale: fields.TileScale = 0.8


def check(request: DiffusionUpscaleRequest, door: Door) -> None:
    """There is a step to take, and the result is within the limits."""
    require_a_step(request.num_inference_steps, request.strength)
    require_large_result(times(door.size(request.image), request.scale))


def run(request: DiffusionUpscaleRequest, context: Context) -> Result:
    """One call for each part of each picture, on the same larger picture."""
    image, alpha = context.image(request.image), context.alpha(request.image)
    size = times(image.size, request.scale)
    with context.upscaler(request.upscaler) as upscale:
        made = upscale(image, size)
    notes = [*made.notes, *([fields.NO_WEIGHTS] if request.upscaler == fields.LANCZOS else [])]
    notes += lost_strength(request.num_inference_steps, request.strength)
    attachments = []
    if request.tile_controlnet is None:
        notes.append(NO_TILE_CONTROL)
    else:
        scale = request.controlnet_conditioning_scale
        attachments = [ControlNet(request.tile_controlnet, controlnet_conditioning_scale=scale, control_type="tile")]
    more = request.additions() | {"attachments": attachments}
    with context.borrow(request.model, task="image-to-image", **more) as pipeline:
        overlap, grid = parts_for(request, size, pipeline)
        count = len(list(cores(size, grid)))
        steps = pipeline.count_timesteps(request.num_inference_steps, request.strength)
        context.expect_steps(steps * count * request.num_images_per_prompt)
        images = [
            drawn(request, context, pipeline, made.image, Pass(size, size, grid), overlap, seed)
            for seed in request.seeds
        ]
    for drawn_image in images if alpha is not None else ():
        drawn_image.putalpha(alpha.resize(size, Image.Resampling.LANCZOS))
    data = {
        "from": list(image.size),
        "to": list(size),
        "upscaler": request.upscaler,
        "tile_controlnet": request.tile_controlnet,
        "tiles": count,
        "overlap": overlap,
    }
    return Result(images=images, seeds=request.seeds, data=data, notes=notes)


def parts_for(request: DiffusionUpscaleRequest, size: tuple[int, int], pipeline: Pipeline) -> tuple[int, Grid]:
    """Pixels seen around each part, and the parts: with what is seen around them about as large as a tile."""
    tile = request.tile_size or min(pipeline.default_size)
    overlap = min(request.tile_overlap, tile // 4) // pipeline.size_multiple * pipeline.size_multiple
    inner = max(pipeline.size_multiple, tile - 2 * overlap)
    columns, rows = (1 if side <= tile else -(-side // inner) for side in size)
    return overlap, Grid(columns, rows)


def drawn(
    request: DiffusionUpscaleRequest,
    context: Context,
    pipeline: Pipeline,
    image: Image.Image,
    step: Pass,
    overlap: int,
    seed: int,
) -> Image.Image:
    """The picture with every part drawn anew; part n begins with the noise of seed + 1000 n."""
    number = 0

    def draw(part: Image.Image) -> Image.Image:
        nonlocal number
        multiple = pipeline.size_multiple
        # A part at the edge may be too narrow for the model's own layers.
        start = pad_to_multiple(part, multiple)
        smallest = round_up(min(64, *pipeline.default_size), multiple)
        if min(start.size) < smallest:
            start = start.resize(tuple(max(side, smallest) for side in start.size), Image.Resampling.LANCZOS)
        control = {"control_image": [start]} if request.tile_controlnet is not None else {}
        (source,) = context.generators(seed + 1000 * number, 1)
        number += 1
        arguments = request.arguments() | {"callback_on_step_end": context.on_step}
        painted = pipeline(**arguments, image=start, strength=request.strength, generator=source, **control).images[0]
        if start.size != painted.size:
            painted = painted.resize(start.size, Image.Resampling.LANCZOS)
        is_grown = start.size != pad_to_multiple(part, multiple).size
        return painted.resize(part.size, Image.Resampling.LANCZOS) if is_grown else painted.crop((0, 0, *part.size))

    return enlarge(image, step, draw, scale=1, reach=overlap // 2, multiple=pipeline.size_multiple, ramp=overlap)


DIFFUSION_UPSCALE = Capability(
    name="upscale-diffusion",
    title="Diffusion upscale",
    summary="Make a picture larger and let a model draw detail into it.",
    request=DiffusionUpscaleRequest,
    run=run,
    check=check,
    needs=("image-to-image",),
    additions={"upscaler": "upscale"},
    additions_if_installed={"tile_controlnet": TILE_TASK},
    tab="enhance",
    group_title="Enhance",
    example={"prompt": "a red car, blue background", "scale": 2, "strength": 0.3, "seed": 7, "tile_size": 128},
)
