"""Let pocket's UNet learn to follow what tokens say of a face: its own training goes on, with told portraits beside it.

A base model's cross-attention draws what its captions speak of, and pocket's never speak of how wide a face is or how
high its eyes stand: new keys and values on a UNet that stays as it is reach two fifths of what geometry changes, and so
does a network that may add whatever it likes where they stand. So the UNet itself learns on: half of what it sees are
pictures of its world with their captions, as before, and half are portraits told by tokens of the true facts of their
faces, each with two geometries (see `train_facts`). Identity modules then learn against a UNet that listens.

It runs on the CPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch.nn import functional

from app.pocket import latents, people, spec, train_facts, train_unet
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say
from app.pocket.networks import encode_tokens, save_network
from app.pocket.people import People
from app.pocket.train_facts import FactTokens, Told
from app.pocket.train_pulid import TOKENS, Attachment, Frozen

NAME = "steering"
VERSION = "v1.1"
PAIRS, GENERAL = 10, 10
"""Of a batch: portraits told with both geometries, beside a few told with one; and pictures of the whole world."""

EARLIEST = 200
RATE = 5e-4
HORIZON, COOL_DOWN = 200, 0.4


class Learning(Frozen):
    """Pocket as it is, but for the UNet, which learns."""

    def settle(self) -> None:
        """See `Frozen`."""
        self.unet.requires_grad_(True).train()


def steer(
    pipeline: StableDiffusionXLPipeline,
    some: People,
    others: np.ndarray,
    world: np.ndarray,
    folder: Path,
    seed: int,
    steps: int,
    begin: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[UNet2DConditionModel, bool]:
    """(the pipeline's UNet with its averaged weights, whether it is complete).

    `others`: of `train_facts.build_others`; `world`: latents of `latents.encode` with the same seed; `begin`: a
    checkpoint of tokens to begin with. The tokens are kept in `<folder>/steering.pt` for `train_facts` to begin with.
    """
    torch.manual_seed(rng_of(seed, NAME).getrandbits(31))
    learning, tokens, attachment = Learning(pipeline), FactTokens(TOKENS[VERSION]), Attachment(pipeline.unet)
    if begin is not None and begin.exists():
        train_facts.begin_with(begin, tokens, attachment)
    stage = Stage(NAME, folder, [pipeline.unet, tokens, attachment], RATE, steps, HORIZON, COOL_DOWN)
    preset = replace(spec.PRESETS["cpu"], batch=GENERAL)
    drawn = train_facts.Drawn(NAME, report)

    def step(number: int) -> float:
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        told = Told(some, others, tokens, learning, rng, generator, PAIRS, EARLIEST)
        loss, share = told.losses(told.velocity(learning, attachment))
        clean, words, time_ids = train_unet.batch_of(world, pipeline.tokenizer, preset, seed, number)
        noise = torch.randn(clean.shape, generator=generator)
        time = train_unet.times_of(len(clean), len(learning.signal), generator)
        signal, sigma = learning.levels(time)
        text = encode_tokens(learning.first, learning.second, words)
        velocity = learning.velocity(signal * clean + sigma * noise, time, text, time_ids=time_ids)
        loss = (loss + functional.mse_loss(velocity, signal * noise - sigma * clean)) / 2
        (loss + train_facts.DIFFERENCE_WEIGHT * share).backward()
        drawn.note(number, share.item())
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    pipeline.unet.set_default_attn_processor()
    return pipeline.unet.eval().requires_grad_(False), complete


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, spec.WEIGHTS, "weights: those that it began with, but for the UNet")
    parser.set_defaults(seed=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--portraits", type=int, default=16384)
    parser.add_argument("--latents", type=int, default=12000, help="different pictures of the whole world")
    parser.add_argument("--begin", type=Path, help="a checkpoint of tokens to begin with")
    options = parse(parser, argv)
    pipeline = load(options.weights)
    pipeline.unet.float()
    some = people.build(options.work / "people", "train", options.portraits, pipeline.vae, say)
    others = train_facts.build_others(options.work / "people", some, pipeline.vae, say)
    preset = replace(spec.PRESETS["cpu"], latents=options.latents)
    latents.encode(pipeline.vae, preset, options.work, int(options.seed), torch.device("cpu"), say)
    unet, complete = steer(
        pipeline, some, others, latents.open_latents(preset, options.work), options.work, int(options.seed),
        options.steps, options.begin, options.seconds, say,
    )  # fmt: skip
    if options.out.resolve() != options.weights.resolve():
        shutil.copytree(options.weights, options.out, dirs_exist_ok=True)
    save_network(unet, options.out / "unet")
    print(f"pocket steering: {ending(complete)}, weights in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
