"""Upscale: make a picture larger by a network, part by part and without seams; by Lanczos where there is none."""

from PIL import Image

from app.core.capability import Capability, Context, Door, Request, Result
from app.core.enhance_fields import (
    GENERAL,
    LANCZOS,
    NO_WEIGHTS,
    DenoiseStrength,
    EnhanceImage,
    Scale,
    TileSize,
    UpscalerModel,
)
from app.errors import InvalidRequest
from app.imaging.sizes import Size, require_large_result, times


class UpscaleRequest(Request):
    """A picture, and how much larger it becomes by what."""

    image: EnhanceImage
    scale: Scale = 2.0
    upscaler: UpscalerModel = "auto"
    denoise_strength: DenoiseStrength = None
    tile_size: TileSize = None


def check(request: UpscaleRequest, door: Door) -> None:
    """The result is within the limits, and there is a sibling to mix with where a strength is named."""
    if request.denoise_strength is not None and request.upscaler != GENERAL:
        raise InvalidRequest(
            f"denoise_strength mixes the weights of {GENERAL!r} with its sibling's; {request.upscaler!r} has none.",
            field="denoise_strength",
            model=request.upscaler,
        )
    require_large_result(times(door.size(request.image), request.scale))


def run(request: UpscaleRequest, context: Context) -> Result:
    """The colours by the network, what is transparent by Lanczos' filter."""
    image, alpha = context.image(request.image), context.alpha(request.image)
    size: Size = times(image.size, request.scale)
    with context.upscaler(request.upscaler) as upscale:
        made = upscale(
            image,
            size,
            tile_size=request.tile_size,
            denoise_strength=request.denoise_strength,
            on_tile=context.progress,
        )
    if alpha is not None:
        made.image.putalpha(alpha.resize(size, Image.Resampling.LANCZOS))
    notes = [*made.notes, *([NO_WEIGHTS] if request.upscaler == LANCZOS else [])]
    data = {
        "from": list(image.size),
        "to": list(size),
        "upscaler": request.upscaler,
        "passes": made.passes,
        "tiles": made.tiles,
        "overlap": made.reach,
    }
    return Result(images=[made.image], data=data, notes=notes)


UPSCALE = Capability(
    name="upscale",
    title="Upscale",
    summary="Make a picture larger, up to eight times.",
    request=UpscaleRequest,
    run=run,
    check=check,
    additions={"upscaler": "upscale"},
    tab="enhance",
    group_title="Enhance",
    example={"scale": 2},
)
