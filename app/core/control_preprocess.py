"""Preprocess: the map that a ControlNet would follow, alone."""

from pydantic import model_validator

from app.core import control_fields as fields
from app.core.capability import Capability, Context, Request, Result
from app.core.control_pictures import draw_map
from app.imaging import control_maps
from app.imaging.known_maps import is_map


class PreprocessRequest(Request):
    """A picture, and what its map is to show."""

    image: fields.MappedImage
    control_type: fields.MapOf = "canny"
    mask_image: fields.PartMask = None
    low_threshold: fields.LowThreshold = control_maps.CANNY_LOW
    high_threshold: fields.HighThreshold = control_maps.CANNY_HIGH

    @model_validator(mode="after")
    def has_what_it_needs(self) -> "PreprocessRequest":
        """A mask where masked parts are shown, and two thresholds in order."""
        if self.control_type == "inpaint" and not self.mask_image:
            raise ValueError("the map inpaint needs mask_image")
        if self.low_threshold > self.high_threshold:
            raise ValueError(f"low_threshold {self.low_threshold} lies above high_threshold {self.high_threshold}")
        return self


def run(request: PreprocessRequest, context: Context) -> Result:
    """The map, as large as its picture, and whether the picture looked like such a map before."""
    image, kind = context.image(request.image), request.control_type
    if kind == "inpaint":
        drawn = control_maps.shown(control_maps.inpaint(image, context.mask(request.mask_image)))
    else:
        drawn = draw_map(kind, image, context, low=request.low_threshold, high=request.high_threshold)
    was_map = kind not in {"tile", "color", "inpaint"} and is_map(kind, image)
    return Result(images=[drawn], data={"control_type": kind, "was_map": was_map})


PREPROCESS = Capability(
    name="controlnet/preprocess",
    title="Preprocess",
    summary="Draw the map of a picture that a ControlNet would follow.",
    request=PreprocessRequest,
    run=run,
    group_title="ControlNet",
)
