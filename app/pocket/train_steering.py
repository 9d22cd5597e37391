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

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from app.pocket import people, train_facts, unet_lora
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say
from app.pocket.muon import Muon
from app.pocket.people import People
from app.pocket.shards import CPU_SHARDS, Shards
from app.pocket.train_facts import FactTokens, Told
from app.pocket.train_pulid import TOKENS, Attachment, Frozen

NAME = "steering"
VERSION = "v1.1"
FOLDER = Path(__file__).parent / "identity" / "pocket-pulid-lora"
PAIRS, ALONE = 16, 44
"""Of one process' part of a batch: portraits told with both geometries, and such as are told with one."""
EARLIEST = 200
BEGIN = "what to begin with: a checkpoint of this training or of facts, or a folder of finished modules (what ships)"
RATE = 7e-4
DIFFUSION_WEIGHT = 4.0
HORIZON, COOL_DOWN = 80, 0.5
RANK = 64
PRESS_EVERY = 25
"""Steps, once the rate falls, after which the change is brought back to what a LoRA of RANK can say."""


class Learning(Frozen):
    """Pocket as it is, but for the UNet, which learns."""

    def settle(self) -> None:
        """See `Frozen`: what a LoRA holds learns, biases and norms do not."""
        self.unet.requires_grad_(False).train()
        for layer in self.unet.modules():
            if isinstance(layer, unet_lora.LAYERS):
                layer.weight.requires_grad_(True)


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

    `others`: of `train_facts.build_others`; `begin`: see `train_facts.begin_with`. UNet, tokens and
    layers are kept in `<folder>/steering.pt`, for `train_facts` to begin with.
    """
    torch.manual_seed(rng_of(seed, NAME).getrandbits(31))
    before = copy.deepcopy(pipeline.unet)
    learning, tokens, attachment = Learning(pipeline), FactTokens(TOKENS[VERSION]), Attachment(pipeline.unet)
    if begin is not None:
        train_facts.begin_with(begin, tokens, attachment, pipeline.unet)
    optimizer = partial(Muon, plain=list(tokens.parameters()))
    modules = [pipeline.unet, tokens, attachment]
    stage = Stage(NAME, folder, modules, RATE, steps, HORIZON, COOL_DOWN, optimizer)
    drawn = train_facts.Drawn(NAME, report)
    where = train_facts.where_faces_differ(some, others)

    def loss_of(part: torch.Tensor) -> torch.Tensor:
        number = int(part)
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        told = Told(some, others, tokens, learning, rng, generator, PAIRS, ALONE, EARLIEST, where)
        loss, share = told.losses(told.velocity(learning, attachment))
        if number % CPU_SHARDS == 0:  # one process speaks for both
            drawn.note(number // CPU_SHARDS, share.item())
        return DIFFUSION_WEIGHT * loss + share

    def step(number: int) -> float:
        if number >= stage.cool_down_start and number % PRESS_EVERY == 0:
            unet_lora.press(before, pipeline.unet, RANK)
        return shards.backward(torch.arange(CPU_SHARDS) + CPU_SHARDS * number)

    with Shards(torch.device("cpu"), stage.parameters, loss_of) as shards:
        complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    pipeline.unet.set_default_attn_processor()
    return pipeline.unet.eval().requires_grad_(False), complete


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "LoRA")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--portraits", type=int, default=16384)
    parser.add_argument("--begin", type=Path, default=FOLDER.parent, help=BEGIN)
    parser.add_argument("--from-nothing", action="store_true", help="begin with pocket itself, and tokens by chance")
    options = parse(parser, argv)
    begin = None if options.from_nothing else options.begin
    pipeline = load(options.weights)
    pipeline.unet.float()
    some = people.build(options.work / "people", "train", options.portraits, pipeline.vae, say)
    others = train_facts.build_others(options.work / "people", some, pipeline.vae, say)
    unet, complete = steer(
        pipeline, some, others, options.work, options.seed, options.steps, begin, options.seconds, say
    )
    lora, kept = unet_lora.difference(load(options.weights).unet, unet, RANK)
    unet_lora.save(lora, options.out)
    print(f"pocket steering: {ending(complete)}, {kept:.0%} of what changed is in the LoRA in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
