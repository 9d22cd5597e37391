"""IP-Adapter: pictures as a prompt beside the words: what they show, their style, or their layout."""

from pydantic import model_validator

from app.core.attachments import FaceReference, ImagePrompt
from app.core.capability import Capability, Context, ModelRequest, Result
from app.core.drawing import draw_each, size_for
from app.core.fields import Height, Width
from app.core.identity_fields import (
    Blocks,
    IpAdapterModel,
    IpEnd,
    IpScale,
    IpStart,
    PromptImages,
    PromptMasks,
    PromptWeights,
    ShortcutScale,
)


class IpAdapterRequest(ModelRequest):
    """Pictures that say what the result is like, and words beside them."""

    ip_adapter_images: PromptImages
    weights: PromptWeights = ()
    masks: PromptMasks = ()
    ip_adapter_model: IpAdapterModel = "auto"
    ip_adapter_scale: IpScale = 0.6
    blocks: Blocks = "all"
    shortcut_scale: ShortcutScale = 1.0
    ip_start: IpStart = 0.0
    ip_end: IpEnd = 1.0
    width: Width = None
    height: Height = None

    @model_validator(mode="after")
    def weighs_each(self) -> "IpAdapterRequest":
        """A weight and a mask for each picture, or none at all."""
        count = len(self.ip_adapter_images)
        for name, given in (("weights", self.weights), ("masks", self.masks)):
            if given and len(given) != count:
                raise ValueError(f"{count} pictures need as many {name}, not {len(given)}")
        return self


def run(request: IpAdapterRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    images = [context.image(reference) for reference in request.ip_adapter_images]
    prompt = ImagePrompt(
        request.ip_adapter_model,
        request.ip_start,
        request.ip_end,
        images=images,
        faces=[FaceReference(image) for image in images],
        scale=request.ip_adapter_scale,
        scales=request.weights,
        masks=[context.image(reference).convert("L") for reference in request.masks],
        blocks=request.blocks,
        shortcut_scale=request.shortcut_scale,
    )
    with context.borrow(request.model, task="text-to-image", attachments=[prompt], **request.additions()) as pipeline:
        width, height = size_for(request.width, request.height, pipeline)
        made = draw_each(request, context, pipeline, width=width, height=height)
    return Result(images=made, seeds=request.seeds)


IP_ADAPTER = Capability(
    name="ip-adapter",
    title="IP-Adapter",
    summary="Make pictures from words and from other pictures.",
    request=IpAdapterRequest,
    run=run,
    needs=("text-to-image",),
    additions={"ip_adapter_model": "ip-adapter"},
    example={"prompt": "a blue car", "seed": 7},
)
