"""Train the UNet on the encoded pictures and their captions: SDXL's objective and conditioning, v-prediction."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from app.pocket import captions
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.latents import open_latents, scene_of
from app.pocket.networks import POSITIONS, encode_tokens
from app.pocket.shards import Ahead, Shards, mixed_precision
from app.pocket.spec import Preset
from app.pocket.train_text import add_noise

RATE = 1e-3
EMPTY_CAPTIONS = 0.1
OTHER_TIME_IDS = 0.1
COOL_DOWN = 0.25
EVEN_TIMES = 0.3  # of the pictures; the others' times lie about the middle, where shapes are decided


def batch_of(latents: np.ndarray, tokenizer: CLIPTokenizer, preset: Preset, seed: int, number: int):
    """(latents, tokens, time ids) of one step; an epoch visits every entry once, in an order of its own."""
    rng = rng_of(seed, "unet", number)
    epoch, place = divmod(number, max(1, len(latents) // preset.batch))
    indices = _order(seed, epoch, len(latents))[place * preset.batch : (place + 1) * preset.batch]
    texts, time_ids = [], []
    for index in indices:
        empty = rng.random() < EMPTY_CAPTIONS
        texts.append("" if empty else add_noise(captions.caption(scene_of(seed, int(index)), rng), rng))
        size = rng.choice((64, 192, 256, 512, 1024)) if rng.random() < OTHER_TIME_IDS else preset.size
        time_ids.append((size, size, 0, 0, size, size))
    tokens = tokenizer(
        texts, padding="max_length", truncation=True, max_length=POSITIONS, return_tensors="pt"
    ).input_ids
    return torch.from_numpy(latents[indices].astype(np.float32)), tokens, torch.tensor(time_ids, dtype=torch.float32)


def times_of(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """The time of each picture, 0 to steps - 1: some even, most logit-normal (Esser et al. 2024, section 3.1)."""
    even = torch.rand(count, generator=generator)
    middle = torch.sigmoid(0.3 + torch.randn(count, generator=generator))
    is_even = torch.rand(count, generator=generator) < EVEN_TIMES
    return (torch.where(is_even, even, middle) * steps).long().clamp(max=steps - 1)


@functools.lru_cache(maxsize=1)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def train(
    unet: UNet2DConditionModel,
    first: CLIPTextModel,
    second: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    preset: Preset,
    folder: Path,
    seed: int,
    device: torch.device,
    compiled: bool = False,
    until: int | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Train to the end of the preset; leaves the averaged weights in `unet`."""
    latents = open_latents(preset, folder)
    unet.to(device, memory_format=torch.channels_last).train()
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward pass is several times slower there
    for module in (first, second):
        module.to(device).eval().requires_grad_(False)
    steps = max(1, preset.unet_pictures // preset.batch)
    stage = Stage("unet", folder, [unet], RATE, steps, horizon=800, cool_down=COOL_DOWN)
    signal = scheduler.alphas_cumprod.to(device)

    def forward(noisy, time, hidden, pooled, time_ids, target):
        with mixed_precision(device):
            conditions = {"text_embeds": pooled, "time_ids": time_ids}
            predicted = unet(noisy, time, hidden, added_cond_kwargs=conditions).sample
        return functional.mse_loss(predicted.float(), target)

    run_forward = torch.compile(forward) if compiled else forward

    def loss_of(clean, tokens, time_ids, noise, time) -> torch.Tensor:
        alpha = signal[time].sqrt()[:, None, None, None]
        sigma = (1 - signal[time]).sqrt()[:, None, None, None]
        noisy = (alpha * clean + sigma * noise).to(memory_format=torch.channels_last)
        with torch.no_grad(), mixed_precision(device):
            hidden, pooled = encode_tokens(first, second, tokens)
        return run_forward(noisy, time, hidden, pooled, time_ids, alpha * noise - sigma * clean)

    def batch(number: int) -> list[torch.Tensor]:
        clean, tokens, time_ids = batch_of(latents, tokenizer, preset, seed, number)
        generator = generator_of(seed, "unet", number)
        noise = torch.randn(clean.shape, generator=generator)
        return [clean, tokens, time_ids, noise, times_of(len(clean), len(signal), generator)]

    def step(number: int) -> float:
        return shards.backward(*(part.to(device) for part in batches(number)))

    with Shards(device, stage.parameters, loss_of) as shards, Ahead(batch) as batches:
        complete = stage.run(step, until, seconds, report)
    stage.averages.copy_to_parameters()
    unet.eval()
    unet.set_default_attn_processor()
    return complete
