"""A product on a new scene, with a person beside it if wished: the product keeps its pixels, all else is painted."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import model_validator

from app.core import identity_fields as fields
from app.core.attachments import Attachment, ControlNet
from app.core.capability import Capability, Context, Door, ModelRequest, Result
from app.core.drawing import draw_each
from app.core.ecomid_settings import advise, identity_of
from app.core.fields import ImageReference, field
from app.core.identity import Placement, likeness, placement_for, references, require_choices
from app.imaging.cutout import Placed, cut_out, place, require_product
from app.imaging.sizes import Size, of_area, require_a_step, whole_strength
from app.imaging.soft_edges import soft_edges

SHOPS: dict[str, Size] = {
    "amazon": (2000, 2000),
    "ebay": (1600, 1600),
    "etsy": (2700, 2025),
    "shopify": (2048, 2048),
    "instagram": (1080, 1350),
    "story": (1080, 1920),
    "pinterest": (1000, 1500),
}
"""Pixels that the shops ask for, or recommend, of a product's picture."""
NO_SOFTEDGE = (
    "No ControlNet kept the product's outline while the scene was painted: none for soft edges is installed for this "
    "model. `eis models pull controlnet-softedge-sdxl` fetches the one for SDXL."
)
ProductImage = Annotated[ImageReference, field("The product, whole, on any background.", kind="image")]
ProductMask = Annotated[
    ImageReference | None,
    field("Where the product is, as large as its picture: white is product; null: found by itself.", kind="mask"),
]
Person = Annotated[
    ImageReference | None, field("A picture of the person who is shown with it; null: nobody.", kind="image")
]
Shop = Annotated[
    Literal["model", "amazon", "ebay", "etsy", "shopify", "instagram", "story", "pinterest"],
    field("Whose picture size the result has; model: what the model draws at."),
]
Share = Annotated[float, field("Share of the picture that the product's longer side takes.", ge=0.1, le=0.95)]
Across = Annotated[float, field("Where the product's middle lies: 0 left, 1 right.", ge=0, le=1)]
Down = Annotated[float, field("Where the product's middle lies: 0 top, 1 bottom.", ge=0, le=1)]
SoftedgeModel = Annotated[
    str | None,
    field(
        "Id of the ControlNet that keeps the product's outline; `auto` is the best installed one that fits the model; "
        "null, and where none is installed: none.",
        kind=fields.IDENTITY_ADDITION, min_length=1, max_length=200,
    ),
]  # fmt: skip
SoftedgeScale = Annotated[float, field("How strictly the product's outline is followed; 0: not at all.", ge=0, le=2)]
Shadow = Annotated[bool, field("Begin with a soft shadow under the product.")]


class EcommerceRequest(ModelRequest):
    """A product, the scene in words, where the product stands, and who is shown with it."""

    product_image: ProductImage
    product_mask: ProductMask = None
    face_image: Person = None
    face_images: fields.FaceImages = ()
    face_index: fields.FaceIndex = None
    face_images_index: fields.FaceImagesIndex = ()
    face_box: fields.FaceBox = None
    pose_image: fields.PoseImage = None
    pose_face_index: fields.PoseFaceIndex = None
    keypoints: fields.Keypoints = None
    ecomid_model: fields.EcomIdModel = "auto"
    method: fields.EcomIdMethod = "fidelity"
    id_scale: fields.IdScale = None
    controlnet_conditioning_scale: fields.ControlScale = 0.8
    id_start: fields.IdStart = 0.0
    id_end: fields.IdEnd = 1.0
    shop: Shop = "model"
    product_scale: Share = 0.6
    product_x: Across = 0.5
    product_y: Down = 0.6
    shadow: Shadow = True
    softedge_model: SoftedgeModel = "auto"
    softedge_scale: SoftedgeScale = 0.6

    @model_validator(mode="after")
    def chooses_in_each(self) -> "EcommerceRequest":
        """See `require_choices`."""
        require_choices(self)
        return self

    @property
    def width(self) -> int | None:
        """Keypoints are given in the shop's pixels."""
        return SHOPS[self.shop][0] if self.shop in SHOPS else None

    @property
    def height(self) -> int | None:
        """See `width`."""
        return SHOPS[self.shop][1] if self.shop in SHOPS else None


def check(request: EcommerceRequest, door: Door) -> None:
    """There is a step to take, and a given mask shows a product."""
    require_a_step(request.num_inference_steps, whole_strength(request.num_inference_steps))
    if request.product_mask is not None:
        require_product(door.mask(request.product_mask))


def run(request: EcommerceRequest, context: Context) -> Result:
    """All but the product painted from noise at the model's own area; the product laid over at the shop's size."""
    product = context.image(request.product_image)
    notes = []
    if request.product_mask is not None:
        mask = context.mask(request.product_mask)
    else:
        mask, how = cut_out(product)
        notes.append(f"The product was cut out by {how}; product_mask does it by hand.")
    faces = references(request, context) if request.face_image else ()
    placement = None
    if faces:
        with context.faces(request.ecomid_model) as reader:
            placement = placement_for(request, context, reader, faces[0])
    attachments: list[Attachment] = [identity_of(request, faces)] if faces else []
    if request.softedge_scale and request.softedge_model is None:
        notes.append(NO_SOFTEDGE)
    elif request.softedge_scale:
        scale = request.softedge_scale
        attachments.append(
            ControlNet(request.softedge_model, control_type="softedge", controlnet_conditioning_scale=scale)
        )
    more = request.additions() | {"attachments": attachments}
    with context.borrow(request.model, task="inpaint", **more) as pipeline:
        final = SHOPS.get(request.shop, pipeline.default_size)
        size = of_area(final, pipeline.default_size[0] * pipeline.default_size[1], pipeline.size_multiple)
        start = placed(request, product, mask, size)
        painted = draw_each(
            request,
            context,
            pipeline,
            image=start.image,
            mask_image=start.mask.point(lambda grey: 255 if grey < 128 else 0),
            width=size[0],
            height=size[1],
            strength=whole_strength(request.num_inference_steps),
            **control_of(request, start, placement, size),
        )
    over = placed(request, product, mask, final)
    images = [lay_product_over(picture.resize(final, Image.Resampling.LANCZOS), over) for picture in painted]
    data: dict[str, Any] = {
        "size": list(final),
        "work_size": list(size),
        "product_box": list(over.mask.getbbox()),
    }
    if faces:
        with context.faces(request.ecomid_model) as reader:
            data |= likeness(reader, faces[0], images)
    return Result(images=images, seeds=request.seeds, data=data, notes=notes)


def placed(request: EcommerceRequest, product: Image.Image, mask: Image.Image, size: Size) -> Placed:
    """The product where the wish puts it, on a canvas of this size."""
    at = (request.product_x, request.product_y)
    return place(product, mask, size, scale=request.product_scale, at=at, shadow=request.shadow)


def control_of(request: EcommerceRequest, start: Placed, placement: Placement | None, size: Size) -> Mapping[str, Any]:
    """The control pictures of a call: keypoints where a person is shown, and edges where a network follows them."""
    drawings = [] if placement is None else [placement.on(size).drawing()]
    if request.softedge_scale and request.softedge_model is not None:
        drawings.append(soft_edges(start.image, start.mask))
    return {"control_image": drawings} if drawings else {}


def lay_product_over(picture: Image.Image, over: Placed) -> Image.Image:
    """The painted scene with the product's own pixels in their place."""
    picture = picture.copy()
    picture.paste(over.image, (0, 0), over.mask)
    return picture


ECOMID_ECOMMERCE = Capability(
    name="ecomid/ecommerce",
    title="E-commerce",
    summary="Set a product on a new scene, with a person beside it, and keep the product's own pixels.",
    request=EcommerceRequest,
    run=run,
    needs=("inpaint",),
    check=check,
    additions={"ecomid_model": "ecomid"},
    additions_if_installed={"softedge_model": "controlnet-softedge"},
    advise=advise,
    group_title="EcomID",
    example={"prompt": "a red car, blue background", "seed": 7},
)
