"""A LoRA that learns on a borrowed checkpoint: put on and taken off for each step, so that others use the same weights.

What must never happen: a job beside the training meets the half-learned LoRA, or the training meets theirs. It cannot,
because the learning layers are an outfit like any other: each step takes its turn on the device, dresses, and works
alone until it is done. The price is a few hundred assignments when others worked between two steps.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import load_file, save_file

from app.core.training_fields import TrainingPlan, kinds_of
from app.errors import InvalidRequest, OutOfMemory
from app.models.adapters import Outfit, Place
from app.models.lora_file import kohya_names, metadata_of, write_lora
from app.models.optimisers import make_optimiser, optimiser_state, restore_optimiser
from app.models.step_batching import Session, StepBatcher
from app.models.training_dataset import Batches, Sample, Text, buckets, cut_to_bucket, moments_of
from app.models.training_step import denoising_losses, draw_noise

ADAPTER = "learned"
UNET_LAYERS = ("to_k", "to_q", "to_v", "to_out.0")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
BUCKET_MULTIPLE = 8
"""Latents are as many pixels apart; the UNet halves them a few times more, so buckets step by its own multiple."""
STATE_FILE = "optimiser.json"

PipelineFor = Callable[[Session, str | None], Any]
"""A borrowed pipeline that draws in this session with this scheduler."""


class LoraTrainer:
    """See `app.core.capability.Trainer`. `checkpoint` stays pinned for as long as this is used."""

    def __init__(
        self,
        checkpoint: Any,
        family: str,
        plan: TrainingPlan,
        *,
        batcher: StepBatcher,
        session: Session,
        pipeline_for: PipelineFor,
    ) -> None:
        self.plan = plan
        self.family = family
        self._checkpoint = checkpoint
        self._batcher = batcher
        self._device = checkpoint.device.torch_device
        self._pipeline_for = pipeline_for
        self._pipeline = checkpoint.view("text-to-image", None)
        self._noise_scheduler = DDPMScheduler.from_config(checkpoint.scheduler_config)
        names = ("text_encoder", "text_encoder_2") if plan.train_text_encoder else ()
        parts = checkpoint.components
        self.networks = {"unet": parts["unet"]} | {name: parts[name] for name in names if name in parts}
        self._layers: dict[str, Any] = {}
        self._samples: Batches | None = None
        self._class_samples: Batches | None = None
        self._texts: dict[str, Text] = {}
        self._captions: list[str] = []
        with batcher.turn(session):
            places = checkpoint.wardrobe.building(self._add_layers)
        self.outfit = Outfit((ADAPTER, id(self)), tuple(places))
        self._session = Session(
            session.priority, self.outfit.key, session.check, lambda: checkpoint.wardrobe.wear(self.outfit)
        )
        self._make_optimiser()

    # What it learns from

    def prepare(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        class_images: Sequence[Image.Image] = (),
        class_prompt: str = "",
    ) -> None:
        """See `Trainer`; takes a turn for each picture and each text."""
        sizes = buckets(self.plan.resolution, self._bucket_multiple)
        samples = [self._sample(image, text, sizes) for image, text in zip(images, captions, strict=True)]
        self._samples = Batches(samples, self.plan.train_batch_size, self.plan.seed)
        kinds = kinds_of(class_prompt)
        if class_images:
            texts = itertools.cycle(kinds)
            kept = [self._sample(image, text, sizes) for image, text in zip(class_images, texts, strict=False)]
            self._class_samples = Batches(kept, self.plan.train_batch_size, self.plan.seed + 1)
        self._captions = list(captions)
        if not self.plan.train_text_encoder:
            for caption in dict.fromkeys([*captions, *(kinds if class_images else [])]):
                with self._working(), torch.no_grad():
                    self._texts[caption] = self._encode(caption)

    @property
    def _bucket_multiple(self) -> int:
        """Pixels by which every bucket's sides step, so that the UNet's halvings come out even."""
        depth = len(self.networks["unet"].config.block_out_channels) - 1
        return self._pipeline.vae_scale_factor * 2**depth

    def _sample(self, image: Image.Image, caption: str, sizes: Sequence[tuple[int, int]]) -> Sample:
        cut, numbers = cut_to_bucket(image, sizes)
        vae = self._pipeline.vae
        with self._working():
            dtype = vae.dtype
            try:
                # SDXL's own autoencoder gives no numbers in float16.
                vae.to(dtype=torch.float32)
                moments = moments_of(vae, cut)
            finally:
                vae.to(dtype=dtype)
        return Sample(moments, caption, numbers)

    def _encode(self, caption: str) -> Text:
        told = {"device": self._device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        answer = self._pipeline.encode_prompt(caption, **told)
        return Text(answer[0], answer[2] if len(answer) > 2 else None)

    # Learning

    def step(self, number: int) -> float:
        """See `Trainer`."""
        with self._working():
            total = 0.0
            for part in range(self.plan.gradient_accumulation_steps):
                loss = self.loss((number - 1) * self.plan.gradient_accumulation_steps + part)
                (loss / self.plan.gradient_accumulation_steps).backward()
                total += loss.item() / self.plan.gradient_accumulation_steps
            torch.nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
            self.optimiser.step()
            self._rates.step()
            self.optimiser.zero_grad(set_to_none=True)
        return total

    def loss(self, number: int) -> torch.Tensor:
        """The loss of the batch of this number (from 0), with its graph; the device is held."""
        if self._samples is None:
            raise RuntimeError("nothing to learn from: call prepare first")
        loss = self._loss_on(self._samples, number, self.plan.snr_gamma)
        if self._class_samples is not None:
            loss = loss + self.plan.prior_loss_weight * self._loss_on(self._class_samples, number, self.plan.snr_gamma)
        return loss

    def _loss_on(self, batches: Batches, number: int, snr_gamma: float | None) -> torch.Tensor:
        batch = batches.batch(number)
        is_class = batches is self._class_samples
        generator = torch.Generator("cpu").manual_seed((self.plan.seed * 2 + is_class + number * 7919) % 2**63)
        config = self._pipeline.vae.config
        latents, noise, timesteps = draw_noise(
            generator,
            torch.stack([sample.moments for sample in batch]),
            config.scaling_factor,
            getattr(config, "shift_factor", None) or 0.0,
            self._noise_scheduler.config.num_train_timesteps,
        )
        unet = self.networks["unet"]
        at = {"device": self._device, "dtype": torch.float32 if self._is_mixed else unet.dtype}
        with self._autocast():
            return denoising_losses(
                unet,
                self._noise_scheduler,
                latents.to(**at),
                noise.to(**at),
                timesteps.to(self._device),
                conditions=self._conditions(batch),
                snr_gamma=snr_gamma,
            ).mean()

    def _conditions(self, batch: Sequence[Sample]) -> dict[str, Any]:
        texts = [self._texts.get(sample.caption) or self._encode(sample.caption) for sample in batch]
        found: dict[str, Any] = {"encoder_hidden_states": torch.cat([text.embeds for text in texts])}
        if texts[0].pooled is not None:
            numbers = torch.tensor([sample.time_ids for sample in batch], device=self._device)
            pooled = torch.cat([text.pooled for text in texts])
            found["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": numbers.to(pooled.dtype)}
        return found

    @property
    def _is_mixed(self) -> bool:
        wished = self.plan.mixed_precision
        return wished == "bf16" or (wished == "auto" and self._device.type == "cuda")

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._is_mixed else nullcontext()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the device with the learning layers on."""
        unet, deep = self.networks["unet"], self.plan.gradient_checkpointing
        with self._batcher.turn(self._session):
            if self._checkpoint.placement.strategy.keeps_weights_in_ram:
                raise OutOfMemory(
                    "Training needs the whole model on the device: use a smaller one, or set EIS_OFFLOAD to none."
                )
            if deep:
                unet.enable_gradient_checkpointing()
            try:
                with torch.enable_grad():
                    yield
            finally:
                if deep:
                    unet.disable_gradient_checkpointing()

    def draw(self, *, scheduler: str | None = None, **arguments: Any) -> Image.Image:
        """See `Trainer`; other jobs get their turns between its steps."""
        return self._pipeline_for(self._session, scheduler)(**arguments).images[0]

    # What it keeps

    def save(self, folder: Path) -> None:
        """See `Trainer`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors, rest = optimiser_state(self.optimiser)
        save_file(self.matrices(), folder / "lora.safetensors")
        save_file(tensors, folder / "optimiser.safetensors")
        (folder / STATE_FILE).write_text(json.dumps({"optimiser": rest, "rates": self._rates.state_dict()}))

    def restore(self, folder: Path) -> None:
        """See `Trainer`."""
        state = json.loads((folder / STATE_FILE).read_text())
        saved = load_file(folder / "lora.safetensors")
        with torch.no_grad():
            for key, parameter in self._named_matrices():
                parameter.copy_(saved[key])
        restore_optimiser(self.optimiser, load_file(folder / "optimiser.safetensors"), state["optimiser"])
        self._rates.load_state_dict(state["rates"])

    def matrices(self) -> dict[str, torch.Tensor]:
        """The LoRA as it is: component and peft's name -> matrix, on the CPU. Nobody else has them: no turn."""
        return {key: value.detach().cpu().clone().contiguous() for key, value in self._named_matrices()}

    def write(self, path: Path, metadata: Mapping[str, str]) -> None:
        """See `Trainer`; `metadata` is added to what the file says by itself."""
        networks: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in self.matrices().items():
            name, _, rest = key.partition(".")
            networks.setdefault(name, {})[rest] = value
        tensors = kohya_names(self.family, networks, self.plan.lora_alpha)
        write_lora(
            path, tensors, metadata_of(self.family, rank=self.plan.rank, alpha=self.plan.lora_alpha, told=metadata)
        )

    # Its layers

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that learns."""
        return [matrix for _, matrix in self._named_matrices()]

    def close(self) -> None:
        """Take the layers off for good."""
        with self._batcher.turn(Session(self._session.priority)):
            if self._checkpoint.wardrobe.worn is self.outfit:
                self._checkpoint.wardrobe.wear(None)

    def _named_matrices(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for key, layer in self._layers.items():
            yield f"{key}.lora_A.weight", layer.lora_A[ADAPTER].weight
            yield f"{key}.lora_B.weight", layer.lora_B[ADAPTER].weight

    def _groups(self) -> list[dict[str, Any]]:
        found = []
        for name in self.networks:
            lr = self.plan.learning_rate if name == "unet" else self.plan.text_encoder_lr
            learning = [matrix for key, matrix in self._named_matrices() if key.startswith(name + ".")]
            found.append({"params": learning, "lr": lr})
        return found

    def _make_optimiser(self) -> None:
        self.optimiser = make_optimiser(self.plan.optimizer, self._groups(), self._device)
        self._rates = get_scheduler(
            self.plan.lr_scheduler,
            self.optimiser,
            num_warmup_steps=self.plan.lr_warmup_steps,
            num_training_steps=self.plan.max_train_steps,
        )

    def _add_layers(self) -> list[Place]:
        """The layers, their first matrices drawn from the seed, and the networks as they were."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.plan.seed)
                for name, network in self.networks.items():
                    inject_adapter_in_model(self._config(name), network, ADAPTER)
            places: list[Place] = []
            for component, network in self.networks.items():
                for path, layer in network.named_modules():
                    if isinstance(layer, BaseTunerLayer):
                        parent, _, name = path.rpartition(".")
                        places.append((network.get_submodule(parent), name, layer))
                        self._layers[f"{component}.{path}"] = layer
                        for parameter in (p for p in layer.parameters() if p.requires_grad):
                            parameter.data = parameter.data.to(self._device, torch.float32)
            return places
        finally:
            for network in self.networks.values():
                _undress(network)

    def _config(self, name: str) -> LoraConfig:
        return LoraConfig(
            r=self.plan.rank,
            lora_alpha=self.plan.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=list(UNET_LAYERS if name == "unet" else TEXT_LAYERS),
        )


def _undress(network: torch.nn.Module) -> None:
    """Every child back in its place, and nothing said of adapters."""
    for path, layer in [*network.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, layer.base_layer)
    network.__dict__.pop("peft_config", None)


@contextmanager
def open_trainer(
    checkpoint: Any,
    family: str,
    plan: TrainingPlan,
    *,
    batcher: StepBatcher,
    session: Session,
    pipeline_for: PipelineFor,
) -> Iterator[LoraTrainer]:
    """A trainer on this checkpoint; on leaving, its layers are off."""
    if checkpoint.device.precision in {"float8", "int8", "int4"}:
        raise InvalidRequest("A model whose weights are stored in fewer bits cannot be trained on; see EIS_PRECISION.")
    if plan.mixed_precision == "no" and checkpoint.components["unet"].dtype is torch.float16:
        raise InvalidRequest(
            "This model stands in float16, in which gradients vanish: train with bf16, or set EIS_PRECISION=float32.",
            field="mixed_precision",
        )
    trainer = LoraTrainer(checkpoint, family, plan, batcher=batcher, session=session, pipeline_for=pipeline_for)
    try:
        yield trainer
    finally:
        trainer.close()
