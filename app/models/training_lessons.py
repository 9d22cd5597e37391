"""What a trainer must know of a family: how pictures and texts come before its network, and what the loss is.

A trainer holds the device, with the learning layers on, whenever it asks anything here but `draw`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler
from PIL import Image

from app.core.training_fields import TrainingPlan
from app.models.adapters import Outfit
from app.models.lora_file import kohya_names
from app.models.step_batching import Session
from app.models.training_dataset import Sample, Text, cut_to_bucket, moments_of
from app.models.training_step import denoising_losses, draw_latents

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
"""The layers of a denoiser that learn, as in diffusers' training scripts; transformers name theirs alike."""
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")

PipelineFor = Callable[[Session, str | None], Any]
"""A borrowed pipeline that draws in this session with this scheduler."""


class Lessons(Protocol):
    """One checkpoint's; `networks` are those that learn, the denoiser among them under the name `denoiser`."""

    networks: Mapping[str, Any]
    denoiser: str

    @property
    def bucket_multiple(self) -> int:
        """Pixels by which every bucket's sides step, so that all halvings come out even."""

    def sample(
        self, image: Image.Image, caption: str, sizes: Sequence[tuple[int, int]], source: Image.Image | None
    ) -> Sample:
        """The picture cut to its bucket, as latents, and what it was made from."""

    def encode(self, sample: Sample) -> Text:
        """The caption's embedding."""

    def losses(
        self, batch: Sequence[Sample], texts: Sequence[Text], generator: torch.Generator, dtype: torch.dtype
    ) -> torch.Tensor:
        """The loss of each row [rows]; all chance is the generator's, on the CPU."""

    def draw(self, session: Session, outfit: Outfit, **arguments: Any) -> Image.Image:
        """A picture with what is learned so far; takes turns by itself."""

    def file_names(self, networks: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """peft's matrices of each network under the names that files have."""


class UNetLessons:
    """SD 1.5's and SDXL's."""

    denoiser = "unet"

    def __init__(self, checkpoint: Any, family: str, plan: TrainingPlan, pipeline_for: PipelineFor) -> None:
        self.plan = plan
        self.noise_scheduler = DDPMScheduler.from_config(checkpoint.scheduler_config)
        self._family = family
        self._device = checkpoint.device.torch_device
        self._pipeline_for = pipeline_for
        self._pipeline = checkpoint.view("text-to-image", None)
        names = ("text_encoder", "text_encoder_2") if plan.train_text_encoder else ()
        parts = checkpoint.components
        self.networks = {"unet": parts["unet"]} | {name: parts[name] for name in names if name in parts}

    @property
    def bucket_multiple(self) -> int:
        """See `Lessons`."""
        depth = len(self.networks["unet"].config.block_out_channels) - 1
        return self._pipeline.vae_scale_factor * 2**depth

    def sample(
        self, image: Image.Image, caption: str, sizes: Sequence[tuple[int, int]], source: Image.Image | None
    ) -> Sample:
        """See `Lessons`; this family makes pictures out of words alone."""
        cut, numbers = cut_to_bucket(image, sizes)
        return Sample(moments_of(self._pipeline.vae, cut), caption, numbers)

    def encode(self, sample: Sample) -> Text:
        """See `Lessons`."""
        told = {"device": self._device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        answer = self._pipeline.encode_prompt(sample.caption, **told)
        return Text(answer[0], answer[2] if len(answer) > 2 else None)

    def losses(
        self, batch: Sequence[Sample], texts: Sequence[Text], generator: torch.Generator, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `Lessons`."""
        config = self._pipeline.vae.config
        moments = torch.stack([sample.moments for sample in batch])
        shift = getattr(config, "shift_factor", None) or 0.0
        latents, noise = draw_latents(generator, moments, config.scaling_factor, shift)
        steps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), generator=generator)
        return denoising_losses(
            self.networks["unet"],
            self.noise_scheduler,
            latents.to(self._device, dtype),
            noise.to(self._device, dtype),
            timesteps.to(self._device),
            conditions=self._conditions(batch, texts),
            snr_gamma=self.plan.snr_gamma,
        )

    def _conditions(self, batch: Sequence[Sample], texts: Sequence[Text]) -> dict[str, Any]:
        found: dict[str, Any] = {"encoder_hidden_states": torch.cat([text.embeds for text in texts])}
        if texts[0].pooled is not None:
            numbers = torch.tensor([sample.time_ids for sample in batch], device=self._device)
            pooled = torch.cat([text.pooled for text in texts])
            found["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": numbers.to(pooled.dtype)}
        return found

    def draw(
        self, session: Session, outfit: Outfit, *, scheduler: str | None = None, image: None = None, **arguments: Any
    ) -> Image.Image:
        """See `Lessons`."""
        return self._pipeline_for(session, scheduler)(**arguments).images[0]

    def file_names(self, networks: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """See `Lessons`."""
        return kohya_names(self._family, networks, self.plan.lora_alpha)
