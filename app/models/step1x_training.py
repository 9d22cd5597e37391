"""What a trainer must know of Step1X-Edit: FLUX's layers learn, its connector and language model stay as they are.

It draws nothing from words alone, so that every picture comes with the one it was made from. Both are cut to one
bucket, because target and reference stand on one grid when the model is used. The rows of a batch go through the
network one after the other: v1.2 gives every text places of its own, and FLUX's attention knows no mask for padding.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from app.core.training_fields import TrainingPlan
from app.errors import InvalidRequest
from app.models.adapters import Outfit
from app.models.dressed_editing import MULTIPLE
from app.models.flow_lessons import FlowLessons, Foretell
from app.models.lora_file import diffusers_names
from app.models.step1x_editing import pack
from app.models.step1x_text import image_ids
from app.models.step_batching import Session, StepBatcher
from app.models.training_dataset import Sample, Source, Text, cut_to_bucket, moments_of
from app.models.training_step import draw_from


class Step1XLessons(FlowLessons):
    """See `FlowLessons`; `opened` is a `Step1X`."""

    bucket_multiple = MULTIPLE

    def __init__(self, opened: Any, plan: TrainingPlan, batcher: StepBatcher) -> None:
        super().__init__(opened, opened.transformer.flux, plan, batcher)
        self._editor = opened.editor(batcher)

    def moments(self, image: Image.Image) -> torch.Tensor:
        """See `FlowLessons`."""
        return moments_of(self._opened.vae, image)

    def source(self, image: Image.Image, size: tuple[int, int]) -> Source:
        """See `FlowLessons`; the reference is drawn anew from its distribution, as it is when the model is used."""
        cut, _ = cut_to_bucket(image, [size])
        return Source(self.moments(cut), (size[1] // MULTIPLE, size[0] // MULTIPLE), cut)

    @property
    def scaling(self) -> tuple[float, float]:
        """See `FlowLessons`."""
        config = self._opened.vae.config
        return config.scaling_factor, config.shift_factor

    def encode(self, sample: Sample) -> Text:
        """See `Lessons`; `InvalidRequest` without a source."""
        told = self._editor.encode(sample.caption, _source_of(sample).read)
        return Text(told.pop("encoder_hidden_states"), None, told)

    def foretelling(
        self, batch: Sequence[Sample], texts: Sequence[Text], cells: tuple[int, int], generator: torch.Generator
    ) -> Foretell:
        """See `FlowLessons`; chance goes to the references, in the order of the rows."""
        moments = torch.stack([_source_of(sample).latents for sample in batch])
        references = pack(draw_from(generator, moments, *self.scaling))
        ids = image_ids(self._opened.version, *cells)
        words = [{"encoder_hidden_states": text.embeds, **text.more} for text in texts]

        def foretell(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            packed = pack(noisy)
            seen = torch.cat([packed, references.to(packed)], dim=1)
            rows = zip(seen.split(1), (timesteps / 1000).split(1), words, strict=True)
            velocities = [self._editor.predict(places, time, ids, told) for places, time, told in rows]
            return torch.cat(velocities)[:, : packed.shape[1]]

        return foretell

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """See `FlowLessons`."""
        return pack(latents)

    def draw(
        self,
        session: Session,
        outfit: Outfit,
        *,
        image: Image.Image,
        width: int,
        height: int,
        scheduler: str | None = None,
        **arguments: Any,
    ) -> Image.Image:
        """See `Lessons`; the picture keeps its shape at about so many pixels, the noise schedule is the model's own."""
        editor: Any = self.dressed(session, outfit)
        return editor(image=image, size_level=round(math.sqrt(width * height)), **arguments).images[0]

    def file_names(self, networks: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """See `Lessons`."""
        return diffusers_names(networks, scale=self.plan.lora_alpha / self.plan.rank)


def _source_of(sample: Sample) -> Source:
    if sample.source is None:
        raise InvalidRequest("Step1X-Edit learns from pairs alone: give source_images.", field="source_images")
    return sample.source
