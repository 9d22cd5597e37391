"""Train pocket's InstructPix2Pix: its UNet with four channels more, which see the picture that is to be changed.

Brooks et al. 2023 (arXiv 2211.09800): the new channels begin at zero, a part of the wishes and of the pictures is left
out, so that both can guide. Pairs need no language model here: the little world draws both sides of a wish.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch.nn import functional

from app.pocket import archive, edits, encoding, spec, train_pulid, world
from app.pocket.check import load
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parser_of, say
from app.pocket.networks import save_network
from app.pocket.shards import mixed_precision

NAME = "edits"
FOLDER = Path(__file__).parent / "editing" / "pocket-instruct-pix2pix"
BATCH = 16
RATE = 4e-4
PAIRS, STEPS = 6144, 14000
NOTHING_SAID, NOTHING_SHOWN, NEITHER = 0.05, 0.05, 0.05
SHAPES: archive.Shapes = {"before": encoding.LATENTS, "after": encoding.LATENTS}


def edit_of(seed: object, index: int) -> edits.Edit:
    """The wish of one entry: a function of the seed and the index."""
    return edits.random_edit(rng_of(seed, NAME, "pair", index))


def build_pairs(
    folder: Path, seed: object, count: int, autoencoder: AutoencoderKL, report: Callable[[str], None] = print
) -> dict[str, np.ndarray]:
    """The latents of both sides of every wish, made once."""

    def make(indices: range) -> dict[str, np.ndarray]:
        some = [edit_of(seed, index) for index in indices]
        made = {}
        for side in SHAPES:
            pictures = encoding.to_tensor([world.draw(getattr(edit, side), spec.WIDTH) for edit in some])
            made[side] = encoding.encode(autoencoder, pictures).float().numpy()
        return made

    return archive.build(folder, f"{NAME}-{seed}", SHAPES, count, make, report)


def build_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet with eight channels: what it was, and zeros for the picture's four."""
    wider = UNet2DConditionModel.from_config(dict(unet.config) | {"in_channels": 8})
    state = {name: tensor.float() for name, tensor in unet.state_dict().items()}
    first = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([first, torch.zeros_like(first)], 1)
    wider.load_state_dict(state)
    return wider


def train(
    pipeline: StableDiffusionXLPipeline,
    pairs: dict[str, np.ndarray],
    folder: Path,
    seed: object,
    steps: int,
    start: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[UNet2DConditionModel, bool]:
    """(the UNet with its averaged weights, whether it is complete); `start`: the folder of one to learn on with."""
    torch.manual_seed(rng_of(seed, NAME).getrandbits(31))
    unet = build_unet(pipeline.unet) if start is None else UNet2DConditionModel.from_pretrained(start).float()
    unet = unet.to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())
    frozen = train_pulid.Frozen(pipeline)
    stage = Stage(NAME, folder, [unet], RATE, steps, horizon=150)
    count = len(pairs["before"])

    def step(number: int) -> float:
        rng, generator = rng_of(seed, NAME, number), generator_of(seed, NAME, number)
        chosen = [rng.randrange(count) for _ in range(BATCH)]
        left_out = [rng.random() for _ in chosen]
        unsaid = [share < NOTHING_SAID + NEITHER for share in left_out]
        shown = torch.tensor([not NOTHING_SAID <= share < NOTHING_SAID + NEITHER + NOTHING_SHOWN for share in left_out])
        text = frozen.text(
            ["" if no else edit_of(seed, index).instruction for no, index in zip(unsaid, chosen, strict=True)]
        )
        before, clean = (torch.from_numpy(pairs[side][chosen].astype("float32")) for side in SHAPES)
        noise = torch.randn(clean.shape, generator=generator)
        time = train_pulid.noisy_times(BATCH, generator)
        signal, sigma = frozen.levels(time)
        seen = torch.cat([signal * clean + sigma * noise, before * shown[:, None, None, None]], 1)
        with mixed_precision(torch.device("cpu")):
            conditions = {"text_embeds": text[1], "time_ids": frozen.time_ids.expand(BATCH, -1)}
            velocity = unet(
                seen.contiguous(memory_format=torch.channels_last), time, text[0], added_cond_kwargs=conditions
            ).sample.float()
        loss = functional.mse_loss(velocity, signal * noise - sigma * clean)
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    unet.set_default_attn_processor()
    return unet.eval().requires_grad_(False), complete


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "UNet")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="different wishes that it learns from")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {BATCH} wishes")
    parser.add_argument("--start", type=Path, help="folder of a UNet of eight channels that learns on")
    options = parser.parse_args(argv)
    pipeline = load(options.weights)
    pairs = build_pairs(options.work, options.seed, options.pairs, pipeline.vae, say)
    unet, complete = train(
        pipeline, pairs, options.work, options.seed, options.steps, options.start, options.seconds, say
    )
    save_network(unet, options.out)
    print(f"pocket edits: {ending(complete)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
