"""What PuLID's wishes share: its modes, the authors' settings for each, and a wish's face as it is put on a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.core.attachments import FaceReference, PulidIdentity
from app.core.identity import first_stated

MODES: dict[str, dict[str, Any]] = {
    "standard": {"num_inference_steps": 30, "guidance_scale": 7.0, "scheduler": "DPM++ 2M Karras", "id_scale": 0.8,
                 "num_zero": 20, "ortho": "ortho_v2"},
    "lightning": {"num_inference_steps": 4, "guidance_scale": 1.2, "scheduler": "DPM++ 2M", "id_scale": 0.8,
                  "num_zero": 8, "ortho": "ortho_v2"},
    "fidelity": {"num_inference_steps": 50, "guidance_scale": 5.0, "scheduler": "DPM++ 2M Karras", "id_scale": 1.0,
                 "num_zero": 8, "ortho": "ortho_v2"},
}  # fmt: skip
STATED = {"id_scale": float, "num_zero": int, "ortho": str}
"""What a row of weights may state of itself in its options."""


def advise(values: Mapping[str, Any], base: Any, added: Mapping[str, Any]) -> dict[str, Any]:
    """What null fields mean: the mode's settings; a base or weights with settings of their own keep those."""
    recommended = base.recommended
    is_quick = recommended is not None and recommended.is_for_few_steps
    mode = values.get("mode") or ("lightning" if is_quick else "standard")
    own: dict[str, Any] = {"mode": mode}
    if base.embedded and recommended:
        own |= {"scheduler": recommended.scheduler, "guidance_scale": recommended.guidance_scale}
    options = added["pulid_model"].options
    own |= {name: kind(options[name]) for name, kind in STATED.items() if name in options}
    return first_stated(own, MODES[mode])


def identity_of(request: Any, faces: Sequence[FaceReference]) -> PulidIdentity:
    """The wish's face as it is put on a model."""
    return PulidIdentity(
        request.pulid_model,
        request.id_start,
        request.id_end,
        faces=faces,
        id_scale=request.id_scale,
        num_zero=request.num_zero,
        ortho=request.ortho,
    )
