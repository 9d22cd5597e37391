"""Let pocket's UNet listen to what tokens say of a face: it learns on with told portraits, and what it learned becomes
a LoRA that PuLID brings along.

A base model's cross-attention draws what its captions speak of, and pocket's never speak of how wide a face is or how
high its eyes stand: new keys and values on a UNet that stays as it is reach two fifths of what geometry changes, and so
does a network that may add whatever it likes where they stand. So a copy of the UNet learns on, on portraits told by
tokens of the true facts of their faces, each with two geometries (see `train_facts`); its difference from pocket's own
is kept in RANK numbers a layer and side. Pocket itself stays as it is: a UNet that is to be both forgets what it knew
of colours.

It runs on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from app.pocket import people, train_facts, unet_lora
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say
from app.pocket.people import People
from app.pocket.train_facts import FactTokens, Told
from app.pocket.train_pulid import TOKENS, Attachment, Frozen

NAME = "steering"
VERSION = "v1.1"
FOLDER = Path(__file__).parent / "identity" / "pocket-pulid-lora"
PAIRS = 12
"""Of a batch: portraits told with both geometries, beside a few told with one."""
EARLIEST = 200
RATE = 5e-4
HORIZON, COOL_DOWN = 200, 0.4
RANK = 40


class Learning(Frozen):
    """Pocket as it is, but for the UNet, which learns."""

    def settle(self) -> None:
        """See `Frozen`."""
        self.unet.requires_grad_(True).train()


def steer(
    pipeline: StableDiffusionXLPipeline,
    some: People,
    others: np.ndarray,
    folder: Path,
    seed: object,
    steps: int,
    begin: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[UNet2DConditionModel, bool]:
    """(the pipeline's UNet with its averaged weights, whether it is complete).

    `others`: of `train_facts.build_others`; `begin`: a checkpoint of this or of tokens to begin with. UNet, tokens and
    layers are kept in `<folder>/steering.pt`, for `train_facts` to begin with.
    """
    torch.manual_seed(rng_of(seed, NAME).getrandbits(31))
    learning, tokens, attachment = Learning(pipeline), FactTokens(TOKENS[VERSION]), Attachment(pipeline.unet)
    if begin is not None:
        train_facts.begin_with(begin, tokens, attachment, pipeline.unet)
    stage = Stage(NAME, folder, [pipeline.unet, tokens, attachment], RATE, steps, HORIZON, COOL_DOWN)
    drawn = train_facts.Drawn(NAME, report)

    def step(number: int) -> float:
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        told = Told(some, others, tokens, learning, rng, generator, PAIRS, EARLIEST)
        loss, share = told.losses(told.velocity(learning, attachment))
        (loss + train_facts.DIFFERENCE_WEIGHT * share).backward()
        drawn.note(number, share.item())
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    pipeline.unet.set_default_attn_processor()
    return pipeline.unet.eval().requires_grad_(False), complete


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "LoRA")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--portraits", type=int, default=16384)
    parser.add_argument("--begin", type=Path, help="a checkpoint to begin with: of this training, or of facts")
    options = parse(parser, argv)
    pipeline = load(options.weights)
    pipeline.unet.float()
    some = people.build(options.work / "people", "train", options.portraits, pipeline.vae, say)
    others = train_facts.build_others(options.work / "people", some, pipeline.vae, say)
    unet, complete = steer(
        pipeline, some, others, options.work, options.seed, options.steps, options.begin, options.seconds, say
    )
    lora, kept = unet_lora.difference(load(options.weights).unet, unet, RANK)
    unet_lora.save(lora, options.out)
    print(f"pocket steering: {ending(complete)}, {kept:.0%} of what changed is in the LoRA in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
