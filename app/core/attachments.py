"""What a run may put on a borrowed model beside LoRAs: plain wishes, each with the name of what carries it out.

A capability hands them to `Context.borrow`; on leaving, all of it is off again. Pictures are PIL RGB, masks PIL L of
the result's proportions (white: act here), boxes (left, top, right, bottom) in pixels of their picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class FaceReference:
    """A picture, and which of its faces is meant: the only one, that of a number (largest first), or that at a box.

    `field` is the request's field in which the picture stands, `number` its place where that holds several: a refusal
    names them.
    """

    image: Image.Image
    index: int | None = None
    box: Box | None = None
    field: str | None = None
    number: int | None = None

    @property
    def place(self) -> dict[str, Any]:
        """What a refusal's details say of where the picture stands."""
        said = {"field": self.field, "number": self.number}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Attachment:
    """Anything that is put on a model for one borrow. `model` is the id of an installed row.

    `start` and `end` say in which share of the way from noise to picture it acts. `attach` names the function that
    carries it out (`"app.models.pulid:attach"`).
    """

    model: str
    start: float = 0.0
    end: float = 1.0
    attach: ClassVar[str] = ""


@dataclass(frozen=True, eq=False)
class PulidIdentity(Attachment):
    """A face by PuLID. `num_zero` zero tokens stand beside the face's; `ortho` keeps the prompt's say."""

    faces: Sequence[FaceReference] = ()
    id_scale: float = 0.8
    num_zero: int = 8
    ortho: Literal["off", "ortho", "ortho_v2"] = "ortho_v2"
    mask: Image.Image | None = None
    attach: ClassVar[str] = "app.models.pulid:attach"


@dataclass(frozen=True, eq=False)
class InstantIdIdentity(Attachment):
    """A face by InstantID: tokens beside the text, and IdentityNet, which follows the call's keypoint drawing.

    `region` lessens both outside it.
    """

    faces: Sequence[FaceReference] = ()
    ip_adapter_scale: float = 0.8
    controlnet_conditioning_scale: float = 0.8
    region: Image.Image | None = None
    attach: ClassVar[str] = "app.models.instantid:attach"


@dataclass(frozen=True, eq=False)
class EcomIdIdentity(Attachment):
    """A face by EcomID: PuLID v1's tokens, and an IdentityNet of its own, which follows the call's keypoint drawing."""

    faces: Sequence[FaceReference] = ()
    id_scale: float = 0.3
    num_zero: int = 8
    ortho: Literal["off", "ortho", "ortho_v2"] = "ortho_v2"
    controlnet_conditioning_scale: float = 0.8
    mask: Image.Image | None = None
    attach: ClassVar[str] = "app.models.ecomid:attach"


@dataclass(frozen=True, eq=False)
class ImagePrompt(Attachment):
    """Pictures as a prompt, by IP-Adapter.

    `scales` and `masks` have one entry for each picture, or are empty: then the pictures are looked at as one. `blocks`
    says which blocks look at them. `shortcut_scale` weighs what FaceID plus v2 adds to the face's own tokens.
    """

    images: Sequence[Image.Image] = ()
    faces: Sequence[FaceReference] = ()
    scale: float = 0.6
    scales: Sequence[float] = ()
    masks: Sequence[Image.Image | None] = ()
    blocks: Literal["all", "style", "layout", "style and layout"] = "all"
    shortcut_scale: float = 1.0
    attach: ClassVar[str] = "app.models.ip_adapter:attach"


@dataclass(frozen=True, eq=False)
class ControlNet(Attachment):
    """A ControlNet that follows one of the call's control pictures, which is a map of this type."""

    control_type: str = ""
    controlnet_conditioning_scale: float = 1.0
    attach: ClassVar[str] = "app.models.controls:attach"
