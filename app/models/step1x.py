"""Step1X-Edit, opened: the network, its vision-language model and FLUX's autoencoder, placed and parked as one.

Both published layouts come here: a diffusers folder (v1.1, v1.2), and a folder with the original single file and the
autoencoder's (v1.0, v1.1), whose vision-language model is a part of its own. Which version it is, its keys say.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

from app.core.training_fields import TrainingPlan
from app.models.catalog_editing import AUTOENCODER
from app.models.device import TorchDevice, in_bfloat16
from app.models.library import ModelRow
from app.models.opened_editor import OpenedEditor
from app.models.opening import refusing
from app.models.single_files import LAYOUTS
from app.models.spec import ModelSpec
from app.models.step1x_editing import Step1XEditor
from app.models.step1x_network import Step1XTransformer, build, ours
from app.models.step1x_text import V1_0, V1_1, V1_2, Version
from app.models.step1x_training import Step1XLessons
from app.models.step_batching import StepBatcher

OWN = LAYOUTS / "step1x"


class Step1X(OpenedEditor):
    """See `OpenedEditor`; what tokenises and what cuts pictures into patches stand beside its modules."""

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
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.version = version_of(transformer)
        super().__init__(
            {"text_encoder": text_encoder, "transformer": transformer, "vae": vae},
            scheduler_config=scheduler_config,
            in_fewer_bits={"unet": transformer.flux},
            device=device,
        )

    def dressing_room(self) -> Any:
        """See `OpenedEditor`: FLUX's own pipeline, of which nothing but the network is needed here."""
        missing = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        return diffusers.FluxPipeline(transformer=self.transformer.flux, **dict.fromkeys(missing))

    def editor(self, batcher: StepBatcher, **settings: Any) -> Step1XEditor:
        """What a run borrows; `settings` are those of a `DressedEditor`."""
        return Step1XEditor(self, batcher, **settings)

    def lessons(self, plan: TrainingPlan, batcher: StepBatcher) -> Step1XLessons:
        """What a trainer must know of it."""
        return Step1XLessons(self, plan, batcher)


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
