"""Anime ControlNet: a line drawing coloured, or the lines of a picture drawn and followed, by anime checkpoints."""

from collections.abc import Mapping
from typing import Any

from PIL import Image
from pydantic import model_validator

from app.core import control_fields as fields
from app.core.attachments import ControlNet
from app.core.capability import Capability, Context, Result
from app.core.control_drawing import FollowingRequest, check_following, draw_following
from app.core.control_pictures import ControlPicture, Followed
from app.imaging.control_maps import under_lines

KIND = "lineart_anime"

CLIP_SKIP = {"sd15": 1}
"""Family -> the layers that its anime checkpoints were trained without; SDXL leaves out its last by itself."""


class AnimeControlNetRequest(FollowingRequest):
    """Lines, and what the picture shows; a picture to start from brings its colours."""

    control_image: fields.ControlPictureOfLines
    controlnet_model: fields.LineModel = "auto"
    controlnet_conditioning_scale: fields.LineScale = 1.0
    control_guidance_start: fields.LineStart = 0.0
    control_guidance_end: fields.LineEnd = 1.0
    preprocess: fields.LinePreprocess = "auto"
    keep_lines: fields.KeepLines = False
    clip_skip: fields.AnimeClipSkip = None

    @model_validator(mode="after")
    def follows_for_a_while(self) -> "AnimeControlNetRequest":
        """See `require_window`."""
        fields.require_window(self.control_guidance_start, self.control_guidance_end)
        return self

    @property
    def pictures(self) -> list[ControlPicture]:
        """The one that is followed."""
        return [ControlPicture(self.control_image, KIND, self.preprocess)]

    def finished(self, drawn: list[Image.Image], followed: list[Followed]) -> list[Image.Image]:
        """With the lines on them, where they are kept."""
        if not self.keep_lines:
            return drawn
        return [under_lines(picture, followed[0].shown) for picture in drawn]

    def control(self) -> ControlNet:
        """The network as it goes on the model."""
        return ControlNet(
            self.controlnet_model,
            self.control_guidance_start,
            self.control_guidance_end,
            controlnet_conditioning_scale=self.controlnet_conditioning_scale,
            control_type=KIND,
        )


def advise(values: Mapping[str, Any], base: Any, added: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP skip as the base's family was trained."""
    return {"clip_skip": CLIP_SKIP.get(base.family, 0)}


def run(request: AnimeControlNetRequest, context: Context) -> Result:
    """The lines first, at the size that is worked at; then one call for each picture."""
    return draw_following(request, context, [request.control()])


ANIME_CONTROLNET = Capability(
    name="anime-controlnet",
    title="Anime",
    tab="controlnet",
    summary="Colour a line drawing, or follow the lines of a picture, with an anime model.",
    request=AnimeControlNetRequest,
    run=run,
    check=check_following,
    needs=("text-to-image",),
    additions={"controlnet_model": f"controlnet-{KIND}"},
    advise=advise,
    group_title="ControlNet",
    example={"prompt": "a girl with red hair, blue sky", "seed": 7},
)
