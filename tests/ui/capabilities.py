"""The engine's torch-free capabilities, and two more that show pictures and masks on their way through the page."""

import time
from types import SimpleNamespace
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from app.core.anime_controlnet import ANIME_CONTROLNET
from app.core.capability import Capability, Context, Request, Result
from app.core.control_preprocess import PREPROCESS
from app.core.controlnet import CONTROLNET
from app.core.fields import InitImage, MaskImage, Prompt, Seed
from app.core.inpaint import INPAINT
from app.core.text_to_image import TEXT_TO_IMAGE
from tests.engine.capabilities import CATALOG as ENGINE_CATALOG
from tests.engine.capabilities import squares
from tests.engine.modelled import CATALOG as MODELLED_CATALOG

RED = (200, 20, 20)


class FillRequest(Request):
    """A picture whose masked part becomes red."""

    prompt: Prompt = ""
    image: InitImage
    mask_image: MaskImage


def fill(request: FillRequest, context: Context) -> Result:
    """Red where the mask is white, the picture's own bytes elsewhere."""
    image, mask = context.image(request.image), context.mask(request.mask_image)
    return Result(images=[Image.composite(Image.new("RGB", image.size, RED), image, mask)])


class SlowRequest(Request):
    """A picture that takes its time, and shows previews meanwhile."""

    prompt: Prompt
    seed: Seed = None
    num_inference_steps: Annotated[int | None, Field(description="Steps; null: ten.", ge=1, le=150)] = None
    step_seconds: Annotated[float, Field(ge=0, le=5, description="How long one step takes.")] = 0.2


class Previews:
    """The one thing that a step asks of a runtime."""

    def preview(self, pipeline: Any, latents: int) -> Image.Image:
        """A picture of one colour that is another one at every step."""
        return Image.new("RGB", (48, 32), (latents * 37 % 256, 120, 60))


def slow(request: SlowRequest, context: Context) -> Result:
    """Wait at every step, and report it the way a diffusers pipeline does, so that previews take their real path."""
    context._runtime = Previews()
    pipeline = SimpleNamespace(num_timesteps=request.num_inference_steps or 10)
    for step in range(pipeline.num_timesteps):
        time.sleep(request.step_seconds)
        context.on_step(pipeline, step, 0, {"latents": step})
    return Result(images=[squares(request.seed)], seeds=[request.seed])


CATALOG = (
    Capability("slow", "Slow", "Draw squares, slowly.", SlowRequest, slow, example={"prompt": "squares"}),
    Capability("fill", "Fill", "Make the masked part red.", FillRequest, fill, example={}),
    *ENGINE_CATALOG,
)

DRAWING = (TEXT_TO_IMAGE, INPAINT)
"""Two forms of the product, for pages that show what becomes of models: a page of all its forms opens slowly."""

CONTROLS = (CONTROLNET, ANIME_CONTROLNET, PREPROCESS)
"""One tab of the product with its sub-tabs, for the same reason."""

MODELLED = (*ENGINE_CATALOG, *MODELLED_CATALOG)
"""The engine's, one of which borrows models, for pages about devices."""
