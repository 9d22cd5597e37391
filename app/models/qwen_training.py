"""What a trainer must know of Qwen-Image-Edit: flow matching on packed latents, with or without a source picture.

With one, the language model reads picture and instruction and the network sees both pictures, exactly as the stock
pipeline of the version has it; without, the same network learns from words as Qwen-Image does. The noise levels are
logit-normal (Esser et al., 2024) and the network foretells the velocity, noise - latents, as diffusers' own training
script for Qwen-Image defines it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from PIL import Image

from app.core.training_fields import TrainingPlan
from app.models.adapters import Outfit
from app.models.lora_file import kohya_names
from app.models.step_batching import Session, StepBatcher
from app.models.training_dataset import Sample, Source, Text, as_pixels, cut_to_bucket
from app.models.training_step import draw_latents, velocity_losses

VAE_AREA, READ_AREA = 1024 * 1024, 384 * 384
"""Pixels of a source as the stock pipelines show it to the autoencoder, and the later ones to the language model."""


class QwenLessons:
    """See `app.models.training_lessons.Lessons`; `opened` is a `QwenImageEdit`."""

    denoiser = "transformer"

    def __init__(self, opened: Any, plan: TrainingPlan, batcher: StepBatcher) -> None:
        self.plan = plan
        self.networks = {"transformer": opened.transformer}
        self._opened = opened
        self._batcher = batcher
        self._device = opened.device.torch_device
        self._drawing = opened.view("draw", {})
        self._editing = opened.view("plus" if opened.takes_several else "edit", {})
        self.noise_scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(opened.scheduler_config)

    @property
    def bucket_multiple(self) -> int:
        """See `Lessons`: a place of the network is two latents wide."""
        return self._drawing.vae_scale_factor * 2

    def sample(
        self, image: Image.Image, caption: str, sizes: Sequence[tuple[int, int]], source: Image.Image | None
    ) -> Sample:
        """See `Lessons`; the source keeps its own shape, as it does when the model is used."""
        cut, _ = cut_to_bucket(image, sizes)
        vae = self._opened.vae
        with torch.no_grad():
            pixels = as_pixels(cut)[:, :, None].to(self._device, vae.dtype)
            moments = vae.encode(pixels).latent_dist.parameters[0, :, 0].float().cpu()
        return Sample(moments, caption, (), None if source is None else self._source(source))

    def _source(self, image: Image.Image) -> Source:
        """What the stock pipeline makes of a picture that is to be changed."""
        pipeline = self._editing
        sized: Callable[..., Any] = inspect.getmodule(type(pipeline)).calculate_dimensions
        width, height = sized(VAE_AREA, image.width / image.height)[:2]
        resize = pipeline.image_processor.resize
        shown = resize(image, height, width)
        if self._opened.takes_several:
            read_width, read_height = sized(READ_AREA, image.width / image.height)[:2]
            read = resize(image, read_height, read_width)
        else:
            read = shown
        pixels = pipeline.image_processor.preprocess(shown, height, width).unsqueeze(2)
        channels = self.networks["transformer"].config.in_channels // 4
        with torch.no_grad():
            _, packed = pipeline.prepare_latents(
                pixels, 1, channels, height, width, self._opened.vae.dtype, self._device, torch.Generator("cpu")
            )
        cells = self.bucket_multiple
        return Source(packed.float().cpu(), (height // cells, width // cells), read)

    def encode(self, sample: Sample) -> Text:
        """See `Lessons`."""
        if sample.source is None:
            embeds, _ = self._drawing.encode_prompt(sample.caption, device=self._device)
        else:
            read = [sample.source.read] if self._opened.takes_several else sample.source.read
            embeds, _ = self._editing.encode_prompt(sample.caption, image=read, device=self._device)
        return Text(embeds, None)

    def losses(
        self, batch: Sequence[Sample], texts: Sequence[Text], generator: torch.Generator, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `Lessons`."""
        config = self._opened.vae.config
        mean, deviation = (torch.tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        latents, noise = draw_latents(generator, torch.stack([sample.moments for sample in batch]), 1 / deviation, mean)
        share = compute_density_for_timestep_sampling("logit_normal", len(batch), 0.0, 1.0, generator=generator)
        indices = (share * self.noise_scheduler.config.num_train_timesteps).long()
        height, width = latents.shape[2] // 2, latents.shape[3] // 2
        sources = [sample.source for sample in batch if sample.source is not None]
        shapes = [(1, height, width), *((1, *sources[0].cells) for _ in sources[:1])]
        embeds, mask = padded([text.embeds for text in texts])

        def foretell(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            packed = self._pack(noisy)
            seen = torch.cat([packed, torch.cat([one.latents for one in sources]).to(packed)], 1) if sources else packed
            answer = self.networks["transformer"](
                hidden_states=seen,
                timestep=timesteps / 1000,
                encoder_hidden_states=embeds.to(packed.dtype),
                encoder_hidden_states_mask=mask,
                img_shapes=[shapes] * len(batch),
                return_dict=False,
            )[0]
            return answer[:, : packed.shape[1]]

        return velocity_losses(
            foretell,
            latents.to(self._device, dtype),
            noise.to(self._device, dtype),
            self.noise_scheduler.sigmas[indices].to(self._device, dtype),
            self.noise_scheduler.timesteps[indices].to(self._device, dtype),
            pack=self._pack,
        )

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        return self._drawing._pack_latents(latents, *latents.shape)

    def draw(
        self,
        session: Session,
        outfit: Outfit,
        *,
        guidance_scale: float,
        image: Image.Image | None = None,
        scheduler: str | None = None,
        **arguments: Any,
    ) -> Image.Image:
        """See `Lessons`; guidance is that of a negative prompt, and the noise schedule the checkpoint's own."""
        editor = self._opened.editor(self._batcher, priority=session.priority, check=session.check)
        editor.put_on(outfit)
        shown = [] if image is None else [image]
        return editor(image=shown, true_cfg_scale=guidance_scale, **arguments).images[0]

    def file_names(self, networks: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """See `Lessons`."""
        return kohya_names("qwen-image", networks, self.plan.lora_alpha)


def padded(embeds: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Embeddings [1, tokens, width] as rows of one length, and which tokens are words; None where all are."""
    longest = max(one.shape[1] for one in embeds)
    rows = torch.cat([torch.nn.functional.pad(one, (0, 0, 0, longest - one.shape[1])) for one in embeds])
    if all(one.shape[1] == longest for one in embeds):
        return rows, None
    lengths = torch.tensor([one.shape[1] for one in embeds], device=rows.device)
    return rows, (torch.arange(longest, device=rows.device) < lengths[:, None]).long()
