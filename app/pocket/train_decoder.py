"""Let the decoder of pocket's autoencoder learn on. Its encoder stays as it is, so every latent keeps its meaning, and
whatever was trained on latents (UNet, ControlNet, edits, identity) draws as before, only clearer.

It learns from portraits, in which small things say who is seen and how they feel, and from scenes of the whole world;
latents come with a little noise, as a UNet's do. It runs on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from app.pocket import archive, encoding, people, spec, world
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say
from app.pocket.muon import Muon
from app.pocket.people import People
from app.pocket.shards import CPU_SHARDS, Shards, mixed_precision
from app.pocket.train_autoencoder import difference_loss

NAME = "decoder"
FOLDER = spec.WEIGHTS / "vae"
PORTRAITS, OTHERS = 12, 4
"""Of one process' part of a batch."""
FACES = (slice(28, 100), slice(16, 112))
"""Rows and columns where a portrait's face is, which count twice."""
NOISE = 0.2
"""The most noise on a latent, of its own spread."""
RATE = 1.5e-3
HORIZON, COOL_DOWN = 100, 0.5
SCENES: archive.Shapes = {"pictures": (np.uint8, (spec.HEIGHT, spec.WIDTH, 3)), "latents": encoding.LATENTS}


def build_scenes(
    folder: Path, seed: object, count: int, autoencoder: AutoencoderKL, report: Callable[[str], None] = print
) -> dict[str, np.ndarray]:
    """Pictures of the world as its captions know it, three tenths of them portraits, and their latents; made once."""

    def make(indices: range) -> dict[str, np.ndarray]:
        images = [world.draw(world.random_scene(rng_of(seed, "scene", index)), spec.WIDTH) for index in indices]
        latents = encoding.encode(autoencoder, encoding.to_tensor(images))
        return {"pictures": np.stack([np.asarray(i) for i in images]), "latents": latents.float().numpy()}

    return archive.build(folder, f"scenes-{seed}", SCENES, count, make, report)


def learn(
    autoencoder: AutoencoderKL,
    some: People,
    scenes: dict[str, np.ndarray],
    folder: Path,
    seed: object,
    steps: int,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Train to the end; leaves the averaged weights in `autoencoder` (not of its encoder); True when complete."""
    autoencoder.requires_grad_(False).train().to(memory_format=torch.channels_last)
    learning = nn.ModuleList([autoencoder.post_quant_conv, autoencoder.decoder]).requires_grad_(True)
    stage = Stage(NAME, folder, [learning], RATE, steps, HORIZON, COOL_DOWN, Muon)

    def loss_of(part: torch.Tensor) -> torch.Tensor:
        number = int(part)
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        faces = [rng.randrange(len(some)) for _ in range(PORTRAITS)]
        others = [rng.randrange(len(scenes["pictures"])) for _ in range(OTHERS)]
        pictures = np.concatenate([some.pictures[faces], scenes["pictures"][others]])
        latents = np.concatenate([some.latents[faces], scenes["latents"][others]]).astype(np.float32)
        image = encoding.to_tensor(pictures)
        clean = torch.from_numpy(latents)
        noise = NOISE * torch.rand(len(clean), 1, 1, 1, generator=generator)
        noisy = clean + noise * torch.randn(clean.shape, generator=generator)
        with mixed_precision(torch.device("cpu")):
            decoded = autoencoder.decode(noisy.to(memory_format=torch.channels_last)).sample.float()
        face = (slice(PORTRAITS), slice(None), *FACES)
        return difference_loss(decoded, image) + difference_loss(decoded[face], image[face])

    with Shards(torch.device("cpu"), stage.parameters, loss_of) as shards:
        complete = stage.run(
            lambda number: shards.backward(torch.arange(CPU_SHARDS) + CPU_SHARDS * number),
            seconds=seconds,
            report=report,
        )
    stage.averages.copy_to_parameters()
    autoencoder.eval().requires_grad_(False)
    return complete


def save(autoencoder: AutoencoderKL, folder: Path) -> None:
    """Write it as pocket's weights hold it: contiguous, float16, without the path that it was opened from."""
    autoencoder.to(torch.float16, memory_format=torch.contiguous_format).save_pretrained(folder)
    path = folder / "config.json"
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name != "_name_or_path"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "autoencoder")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--portraits", type=int, default=16384)
    parser.add_argument("--scenes", type=int, default=3072)
    options = parse(parser, argv)
    autoencoder = load(options.weights).vae
    some = people.build(options.work / "people", "train", options.portraits, autoencoder, say)
    scenes = build_scenes(options.work / "scenes", "train", options.scenes, autoencoder, say)
    complete = learn(autoencoder, some, scenes, options.work, options.seed, options.steps, options.seconds, say)
    save(autoencoder, options.out)
    print(f"pocket decoder: {ending(complete)}, in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
