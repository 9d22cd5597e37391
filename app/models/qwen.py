"""Qwen-Image-Edit, opened: the network, the language model and the autoencoder, placed and parked as one.

A diffusers folder holds all of it; a row of the catalog brings the network alone, as a folder or as one file, and what
the versions share is a part of its own. The stock pipelines are views of these components.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from app.core.training_fields import TrainingPlan
from app.errors import InvalidRequest
from app.models.catalog_qwen import PARTS_TASK, PLUS_TASK
from app.models.device import TorchDevice, in_bfloat16
from app.models.library import ModelRow
from app.models.opened_editor import OpenedEditor
from app.models.opening import refusing
from app.models.qwen_editing import QwenEditor
from app.models.qwen_network import is_few_bits, load_single_file
from app.models.qwen_training import QwenLessons
from app.models.spec import ModelSpec
from app.models.step_batching import StepBatcher

PIPELINES: Mapping[str, Any] = {
    "edit": diffusers.QwenImageEditPipeline,
    "plus": diffusers.QwenImageEditPlusPipeline,
    "inpaint": diffusers.QwenImageEditInpaintPipeline,
    "draw": diffusers.QwenImagePipeline,
}
LIBRARIES = {"diffusers", "transformers"}


class QwenImageEdit(OpenedEditor):
    """See `OpenedEditor`; `takes_several` says whether it was trained on several pictures."""

    def __init__(self, components: Mapping[str, Any], *, takes_several: bool, device: TorchDevice) -> None:
        self.takes_several = takes_several
        parts = dict(components)
        schedule, network = parts.pop("scheduler").config, parts["transformer"]
        reads = {"language_model": parts["text_encoder"].model.language_model}
        reached = reads if is_few_bits(network) else reads | {"unet": network}
        super().__init__(parts, scheduler_config=schedule, in_fewer_bits=reached, device=device)

    def view(self, kind: str, schedule: Mapping[str, Any]) -> Any:
        """A stock pipeline of this kind over the shared components, with a scheduler of its own in which `schedule`
        goes before the checkpoint's configuration.
        """
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config({**self.scheduler_config, **schedule})
        # What draws from words alone has nothing that reads pictures.
        parts = {name: part for name, part in self.components.items() if kind != "draw" or name != "processor"}
        pipeline = PIPELINES[kind](**parts, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def dressing_room(self) -> Any:
        """See `OpenedEditor`."""
        return self.view("edit", {})

    def editor(self, batcher: StepBatcher, **settings: Any) -> QwenEditor:
        """What a run borrows; `settings` are those of a `DressedEditor`."""
        return QwenEditor(self, batcher, **settings)

    def lessons(self, plan: TrainingPlan, batcher: StepBatcher) -> QwenLessons:
        """What a trainer must know of it; `InvalidRequest` where its weights are not whole."""
        if is_few_bits(self.transformer):
            raise InvalidRequest("A GGUF file's weights stand in few bits, and cannot be trained on.", field="model")
        return QwenLessons(self, plan, batcher)


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> QwenImageEdit:
    """Open a whole folder, or a network with the part that every version shares."""
    with refusing(spec, "its files are no whole Qwen-Image-Edit"):
        return _load(spec, path, in_bfloat16(device), parts)


def _load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow]) -> QwenImageEdit:
    if path.is_file():
        network = load_single_file(path, dtype=device.dtype, zero_cond_t="zero_cond_t" in spec.options)
    else:
        network = diffusers.QwenImageTransformer2DModel.from_pretrained(
            path / "transformer", dtype=device.dtype, use_safetensors=True, local_files_only=True
        )
    shared = next((part.path for part in parts if PARTS_TASK in part.spec.tasks), path)
    index = json.loads((shared / "model_index.json").read_text("utf-8"))
    if any(isinstance(value, list) and value[0] not in LIBRARIES for value in index.values()):
        raise InvalidRequest(f"The model {spec.id!r} asks for code of its own, which is never run.", model=spec.id)
    opened = diffusers.QwenImageEditPipeline.from_pretrained(
        shared, transformer=network, dtype=device.dtype, use_safetensors=True, local_files_only=True
    )
    return QwenImageEdit(opened.components, takes_several=PLUS_TASK in spec.tasks, device=device)
