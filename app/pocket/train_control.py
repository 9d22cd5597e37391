"""Train pocket's ControlNet: one network that follows edges and drawn lines, as the product itself draws their maps.

Zhang et al. 2023 (arXiv 2302.05543): a copy of the UNet's first half that sees a map, and answers through convolutions
that begin at zero. The UNet stays as it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch.nn import functional

from app.imaging import control_maps
from app.pocket import archive, captions, encoding, spec, train_pulid, world
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parser_of, say
from app.pocket.networks import save_network
from app.pocket.shards import mixed_precision
from app.pocket.train_identity_net import build_network

NAME = "control"
MODULES = Path(__file__).parent / "control"
FOLDER = MODULES / "pocket-controlnet"
KINDS = ("canny", "lineart")
BATCH = 16
RATE = 8e-4
SCENES, STEPS = 3072, 3600
EMPTY_CAPTIONS = 0.3  # more than the UNet saw: lines alone should tell what a thing is
LAYOUT_SAID = 0.2  # of the others name place, size and pose: where captions say all, nothing is learned from a map
SHAPES: archive.Shapes = {
    "latents": encoding.LATENTS,
    **{kind: (np.uint8, (spec.HEIGHT, spec.WIDTH)) for kind in KINDS},
}


def scene_of(seed: object, index: int) -> world.Scene:
    """The scene of one entry: a function of the seed and the index."""
    return world.random_scene(rng_of(seed, NAME, "scene", index))


def without_layout(facts: world.Scene) -> world.Scene:
    """The facts without what a map shows: where things lie, how large, how somebody's head is turned and shaped."""
    if facts.person is not None:
        return replace(facts, person=replace(facts.person, pose=None, hair_style=None, expression=None, clothing=None))
    things = tuple(replace(thing, size=None) for thing in facts.things)
    return replace(facts, things=things[:1], relation=None, place=None)


def caption_of(scene: world.Scene, rng: random.Random) -> str:
    """Words for a target, mostly without what its map shows."""
    if rng.random() < EMPTY_CAPTIONS:
        return ""
    facts = captions.mention(scene, rng)
    return captions.word(facts if rng.random() < LAYOUT_SAID else without_layout(facts), rng)


def map_of(kind: str, image: Image.Image) -> np.ndarray:
    """[height, width] bytes: what the product draws of a control picture."""
    return np.asarray(control_maps.DRAWN[kind](image).convert("L"))


def build_drawings(
    folder: Path, seed: object, count: int, autoencoder: AutoencoderKL, report: Callable[[str], None] = print
) -> dict[str, np.ndarray]:
    """Latents and the maps of every kind, made once."""

    def make(indices: range) -> dict[str, np.ndarray]:
        images = [world.draw(scene_of(seed, index), spec.WIDTH) for index in indices]
        latents = encoding.encode(autoencoder, encoding.to_tensor(images)).float().numpy()
        return {"latents": latents} | {kind: np.stack([map_of(kind, image) for image in images]) for kind in KINDS}

    return archive.build(folder, f"{NAME}-{seed}", SHAPES, count, make, report)


def train(
    pipeline: StableDiffusionXLPipeline,
    drawings: dict[str, np.ndarray],
    folder: Path,
    seed: object,
    steps: int,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[ControlNetModel, bool]:
    """(the network with its averaged weights, whether it is complete)."""
    torch.manual_seed(rng_of(seed, NAME).getrandbits(31))
    frozen = train_pulid.Frozen(pipeline)
    network = build_network(pipeline.unet)
    network.set_attn_processor(AttnProcessor())
    stage = Stage(NAME, folder, [network], RATE, steps, horizon=150)
    count = len(drawings["latents"])

    def step(number: int) -> float:
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        chosen = [rng.randrange(count) for _ in range(BATCH)]
        maps = np.stack([drawings[rng.choice(KINDS)][index] for index in chosen])
        text = frozen.text([caption_of(scene_of(seed, index), rng) for index in chosen])
        noisy, time, target = frozen.noised(torch.from_numpy(drawings["latents"][chosen].astype("float32")), generator)
        with mixed_precision(torch.device("cpu")):
            conditions = {"text_embeds": text[1], "time_ids": frozen.time_ids.expand(BATCH, -1)}
            down, middle = network(
                noisy, time, text[0], torch.from_numpy(maps)[:, None].expand(-1, 3, -1, -1) / 255,
                added_cond_kwargs=conditions, return_dict=False,
            )  # fmt: skip
        velocity = frozen.velocity(
            noisy, time, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        loss = functional.mse_loss(velocity, target)
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    return network.eval().requires_grad_(False), complete


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "network")
    parser.add_argument("--scenes", type=int, default=SCENES, help="different pictures that it learns from")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {BATCH} pictures")
    options = parser.parse_args(argv)
    pipeline = load(options.weights)
    drawings = build_drawings(options.work, options.seed, options.scenes, pipeline.vae, say)
    network, complete = train(pipeline, drawings, options.work, options.seed, options.steps, options.seconds, say)
    save_network(network, options.out)
    print(f"pocket control: {ending(complete)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
