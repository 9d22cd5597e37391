"""Step1X-Edit at work: an instruction and a picture in, the edited picture out; and what the model says of pictures.

The device is taken for each denoising step and each answer anew, so that other jobs come in between. Between two steps,
and between two tokens of an answer, the job may end.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, pad
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from app.models.dressed_editing import MULTIPLE, DressedEditor
from app.models.offloading import working_device
from app.models.step1x_text import (
    CELL,
    IMAGE,
    IMAGE_PAD,
    V1_0,
    V1_2,
    Version,
    chat,
    image_ids,
    text_ids,
    tokens_of,
)

POWER = 0.4
"""Of the length of guidance, by which it is divided where the version normalises it."""
LOOKED_AT = (262144, 802816)
"""The least and the most pixels of a picture that the model is asked about."""
LARGEST_SIDE = 1024
TEMPERATURE, TOP_P = 0.7, 0.9


class Step1XEditor(DressedEditor):
    """One run's hold on an opened Step1X-Edit."""

    def _turn(self) -> Any:
        return self._batcher.turn(self.session)

    def __call__(self, *, generator: torch.Generator, **arguments: Any) -> Any:
        """The answer's `.images` hold the edited picture, at the size that the model works at (`working_size`);
        `arguments` are those of `_edit`.
        """
        return self._relieved(partial(self._edit, generator=generator, **arguments), generator)

    @torch.no_grad()
    def _edit(
        self,
        *,
        prompt: str,
        image: Image.Image,
        negative_prompt: str = "",
        num_inference_steps: int = 28,
        guidance_scale: float = 6.0,
        size_level: int = 1024,
        generator: torch.Generator,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
    ) -> Any:
        opened, version = self._opened, self._opened.version
        width, height = working_size(image.size, size_level)
        seen = image.resize((width, height), Image.Resampling.BICUBIC if version is V1_0 else Image.Resampling.LANCZOS)
        texts = [prompt, negative_prompt] if guidance_scale > 1 else [prompt]
        with self._turn():
            told = [self.encode(text, seen) for text in texts]
        with self._turn():
            reference = self._encode_picture(image, seen, generator)
        latents = pack(
            torch.randn((1, opened.vae.config.latent_channels, height // 8, width // 8), generator=generator,
                        dtype=opened.device.dtype)
        ).to(reference)  # fmt: skip
        ids = image_ids(version, height // MULTIPLE, width // MULTIPLE)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(opened.scheduler_config)
        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=shift_of(latents.shape[1], scheduler.config), device=latents.device)
        scheduler.set_begin_index(0)
        self.num_timesteps = len(scheduler.timesteps)
        for index, moment in enumerate(scheduler.timesteps):
            with self._turn():
                timestep = moment.expand(1).to(latents.dtype) / 1000
                places = torch.cat([latents, reference], dim=1)
                wished, *rest = (self.predict(places, timestep, ids, words)[:, : latents.shape[1]] for words in told)
                if rest:
                    wished = guide(wished, rest[0], guidance_scale, version, float(moment) / 1000)
                latents = scheduler.step(wished, moment, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_on_step_end(self, index, moment, {})
        with self._turn():
            return SimpleNamespace(images=[self._decode(latents, height, width)])

    def count_timesteps(self, num_inference_steps: int, strength: float | None = None) -> int:
        """How often a call reports a step."""
        return num_inference_steps

    def encode(self, instruction: str, image: Image.Image) -> dict[str, torch.Tensor]:
        """The network's arguments for an instruction and the picture at the size that is worked at; `txt_ids` [n, 3].

        Called while the device is held.
        """
        opened, version = self._opened, self._opened.version
        pixels, grid = self._pixels([image], version.pixels)
        merged = grid[0, 1:] // 2
        ids, flags = tokens_of(version, instruction, opened.tokenizer, int(merged.prod()))
        inputs = self._inputs(ids, pixels, grid)
        positions, _ = opened.text_encoder.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs["attention_mask"],
        )
        hidden = opened.text_encoder(
            **inputs, position_ids=positions, output_hidden_states=True, logits_to_keep=1, use_cache=False
        ).hidden_states[-1]
        kept = slice(version.dropped, version.dropped + version.max_tokens)
        hidden = hidden[:, kept]
        count = hidden.shape[1]
        mask = torch.ones(1, count, dtype=torch.long, device=hidden.device)
        if version is not V1_2:
            empty = version.max_tokens - count if version.pads else 0
            return {
                "encoder_hidden_states": pad(hidden, (0, 0, 0, empty)),
                "prompt_embeds_mask": pad(mask, (0, empty)),
                "txt_ids": torch.zeros(count + empty, 3),
            }
        token_ids = inputs["input_ids"][:, kept]
        is_vision = token_ids[0].cpu() == opened.text_encoder.config.image_token_id
        return {
            "encoder_hidden_states": hidden,
            "prompt_embeds_mask": mask,
            "txt_ids": text_ids(positions[0, 0, kept].float().cpu(), is_vision, image.size, tuple(merged.tolist())),
            "text_embeddings": opened.text_encoder.get_input_embeddings()(token_ids).to(hidden),
            "text_mask": torch.tensor([flags[kept]], device=hidden.device),
        }

    def predict(
        self, places: torch.Tensor, timestep: torch.Tensor, ids: torch.Tensor, words: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The velocity [1, places, channels] at the target's and then the reference's places.

        `timestep` [1] is from 0 to 1, `ids` are those of all places, `words` what `encode` answered. Called while the
        device is held.
        """
        on_device = {name: tensor.to(places.device) for name, tensor in words.items()}
        return self._opened.transformer(places, timestep=timestep, img_ids=ids.to(places.device), **on_device)

    def _encode_picture(self, image: Image.Image, seen: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """The reference's places [1, places, channels], drawn from what the autoencoder thinks possible."""
        vae = self._opened.vae
        whole = image if self._opened.version is V1_2 else seen
        pixels = torch.from_numpy(np.array(whole.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        if whole is not seen:
            pixels = interpolate(pixels, seen.size[::-1], mode="bilinear", antialias=True)
        pixels = (pixels * 2 - 1).to(working_device(vae), vae.dtype)
        latents = vae.encode(pixels).latent_dist.sample(generator)
        return pack((latents - vae.config.shift_factor) * vae.config.scaling_factor)

    def _decode(self, latents: torch.Tensor, height: int, width: int) -> Image.Image:
        vae = self._opened.vae
        unpacked = unpack(latents, height // MULTIPLE, width // MULTIPLE)
        pixels = vae.decode(unpacked / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        array = (pixels[0].float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(array)

    def say(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        *,
        system: str,
        generator: torch.Generator,
        max_new_tokens: int = 512,
    ) -> str:
        """The model's answer to a text about pictures, which stand before it; it may end after any token."""
        answer = partial(self._say, text, images, system, generator, max_new_tokens)
        return self._relieved(answer, generator)

    @torch.no_grad()
    def _say(
        self, text: str, images: Sequence[Image.Image], system: str, generator: torch.Generator, max_new_tokens: int
    ) -> str:
        opened = self._opened
        tokenizer = opened.tokenizer
        shown = [shrunk(image) for image in images]
        with self._turn():
            pixels, grid = self._pixels(shown, LOOKED_AT) if shown else (None, None)
            ids = tokenizer.encode(chat(IMAGE * len(shown) + text, system), add_special_tokens=False)
            if grid is not None:
                ids = _expand(ids, tokenizer.convert_tokens_to_ids(IMAGE_PAD), (grid.prod(-1) // 4).tolist())
            inputs = self._inputs(ids, pixels, grid)
            end = tokenizer.convert_tokens_to_ids("<|im_end|>")
            answer = opened.text_encoder.generate(
                **inputs,
                logits_processor=LogitsProcessorList([Draw(generator, self._check)]),
                generation_config=GenerationConfig(
                    max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end
                ),
            )
        return tokenizer.decode(answer[0, len(ids) :], skip_special_tokens=True).strip()

    def _pixels(self, images: Sequence[Image.Image], limits: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The vision tower's patches of these pictures, and their grids [pictures, 3] of time, height and width."""
        read = self._opened.image_processor(
            images=list(images),
            size={"shortest_edge": limits[0], "longest_edge": limits[1]},
            return_tensors="pt",
        )
        return read["pixel_values"], read["image_grid_thw"]

    def _inputs(
        self, ids: Sequence[int], pixels: torch.Tensor | None, grid: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        encoder = self._opened.text_encoder
        device = working_device(encoder)
        token_ids = torch.tensor([list(ids)], device=device)
        inputs = {
            "input_ids": token_ids,
            "attention_mask": torch.ones_like(token_ids),
            "mm_token_type_ids": (token_ids == encoder.config.image_token_id).int(),
        }
        if pixels is not None:
            inputs |= {"pixel_values": pixels.to(device, encoder.dtype), "image_grid_thw": grid.to(device)}
        return inputs


class Draw(LogitsProcessor):
    """Draws the next token from a run's own noise, and lets the run end before each."""

    def __init__(self, generator: torch.Generator, check: Callable[[], None]) -> None:
        self._generator = generator
        self._check = check

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [1, vocabulary] with all but the drawn token impossible."""
        self._check()
        likely, order = (scores[0].float().cpu() / TEMPERATURE).softmax(-1).sort(descending=True)
        # The fewest tokens that are together as likely as TOP_P.
        likely[likely.cumsum(-1) - likely >= TOP_P] = 0
        drawn = order[torch.multinomial(likely, 1, generator=self._generator)]
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, drawn] = 0
        return chosen


def working_size(size: tuple[int, int], size_level: int) -> tuple[int, int]:
    """(width, height) of about `size_level` squared pixels in the picture's shape, multiples of 16 by leaving out."""
    width, height = size
    if width > height:
        wide = math.ceil(math.sqrt(size_level * size_level * width / height))
        found = wide, math.ceil(wide * height / width)
    else:
        high = math.ceil(math.sqrt(size_level * size_level * height / width))
        found = math.ceil(high * width / height), high
    return tuple(max(MULTIPLE, side // MULTIPLE * MULTIPLE) for side in found)


def shift_of(places: int, config: Any) -> float:
    """The shift of the schedule for so many target places, as FLUX has it."""
    low, high = config.base_image_seq_len, config.max_image_seq_len
    return config.base_shift + (config.max_shift - config.base_shift) * (places - low) / (high - low)


def guide(wished: torch.Tensor, unwished: torch.Tensor, scale: float, version: Version, time: float) -> torch.Tensor:
    """Guidance [rows, places, channels] at a time from 0 to 1: away from what the negative prompt says."""
    difference = wished - unwished
    above = version.normalises_above
    if above is not None and time > above:
        # Only where it is longer than 1; shorter guidance stays as it is.
        difference = difference / difference.norm(dim=-1, keepdim=True).clamp(min=1) ** POWER
    return unwished + scale * difference


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[rows, channels, height, width] to places of 2 x 2 latents each: [rows, places, 4 * channels]."""
    rows, channels, height, width = latents.shape
    cells = latents.reshape(rows, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(rows, height * width // 4, 4 * channels)


def unpack(places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`pack` undone, for so many places down and across."""
    rows, _, channels = places.shape
    cells = places.reshape(rows, height, width, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels // 4, 2 * height, 2 * width)


def shrunk(image: Image.Image) -> Image.Image:
    """The picture with no side longer than what the model is shown, and none shorter than one vision token."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return small.resize((max(CELL, small.width), max(CELL, small.height)))


def _expand(ids: Sequence[int], token: int, counts: Sequence[int]) -> list[int]:
    """Each of these tokens as often as its picture takes."""
    left = iter(counts)
    return [id for own in ids for id in ([own] * next(left) if own == token else [own])]
