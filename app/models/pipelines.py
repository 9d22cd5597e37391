"""Diffusers checkpoints: one set of components, opened from a folder or a single file, seen as a pipeline per task.

Only `.safetensors` is read, no code of a checkpoint runs, and no network is asked: what a single file leaves out comes
from `single_files`. A view shares the components' weights and has a scheduler of its own.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open

from app.core.model_offload import Offload
from app.errors import InvalidRequest
from app.models import quantisation, schedulers
from app.models.adapters import PLAIN, Wardrobe
from app.models.compiling import CompiledBlocks
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.offloading import Placed, Placement
from app.models.single_files import config_folder, tokenizers
from app.models.spec import ModelSpec

PIPELINES: dict[str, dict[str, Any]] = {
    "sd15": {
        "text-to-image": diffusers.StableDiffusionPipeline,
        "image-to-image": diffusers.StableDiffusionImg2ImgPipeline,
        "inpaint": diffusers.StableDiffusionInpaintPipeline,
        "instruct-pix2pix": diffusers.StableDiffusionInstructPix2PixPipeline,
    },
    "sdxl": {
        "text-to-image": diffusers.StableDiffusionXLPipeline,
        "image-to-image": diffusers.StableDiffusionXLImg2ImgPipeline,
        "inpaint": diffusers.StableDiffusionXLInpaintPipeline,
        "instruct-pix2pix": diffusers.StableDiffusionXLInstructPix2PixPipeline,
    },
}
WITH_CONTROLS: dict[str, dict[str, Any]] = {
    "sd15": {
        "text-to-image": diffusers.StableDiffusionControlNetPipeline,
        "image-to-image": diffusers.StableDiffusionControlNetImg2ImgPipeline,
        "inpaint": diffusers.StableDiffusionControlNetInpaintPipeline,
    },
    "sdxl": {
        "text-to-image": diffusers.StableDiffusionXLControlNetPipeline,
        "image-to-image": diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
        "inpaint": diffusers.StableDiffusionXLControlNetInpaintPipeline,
    },
}
CHANNELS = {"inpaint": (4, 9), "instruct-pix2pix": (8,)}
"""Task -> the channels that a UNet for it may take, where these are not four: it sees a picture beside the noise."""

FIRST_WEIGHTS = ("model.diffusion_model.input_blocks.0.0.weight", "conv_in.weight")
LIBRARIES = {"diffusers", "transformers"}
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
SCHEDULE_OPTIONS = ("timestep_spacing", "prediction_type", "rescale_betas_zero_snr")

EDM_KEYS, SIGMAS = "edm_vpred.", ("sigma_min", "sigma_max")
"""How a single file names the sigmas that it was trained with."""


class Checkpoint(Placed):
    """The components of one checkpoint, in RAM until `place`.

    `prompt_encoder` and `wardrobe` are kept here, so that what they remember goes when the weights go.
    """

    def __init__(
        self, family: str, components: Mapping[str, Any], flags: Mapping[str, Any], device: TorchDevice
    ) -> None:
        self.family = family
        self.components = dict(components)
        self.flags = dict(flags)
        self.scheduler_config = dict(self.components.pop("scheduler"))
        self.prompt_encoder: Any = None
        self.device = device
        modules = {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        self.modules = list(modules.values())
        for module in self.modules:
            module.eval().requires_grad_(False)
        quantisation.quantise(modules, device)
        if device.has_cpu_profile:
            for name in ("unet", "vae"):
                self.components[name].to(memory_format=torch.channels_last)
        self.placement = Placement(modules, device.torch_device, device.offload)
        self._blocks = CompiledBlocks(self.components["unet"])
        self._compiles = device.compiles
        self.wardrobe = Wardrobe(building=self.placement.building, on_change=self._use_compiled)

    def place(self) -> None:
        """Move the weights to the device, or let them visit it."""
        self.placement.put()
        self._use_compiled()

    def park(self) -> None:
        """Move the weights to RAM."""
        self.wardrobe.wear(None)
        self.wardrobe.clear()
        self._blocks.use(False)
        self.placement.take()

    def stream(self) -> int | None:
        """See `Placed.stream`."""
        needs = super().stream()
        self._use_compiled()
        return needs

    @property
    def is_compiled(self) -> bool:
        """Whether its blocks run compiled when no additions are worn: not under hooks, nor with attention in slices."""
        return self._compiles and self.placement.strategy in {Offload.NONE, Offload.VAE}

    def _use_compiled(self) -> None:
        self._blocks.use(self.is_compiled and self.wardrobe.worn in {None, PLAIN})

    def view(self, task: str, scheduler: str | None, controlnets: Sequence[Any] = ()) -> Any:
        """A stock diffusers pipeline for this task over the shared components, with a fresh scheduler."""
        pipeline_class = (WITH_CONTROLS if controlnets else PIPELINES)[self.family].get(task)
        if pipeline_class is None:
            raise InvalidRequest(f"A checkpoint of this family does not serve {task}.", task=task)
        channels = self.components["unet"].config.in_channels
        if channels not in CHANNELS.get(task, (4,)):
            raise InvalidRequest(f"A checkpoint of {channels} channels does not serve {task}.", task=task)
        more = {"controlnet": controlnets[0] if len(controlnets) == 1 else list(controlnets)} if controlnets else {}
        pipeline = pipeline_class(
            **self.components, **more, scheduler=schedulers.create(scheduler, self.scheduler_config), **self.flags
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> Checkpoint:
    """Open a checkpoint and put its parts in: a base where the row is one component, a VAE in the base's place."""
    if spec.family not in PIPELINES:
        raise InvalidRequest(f"The model {spec.id!r} is of a family that this loader does not open.", model=spec.id)
    try:
        return _load(spec, path, device, parts)
    except (OSError, SafetensorError, SingleFileComponentError, ValueError, KeyError) as error:
        raise InvalidRequest(
            f"The model {spec.id!r} cannot be opened: its files are not a whole {spec.family} checkpoint.",
            model=spec.id,
        ) from error


def _load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow]) -> Checkpoint:
    own: dict[str, Any] = {}
    for part in parts:
        if part.spec.kind == "vae":
            own["vae"] = _load_vae(part, device)
    source, location = spec, path
    if spec.options.get("layout") == "component":
        base = next(part for part in parts if part.spec.kind == "checkpoint")
        source, location = base.spec, base.path
        more = {} if (channels := _channels_in_file(path)) == 4 else {"in_channels": channels}
        own["unet"] = _load_unet(path, _configuration(base.path, base.spec.family), device, **more)
    opened = (
        _open_file(source, location, device, own) if location.is_file() else _open_folder(source, location, device, own)
    )
    components = {name: part for name, part in opened.components.items() if name not in NOT_LOADED}
    overrides = {name: spec.options[name] for name in SCHEDULE_OPTIONS if name in spec.options}
    schedule = _schedule_in_file(location) if location.is_file() else {}
    own_schedule = {} if schedulers.is_edm(schedule) else opened.scheduler.config
    components["scheduler"] = {**own_schedule, **schedule, **overrides}
    if spec.family == "sdxl":
        flags = {
            "force_zeros_for_empty_prompt": opened.config.get("force_zeros_for_empty_prompt", True),
            "add_watermarker": False,
        }
        if schedulers.is_edm(components["scheduler"]):
            flags["is_cosxl_edit"] = True
    else:
        flags = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return Checkpoint(spec.family, components, flags, device)


def _configuration(path: Path, family: str) -> Path:
    return config_folder(path, family) if path.is_file() else path


def _load_vae(part: ModelRow, device: TorchDevice) -> Any:
    if part.path.is_file():
        return diffusers.AutoencoderKL.from_single_file(
            str(part.path),
            config=str(config_folder(part.path, part.spec.family)),
            subfolder="vae",
            dtype=device.dtype,
            local_files_only=True,
        )
    return diffusers.AutoencoderKL.from_pretrained(
        part.path,
        dtype=device.dtype,
        variant=part.spec.options.get("variant"),
        use_safetensors=True,
        local_files_only=True,
    )


def _load_unet(file: Path, configuration: Path, device: TorchDevice, **differences: Any) -> Any:
    return diffusers.UNet2DConditionModel.from_single_file(
        str(file),
        config=str(configuration),
        subfolder="unet",
        dtype=device.dtype,
        local_files_only=True,
        **differences,
    )


def _open_folder(spec: ModelSpec, folder: Path, device: TorchDevice, own: Mapping[str, Any]) -> Any:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    for name, value in index.items():
        foreign = isinstance(value, list) and value[0] is not None and value[0] not in LIBRARIES
        if foreign and name not in NOT_LOADED:
            raise InvalidRequest(f"The model {spec.id!r} asks for code of its own, which is never run.", model=spec.id)
    pipeline_class = PIPELINES[spec.family]["text-to-image"]
    absent = {name: None for name in NOT_LOADED if name in index}
    return pipeline_class.from_pretrained(
        folder,
        dtype=device.dtype,
        variant=spec.options.get("variant"),
        use_safetensors=True,
        local_files_only=True,
        **absent,
        **own,
    )


def _open_file(spec: ModelSpec, file: Path, device: TorchDevice, own: Mapping[str, Any]) -> Any:
    configuration = config_folder(file, spec.family)
    pipeline_class = PIPELINES[spec.family]["text-to-image"]
    own = dict(own)
    channels = _channels_in_file(file)
    if "unet" not in own and channels != 4:
        own["unet"] = _load_unet(file, configuration, device, in_channels=channels)
    return pipeline_class.from_single_file(
        str(file),
        config=str(configuration),
        dtype=device.dtype,
        local_files_only=True,
        **tokenizers(configuration),
        **own,
    )


def _channels_in_file(file: Path) -> int:
    """How many channels the UNet takes whose weights lie in a file, under its own or diffusers' names."""
    with safe_open(file, "pt") as weights:
        names = set(weights.keys())
        first = next((name for name in FIRST_WEIGHTS if name in names), FIRST_WEIGHTS[0])
        return weights.get_slice(first).get_shape()[1]


def _schedule_in_file(file: Path) -> dict[str, Any]:
    """What the file says of its training: the marker keys of v-prediction, zero terminal SNR and EDM's sigmas."""
    with safe_open(file, "pt") as weights:
        names = set(weights.keys())
        told = {name: weights.get_tensor(EDM_KEYS + name).item() for name in SIGMAS if EDM_KEYS + name in names}
    if told:
        return {**schedulers.COSXL, **told}
    found: dict[str, Any] = {}
    if "v_pred" in names:
        found["prediction_type"] = "v_prediction"
    if "ztsnr" in names:
        found |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return found
