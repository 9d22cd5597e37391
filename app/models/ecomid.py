"""EcomID: PuLID v1's tokens for cross-attention, and an IdentityNet of its own that looks at InstantID's face tokens.

Source: alimama-creative/SDXL-EcomID. Its one file is a ControlNet of InstantID's shape; the encoder and the layers are
PuLID v1's, `image_proj` is InstantID's, whose own layers are not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.core.attachments import EcomIdIdentity
from app.errors import InvalidRequest
from app.models import instantid, pulid
from app.models.attached import Attached, mask_tensor
from app.models.controls import Control, ControlWeights, open_network
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.opening import refusing
from app.models.spec import ModelSpec
from app.models.weights import Weights


class EcomId(Weights):
    """EcomID, opened with its two parts."""

    def __init__(
        self, id: str, identity: pulid.Pulid, adapter: instantid.FaceTokens, network: Any, device: TorchDevice
    ) -> None:
        if identity.version != "v1":
            raise InvalidRequest(
                f"EcomID was trained with PuLID v1; {identity.id!r} is PuLID {identity.version}.", model=identity.id
            )
        self.id = id
        self.identity = identity
        self.adapter = adapter
        self.control = ControlWeights(id, network, device)
        super().__init__(device, [identity.encoder, adapter.projection, network])

    @property
    def bytes(self) -> int:
        """The size of all of it."""
        return super().bytes + sum(
            part.numel() * part.element_size() for pair in self.identity.layers.values() for part in pair
        )

    def _move(self, to: torch.device) -> None:
        super()._move(to)
        self.identity._move(to)

    def check_fit(self, unet: Any, model: str) -> None:
        """`InvalidRequest` where these files were made for another UNet."""
        self.identity.check_fit(unet, model)
        self.control.check_fit(unet, model)


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> EcomId:
    """Open EcomID's ControlNet and, out of the parts, PuLID v1 and InstantID's adapter."""
    identity = _part(spec, parts, "pulid")
    adapter = _part(spec, parts, "instantid")
    opened = pulid.load(identity.spec, identity.path, device)
    with refusing(spec, "its files are no whole EcomID"):
        tokens = instantid.open_adapter(adapter.spec, adapter.path, device)
        return EcomId(spec.id, opened, tokens, open_network(path, spec, device), device)


def attach(opened: EcomId, wish: EcomIdIdentity, *, faces: Any, **more: Any) -> Attached:
    """PuLID's tokens beside the text; IdentityNet with InstantID's in the text's place; several pictures averaged."""
    found = [faces.identify(face) for face in wish.faces]
    tokens = opened.identity.mean_tokens([(one.arcface, one.clip_pooled, one.clip_hidden) for one in found])
    branch = opened.identity.branch(
        tokens,
        scale=wish.id_scale,
        num_zero=wish.num_zero,
        ortho=wish.ortho,
        mask=mask_tensor(wish.mask),
        start=wish.start,
        end=wish.end,
    )
    face_tokens = opened.adapter.tokens(torch.stack([one.arcface for one in found]).mean(0))
    control = Control(
        opened.control.network,
        wish.controlnet_conditioning_scale,
        wish.start,
        wish.end,
        face_tokens,
        mask_tensor(wish.mask),
    )
    return Attached((branch,), (control,))


def _part(spec: ModelSpec, parts: Sequence[ModelRow], task: str) -> ModelRow:
    for part in parts:
        if task in part.spec.tasks:
            return part
    raise InvalidRequest(f"The model {spec.id!r} needs {task} beside it.", model=spec.id)
