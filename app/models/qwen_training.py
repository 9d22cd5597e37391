"""What a trainer must know of Qwen-Image-Edit, with or without a source picture.

With one, the language model reads picture and instruction and the network sees both pictures, exactly as the stock
pipeline of the version has it; without, the same network learns from words as Qwen-Image does.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from app.core.training_fields import TrainingPlan
from app.models.adapters import Outfit
from app.models.flow_lessons import FlowLessons, Foretell
from app.models.lora_file import kohya_names
from app.models.step_batching import Session, StepBatcher
from app.models.training_dataset import Sample, Source, Text, as_pixels

VAE_AREA, READ_AREA = 1024 * 1024, 384 * 384
"""Pixels of a source as the stock pipelines show it to the autoencoder, and the later ones to the language model."""


class QwenLessons(FlowLessons):
    """See `FlowLessons`; `opened` is a `QwenImageEdit`."""

    def __init__(self, opened: Any, plan: TrainingPlan, batcher: StepBatcher) -> None:
        super().__init__(opened, opened.transformer, plan, batcher)
        self._drawing = opened.view("draw", {})
        self._editing = opened.view("plus" if opened.takes_several else "edit", {})

    @property
    def bucket_multiple(self) -> int:
        """See `FlowLessons`."""
        return self._drawing.vae_scale_factor * 2

    def moments(self, image: Image.Image) -> torch.Tensor:
        """See `FlowLessons`."""
        vae = self._opened.vae
        with torch.no_grad():
            pixels = as_pixels(image)[:, :, None].to(self._device, vae.dtype)
            return vae.encode(pixels).latent_dist.parameters[0, :, 0].float().cpu()

    def source(self, image: Image.Image, size: tuple[int, int]) -> Source:
        """What the stock pipeline makes of a picture that is to be changed: it keeps its own shape."""
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

    @property
    def scaling(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See `FlowLessons`."""
        config = self._opened.vae.config
        mean, deviation = (torch.tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        return 1 / deviation, mean

    def encode(self, sample: Sample) -> Text:
        """See `Lessons`."""
        if sample.source is None:
            embeds, _ = self._drawing.encode_prompt(sample.caption, device=self._device)
        else:
            read = [sample.source.read] if self._opened.takes_several else sample.source.read
            embeds, _ = self._editing.encode_prompt(sample.caption, image=read, device=self._device)
        return Text(embeds, None)

    def foretelling(
        self, batch: Sequence[Sample], texts: Sequence[Text], cells: tuple[int, int], generator: torch.Generator
    ) -> Foretell:
        """See `FlowLessons`."""
        sources = [sample.source for sample in batch if sample.source is not None]
        shapes = [(1, *cells), *((1, *sources[0].cells) for _ in sources[:1])]
        embeds, mask = padded([text.embeds for text in texts])

        def foretell(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            packed = self.pack(noisy)
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

        return foretell

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """See `FlowLessons`."""
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
        shown = [] if image is None else [image]
        editor: Any = self.dressed(session, outfit)
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
