"""What a trainer must know of every editor that learns by flow matching on packed latents.

The noise levels are logit-normal (Esser et al., 2024) and the network foretells the velocity, noise - latents, as
diffusers' own training scripts for such transformers define it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from PIL import Image

from app.core.training_fields import TrainingPlan
from app.models.adapters import Outfit
from app.models.dressed_editing import DressedEditor
from app.models.opened_editor import OpenedEditor
from app.models.step_batching import Session, StepBatcher
from app.models.training_dataset import Sample, Source, Text, cut_to_bucket
from app.models.training_step import draw_latents, velocity_losses

Foretell = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From noisy latents [rows, channels, h, w] and timesteps [rows] to the velocity, packed."""


class FlowLessons(ABC):
    """See `app.models.training_lessons.Lessons`; `network` is what learns of the `opened` editor."""

    denoiser = "transformer"

    def __init__(
        self, opened: OpenedEditor, network: torch.nn.Module, plan: TrainingPlan, batcher: StepBatcher
    ) -> None:
        self.plan = plan
        self.networks = {"transformer": network}
        self._opened: Any = opened
        self._batcher = batcher
        self._device = opened.device.torch_device
        self.noise_scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(opened.scheduler_config)

    @property
    @abstractmethod
    def bucket_multiple(self) -> int:
        """See `Lessons`: a place of the network is two latents wide."""

    def sample(
        self, image: Image.Image, caption: str, sizes: Sequence[tuple[int, int]], source: Image.Image | None
    ) -> Sample:
        """See `Lessons`."""
        cut, _ = cut_to_bucket(image, sizes)
        return Sample(self.moments(cut), caption, (), None if source is None else self.source(source, cut.size))

    @abstractmethod
    def moments(self, image: Image.Image) -> torch.Tensor:
        """The distribution of a picture's latents [2 * channels, h, w] before scaling, in float32 on the CPU."""

    @abstractmethod
    def source(self, image: Image.Image, size: tuple[int, int]) -> Source:
        """What is shown of the picture that one of this (width, height) was made from."""

    @property
    @abstractmethod
    def scaling(self) -> tuple[float | torch.Tensor, float | torch.Tensor]:
        """Factor and shift of the latents, as `draw_latents` takes them."""

    @abstractmethod
    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """[rows, channels, h, w] to the network's places [rows, places, 4 * channels]."""

    @abstractmethod
    def foretelling(
        self, batch: Sequence[Sample], texts: Sequence[Text], cells: tuple[int, int], generator: torch.Generator
    ) -> Foretell:
        """The network on this batch, whose pictures are so many places down and across."""

    def losses(
        self, batch: Sequence[Sample], texts: Sequence[Text], generator: torch.Generator, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `Lessons`."""
        latents, noise = draw_latents(generator, torch.stack([sample.moments for sample in batch]), *self.scaling)
        share = compute_density_for_timestep_sampling("logit_normal", len(batch), 0.0, 1.0, generator=generator)
        indices = (share * self.noise_scheduler.config.num_train_timesteps).long()
        cells = latents.shape[2] // 2, latents.shape[3] // 2
        return velocity_losses(
            self.foretelling(batch, texts, cells, generator),
            latents.to(self._device, dtype),
            noise.to(self._device, dtype),
            self.noise_scheduler.sigmas[indices].to(self._device, dtype),
            self.noise_scheduler.timesteps[indices].to(self._device, dtype),
            pack=self.pack,
        )

    def dressed(self, session: Session, outfit: Outfit) -> DressedEditor:
        """The editor that draws in this session, with what is learned so far on."""
        editor = self._opened.editor(self._batcher, priority=session.priority, check=session.check)
        editor.put_on(outfit)
        return editor
