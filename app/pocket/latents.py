"""The training set of the UNet: pictures of the world, encoded once and kept as a memory-mapped file of float16."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from app.pocket import encoding, world
from app.pocket.checkpoints import rng_of
from app.pocket.shards import in_threads
from app.pocket.spec import Preset

BATCH = 32


def scene_of(seed: int, index: int) -> world.Scene:
    """The scene of one entry: a function of the seed and the index, so only the latents are stored."""
    return world.random_scene(rng_of(seed, "scene", index))


def path_of(folder: Path) -> Path:
    return folder / "latents.bin"


def shape_of(preset: Preset) -> tuple[int, int, int]:
    return 4, preset.size // 8, preset.size // 8


def count_encoded(preset: Preset, folder: Path) -> int:
    """How many entries the file holds: the encoder only appends, so its length tells."""
    path = path_of(folder)
    return path.stat().st_size // (2 * int(np.prod(shape_of(preset)))) if path.exists() else 0


def _fingerprint(autoencoder: AutoencoderKL) -> str:
    """A hash of the encoder: latents of another one are of no use."""
    digest = hashlib.sha256()
    for tensor in autoencoder.encoder.state_dict().values():
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode(
    autoencoder: AutoencoderKL,
    preset: Preset,
    folder: Path,
    seed: int,
    device: torch.device,
    report: Callable[[str], None] = print,
) -> None:
    """Append entries until the file holds as many as the preset asks for; those of another encoder are dropped."""
    autoencoder.to(device, memory_format=torch.channels_last).eval()
    folder.mkdir(parents=True, exist_ok=True)
    mark = path_of(folder).with_suffix(".sha256")
    if not mark.exists() or mark.read_text() != _fingerprint(autoencoder):
        path_of(folder).unlink(missing_ok=True)
        mark.write_text(_fingerprint(autoencoder))
    done = count_encoded(preset, folder) // BATCH * BATCH
    path_of(folder).touch()

    def encoded(first: int) -> bytes:
        images = [world.draw(scene_of(seed, index), preset.size) for index in range(first, first + BATCH)]
        pictures = encoding.to_tensor(images).to(device, memory_format=torch.channels_last)
        return encoding.encode(autoencoder, pictures).float().cpu().contiguous().numpy().astype(np.float16).tobytes()

    with open(path_of(folder), "r+b") as file:
        file.truncate(done * 2 * int(np.prod(shape_of(preset))))
        file.seek(0, 2)
        started = reported = time.monotonic()
        starts = range(done, preset.latents, BATCH)
        for first, entries in zip(starts, in_threads(device, encoded, starts), strict=True):
            file.write(entries)
            if time.monotonic() - reported > 20:
                reported = time.monotonic()
                pace = (first + BATCH - done) / (reported - started)
                report(f"latents: {first + BATCH} of {preset.latents}, {pace:.0f} pictures/s")


def open_latents(preset: Preset, folder: Path) -> np.ndarray:
    """[n, 4, height, width], read-only and memory-mapped."""
    count = count_encoded(preset, folder)
    return np.memmap(path_of(folder), np.float16, "r", shape=(count, *shape_of(preset)))
