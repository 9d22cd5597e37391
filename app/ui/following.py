"""What may follow a form's job, as ticks above its button, and how the stage goes on from link to link."""

from collections.abc import Iterable, Sequence
from typing import Any

import gradio as gr

from app.core.capability import Capability
from app.core.jobs import Job

FOLLOWING: dict[str, tuple[str, dict[str, Any]]] = {
    "Restore faces": ("restore-face", {}),
    "Upscale \u00d72": ("upscale", {"scale": 2}),
    "Tags": ("tag-image", {}),
}
"""Label -> capability and fields, in the order in which they run: faces first, words about the end result last."""


def then_control(capability: Capability, catalog: Iterable[Capability]) -> gr.CheckboxGroup | None:
    """The ticks of a form that gives pictures; None where nothing can follow."""
    served = {one.name for one in catalog}
    labels = [label for label, (name, _) in FOLLOWING.items() if name in served and name != capability.name]
    if not (labels and capability.gives_pictures):
        return None
    return gr.CheckboxGroup(labels, label="Then", elem_id=f"then-{capability.name.replace('/', '-')}")


def follow_ups(ticked: Sequence[str] | None) -> list[dict[str, Any]]:
    """What the service is asked for, in the order of the table."""
    return [{"capability": name, **fields} for label, (name, fields) in FOLLOWING.items() if label in set(ticked or ())]


def link_title(job: Job, catalog: Iterable[Capability]) -> str:
    """What the stage calls a link that runs; empty for a job that nothing follows and that follows nothing."""
    if not (job.then or job.follows):
        return ""
    return next((one.title for one in catalog if one.name == job.capability), job.capability)
