"""A LoRA that learns on a borrowed checkpoint: put on and taken off for each step, so that others use the same weights.

What must never happen: a job beside the training meets the half-learned LoRA, or the training meets theirs. It cannot,
because the learning layers are an outfit like any other: each step takes its turn on the device, dresses, and works
alone until it is done. The price is a few hundred assignments when others worked between two steps.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import load_file, save_file

from app.core.training_fields import TrainingPlan, kinds_of
from app.errors import InvalidRequest, OutOfMemory
from app.models.adapters import Outfit, Place
from app.models.lora_file import metadata_of, write_lora
from app.models.optimisers import make_optimiser, optimiser_state, restore_optimiser
from app.models.step_batching import Session, StepBatcher
from app.models.training_dataset import Batches, Sample, Source, Text, buckets
from app.models.training_lessons import ATTENTION, TEXT_LAYERS, Lessons

ADAPTER = "learned"
STATE_FILE = "optimiser.json"


class LoraTrainer:
    """See `app.core.capability.Trainer`. `checkpoint` stays pinned for as long as this is used."""

    def __init__(
        self,
        checkpoint: Any,
        family: str,
        lessons: Lessons,
        plan: TrainingPlan,
        *,
        batcher: StepBatcher,
        session: Session,
    ) -> None:
        self.plan = plan
        self.family = family
        self.lessons = lessons
        self.networks = lessons.networks
        self._denoiser = self.networks[lessons.denoiser]
        self._checkpoint = checkpoint
        self._batcher = batcher
        self._device = checkpoint.device.torch_device
        self._layers: dict[str, Any] = {}
        self._samples: Batches | None = None
        self._class_samples: Batches | None = None
        self._texts: dict[tuple[str, Source | None], Text] = {}
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
        sources: Sequence[Image.Image] = (),
    ) -> None:
        """See `Trainer`; takes a turn for each picture and each text."""
        sizes = buckets(self.plan.resolution, self.lessons.bucket_multiple)
        pairs = zip(images, captions, sources or [None] * len(images), strict=True)
        samples = [self._sample(image, text, sizes, source) for image, text, source in pairs]
        self._samples = Batches(samples, self.plan.train_batch_size, self.plan.seed)
        texts = itertools.cycle(kinds_of(class_prompt))
        kept = [self._sample(image, text, sizes, None) for image, text in zip(class_images, texts, strict=False)]
        if kept:
            self._class_samples = Batches(kept, self.plan.train_batch_size, self.plan.seed + 1)
        if not self.plan.train_text_encoder:
            for sample in {sample.read: sample for sample in [*samples, *kept]}.values():
                with self._working(), torch.no_grad():
                    self._texts[sample.read] = self.lessons.encode(sample)

    def _sample(
        self, image: Image.Image, caption: str, sizes: Sequence[tuple[int, int]], source: Image.Image | None
    ) -> Sample:
        vae = self._checkpoint.components["vae"]
        with self._working():
            dtype = vae.dtype
            try:
                # SDXL's own autoencoder gives no numbers in float16.
                vae.to(dtype=torch.float32)
                return self.lessons.sample(image, caption, sizes, source)
            finally:
                vae.to(dtype=dtype)

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
        loss = self._loss_on(self._samples, number)
        if self._class_samples is not None:
            loss = loss + self.plan.prior_loss_weight * self._loss_on(self._class_samples, number)
        return loss

    def _loss_on(self, batches: Batches, number: int) -> torch.Tensor:
        batch = batches.batch(number)
        is_class = batches is self._class_samples
        generator = torch.Generator("cpu").manual_seed((self.plan.seed * 2 + is_class + number * 7919) % 2**63)
        dtype = torch.float32 if self._is_mixed else self._denoiser.dtype
        with self._autocast():
            texts = [self._texts.get(sample.read) or self.lessons.encode(sample) for sample in batch]
            return self.lessons.losses(batch, texts, generator, dtype).mean()

    @property
    def _is_mixed(self) -> bool:
        wished = self.plan.mixed_precision
        return wished == "bf16" or (wished == "auto" and self._device.type == "cuda")

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._is_mixed else nullcontext()

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Hold the device with the learning layers on."""
        deep = self.plan.gradient_checkpointing
        with self._batcher.turn(self._session):
            if self._checkpoint.placement.strategy.keeps_weights_in_ram:
                raise OutOfMemory(
                    "Training needs the whole model on the device: use a smaller one, or set EIS_OFFLOAD to none."
                )
            if deep:
                self._denoiser.enable_gradient_checkpointing()
            try:
                with torch.enable_grad():
                    yield
            finally:
                if deep:
                    self._denoiser.disable_gradient_checkpointing()

    def draw(self, **arguments: Any) -> Image.Image:
        """See `Trainer`; other jobs get their turns between its steps."""
        return self.lessons.draw(self._session, self.outfit, **arguments)

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
        told = metadata_of(self.family, rank=self.plan.rank, alpha=self.plan.lora_alpha, told=metadata)
        write_lora(path, self.lessons.file_names(networks), told)

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
            lr = self.plan.learning_rate if name == self.lessons.denoiser else self.plan.text_encoder_lr
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
            target_modules=list(ATTENTION if name == self.lessons.denoiser else TEXT_LAYERS),
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
    lessons: Lessons,
    plan: TrainingPlan,
    *,
    batcher: StepBatcher,
    session: Session,
) -> Iterator[LoraTrainer]:
    """A trainer on this checkpoint; on leaving, its layers are off."""
    if checkpoint.device.precision in {"float8", "int8", "int4"}:
        raise InvalidRequest("A model whose weights are stored in fewer bits cannot be trained on; see EIS_PRECISION.")
    if plan.mixed_precision == "no" and lessons.networks[lessons.denoiser].dtype is torch.float16:
        raise InvalidRequest(
            "This model stands in float16, in which gradients vanish: train with bf16, or set EIS_PRECISION=float32.",
            field="mixed_precision",
        )
    trainer = LoraTrainer(checkpoint, family, lessons, plan, batcher=batcher, session=session)
    try:
        yield trainer
    finally:
        trainer.close()
