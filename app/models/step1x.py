"""Step1X-Edit, opened: the network, its vision-language model and FLUX's autoencoder, placed and parked as one.

Both published layouts come here: a diffusers folder (v1.1, v1.2), and a folder with the original single file and the
autoencoder's (v1.0, v1.1), whose vision-language model is a part of its own. Which version it is, its keys say.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from app.models import quantisation
from app.models.catalog_editing import AUTOENCODER
from app.models.device import TorchDevice, in_bfloat16
from app.models.library import ModelRow
from app.models.offloading import Placed, Placement
from app.models.opening import refusing
from app.models.single_files import LAYOUTS
from app.models.spec import ModelSpec
from app.models.step1x_editing import Step1XEditor
from app.models.step1x_network import Step1XTransformer, build, ours
from app.models.step1x_text import V1_0, V1_1, V1_2, Version
from app.models.step_batching import StepBatcher

OWN = LAYOUTS / "step1x"


class Step1X(Placed):
    """Everything of one Step1X-Edit, in RAM until `place`; see `app.core.model_offload.Model`."""

    def __init__(
        self,
        transformer: Step1XTransformer,
        text_encoder: Any,
        vae: Any,
        *,
        tokenizer: Any,
        image_processor: Any,
        scheduler_config: Mapping[str, Any],
        device: TorchDevice,
    ) -> None:
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.vae = vae
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.scheduler_config = dict(scheduler_config)
        self.device = device
        self.version = version_of(transformer)
        modules = {"text_encoder": text_encoder, "transformer": transformer, "vae": vae}
        self.modules = list(modules.values())
        for module in self.modules:
            module.eval().requires_grad_(False)
        quantisation.quantise({"unet": transformer.flux}, device)
        self.placement = Placement(modules, device.torch_device, device.offload, denoiser="transformer")

    def place(self) -> None:
        """Move the weights to the device, or let them visit it."""
        self.placement.put()
        self.vae.use_tiling = self.placement.strategy.decodes_in_tiles

    def park(self) -> None:
        """Move the weights to RAM."""
        self.placement.take()

    def editor(
        self, batcher: StepBatcher, *, priority: int = 5, check: Callable[[], None] = lambda: None
    ) -> Step1XEditor:
        """What a run borrows."""
        return Step1XEditor(self, batcher, priority=priority, check=check)


def version_of(transformer: Step1XTransformer) -> Version:
    """The version, by what only one of them has."""
    if transformer.text_token_mapping is not None:
        return V1_2
    return V1_0 if hasattr(transformer.connector, "scale_factor") else V1_1


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> Step1X:
    """Open a folder of either layout."""
    with refusing(spec, "its files are no whole Step1X-Edit"):
        return _load(spec, path, in_bfloat16(device), parts)


def _load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow]) -> Step1X:
    single = spec.options.get("weights")
    if single is None:
        transformer = load_transformer(sorted((path / "transformer").glob("*.safetensors")), path / "transformer")
        vae = diffusers.AutoencoderKL.from_pretrained(
            path / "vae", dtype=device.dtype, use_safetensors=True, local_files_only=True
        )
        scheduler, language, reading = path / "scheduler", path / "text_encoder", path / "processor"
    else:
        transformer = load_transformer([path / single], path / "config" / "transformer")
        own = path / "config"
        vae = diffusers.AutoencoderKL.from_single_file(
            str(path / AUTOENCODER),
            config=str(own if (own / "vae").is_dir() else OWN),
            subfolder="vae",
            dtype=device.dtype,
            local_files_only=True,
        )
        scheduler = OWN / "scheduler"
        language = reading = next(part.path for part in parts if "qwen2.5-vl" in part.spec.tasks)
    return Step1X(
        transformer.to(device.dtype),
        Qwen2_5_VLForConditionalGeneration.from_pretrained(
            language, dtype=device.dtype, use_safetensors=True, local_files_only=True
        ),
        vae,
        tokenizer=AutoTokenizer.from_pretrained(reading, local_files_only=True),
        image_processor=Qwen2VLImageProcessor.from_pretrained(reading, local_files_only=True),
        scheduler_config=json.loads((scheduler / "scheduler_config.json").read_text("utf-8")),
        device=device,
    )


def load_transformer(files: Sequence[Path], config: Path) -> Step1XTransformer:
    """The network of these weight files; `config` is a folder whose config.json says what shapes do not, or absent."""
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= load_file(file)
    state = ours(state)
    told = config / "config.json"
    transformer = build(state, json.loads(told.read_text("utf-8")) if told.is_file() else {})
    transformer.load_state_dict(state, strict=True, assign=True)
    return transformer
