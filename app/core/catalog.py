"""The ordered tuple of all capabilities; the only file that imports them."""

from collections.abc import Iterable

from app.core.anime_controlnet import ANIME_CONTROLNET
from app.core.capability import Capability
from app.core.control_preprocess import PREPROCESS
from app.core.controlnet import CONTROLNET
from app.core.detect_faces import DETECT_FACES
from app.core.diffusion_upscale import DIFFUSION_UPSCALE
from app.core.ecomid import ECOMID_GENERATE, ECOMID_MULTI_POSE
from app.core.ecommerce import ECOMID_ECOMMERCE
from app.core.image_to_image import IMAGE_TO_IMAGE
from app.core.inpaint import INPAINT
from app.core.inpaint_anything import (
    INPAINT_ANYTHING_BACKGROUND,
    INPAINT_ANYTHING_FILL,
    INPAINT_ANYTHING_REMOVE,
    INPAINT_ANYTHING_SEGMENT,
)
from app.core.instantid import INSTANTID_GENERATE, INSTANTID_SWAP
from app.core.instruct_pix2pix import INSTRUCT_PIX2PIX
from app.core.ip_adapter import IP_ADAPTER
from app.core.lora_training import LORA_TRAINING
from app.core.outpaint import OUTPAINT
from app.core.pulid import PULID_EDIT, PULID_GENERATE, PULID_SWAP
from app.core.qwen_edit import QWEN_EDIT
from app.core.restore_face import RESTORE_FACE
from app.core.step1x_edit import STEP1X_EDIT
from app.core.tag_image import TAG_IMAGE
from app.core.text_to_image import TEXT_TO_IMAGE
from app.core.upscale import UPSCALE
from app.core.web_search import WEB_SEARCH
from app.errors import UnknownCapability

CATALOG: tuple[Capability, ...] = (
    TEXT_TO_IMAGE,
    IMAGE_TO_IMAGE,
    INPAINT,
    OUTPAINT,
    CONTROLNET,
    ANIME_CONTROLNET,
    PREPROCESS,
    INSTRUCT_PIX2PIX,
    QWEN_EDIT,
    STEP1X_EDIT,
    INPAINT_ANYTHING_REMOVE,
    INPAINT_ANYTHING_FILL,
    INPAINT_ANYTHING_BACKGROUND,
    INPAINT_ANYTHING_SEGMENT,
    PULID_GENERATE,
    PULID_EDIT,
    PULID_SWAP,
    ECOMID_GENERATE,
    ECOMID_MULTI_POSE,
    ECOMID_ECOMMERCE,
    INSTANTID_GENERATE,
    INSTANTID_SWAP,
    IP_ADAPTER,
    UPSCALE,
    DIFFUSION_UPSCALE,
    RESTORE_FACE,
    DETECT_FACES,
    TAG_IMAGE,
    WEB_SEARCH,
    LORA_TRAINING,
)


def find(name: str, catalog: Iterable[Capability] = CATALOG) -> Capability:
    """The capability of this name; `UnknownCapability` if there is none."""
    for capability in catalog:
        if capability.name == name:
            return capability
    raise UnknownCapability(f"There is no capability named {name[:80]!r}.")
