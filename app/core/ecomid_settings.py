"""What EcomID's wishes share: its methods, the published settings, and a wish's face as it is put on a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.attachments import EcomIdIdentity, FaceReference

METHODS: dict[str, dict[str, Any]] = {
    "fidelity": {"num_zero": 8, "ortho": "ortho_v2"},
    "style": {"num_zero": 16, "ortho": "ortho"},
    "neutral": {"num_zero": 0, "ortho": "off"},
}
SETTINGS = {"num_inference_steps": 25, "guidance_scale": 3.5, "scheduler": "DPM2", "id_scale": 0.3}
"""Of the published workflows."""


def advise(values: Mapping[str, Any], base: Any, added: Mapping[str, Any]) -> dict[str, Any]:
    """The published settings; an embedded base, a few-step one and weights that state their own keep those."""
    recommended, options = base.recommended, added["ecomid_model"].options
    scale = {"id_scale": float(options["id_scale"])} if "id_scale" in options else {"id_scale": SETTINGS["id_scale"]}
    if recommended is None or base.embedded or recommended.is_for_few_steps:
        return scale
    return SETTINGS | scale


def identity_of(request: Any, faces: Sequence[FaceReference]) -> EcomIdIdentity:
    """The wish's face as it is put on a model."""
    return EcomIdIdentity(
        request.ecomid_model,
        request.id_start,
        request.id_end,
        faces=faces,
        id_scale=request.id_scale,
        controlnet_conditioning_scale=request.controlnet_conditioning_scale,
        **METHODS[request.method],
    )
