"""A runtime whose base model has the UNet of a parity case; its identity models are files in the published names."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file

from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.runtime import Runtime
from app.models.spec import Licence, ModelSpec
from tests.models import tiny_checkpoints as tiny

FREE = Licence("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/", commercial=True)
LOADERS = {
    "pulid": "app.models.pulid:load",
    "instantid": "app.models.instantid:load",
    "ecomid": "app.models.ecomid:load",
    "ip-adapter": "app.models.ip_adapter:load",
    "step1x-edit": "app.models.step1x:load",
    "controlnet": "app.models.controls:load",
}
TEXT = 32
"""Width of each text encoder and of the pooled text, so that the case's UNet fits."""


class Shelf:
    """Rows by id, as a runtime asks a library for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, ModelRow] = {}

    def put(
        self,
        id: str,
        path: Path,
        *,
        kind: str,
        task: str,
        family: str = "sdxl",
        parts: tuple[str, ...] = (),
        **options: str,
    ) -> None:
        """A row of these files."""
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        loader = LOADERS.get(task, "app.models.pipelines:load")
        tasks = (task,) if task else ()
        spec = ModelSpec(id, id, kind, family, FREE, size, loader=loader, tasks=tasks, parts=parts, options=options)
        self.rows[id] = ModelRow(spec, True, path, size)

    def require(self, id: str, *, task: str | None = None) -> ModelRow:
        return self.rows[id]


class GivenFaces:
    """Stands where the face models do: what they would have found is given."""

    def __init__(self, **features: Any) -> None:
        self.features = SimpleNamespace(**features)

    def identify(self, face: Any) -> Any:
        return self.features

    def arcface(self, face: Any) -> Any:
        return self.features.arcface


class GivenRuntime(Runtime):
    """A runtime on the CPU in float32 that is told what its face models find."""

    given: Any = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._attacher.faces = lambda parts, device: nullcontext(self.given)


def open_runtime(shelf: Shelf) -> GivenRuntime:
    return GivenRuntime(TorchDevice("cpu", "float32"), shelf, model_memory_bytes=None, parked_memory_bytes=None)


def put_base(shelf: Shelf, case: Any) -> UNet2DConditionModel:
    """A whole SDXL checkpoint in the diffusers layout with the case's UNet; answers the UNet."""
    folder = shelf.folder / "base"
    pipeline = tiny.build_sdxl(folder, text_widths=(TEXT, TEXT))
    unet = case.fill_(UNet2DConditionModel(**case.config["unet"]))
    pipeline.unet = unet
    pipeline.save_pretrained(folder, safe_serialization=True)
    shelf.put("base", folder, kind="checkpoint", task="text-to-image", layout="diffusers")
    return unet


def put_file(shelf: Shelf, name: str, weights: Mapping[str, torch.Tensor], **more: Any) -> Path:
    """One file of weights as a row."""
    path = shelf.folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    shelf.put(name, path, kind="identity", **more)
    return path


def put_network(folder: Path, unet: UNet2DConditionModel, case: Any) -> None:
    """IdentityNet in the case's numbers, in a folder of its own."""
    network = ControlNetModel.from_unet(
        unet,
        conditioning_channels=3,
        controlnet_conditioning_channel_order="rgb",
        conditioning_embedding_out_channels=tuple(case.config["controlnet_embedding_channels"]),
        load_weights_from_unet=False,
    )
    case.fill_(network, "identitynet.").save_pretrained(folder, safe_serialization=True)


def conditions(case: Any, rows: int = 2) -> dict[str, Any]:
    """The text of a case, as a UNet is told it."""
    return {
        "encoder_hidden_states": case.inputs("text", (rows, 7, 2 * TEXT)),
        "added_cond_kwargs": {
            "text_embeds": case.inputs("pooled", (rows, TEXT)),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * rows),
        },
    }
