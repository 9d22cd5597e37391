"""Check pocket's IP-Adapter: draw after pictures that it has not seen, and measure whose facts are in the result.

Every picture is a scene of the world. Drawn after it alone, without words, the result must show what it shows; drawn
after it beside words that name another background, it must have the words' background and the picture's things. What
judges is what judges pocket itself (`check`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from app.models import catalog, ip_adapter
from app.models.choosing import ModelRow
from app.models.device import TorchDevice
from app.models.row_attention import Part, attending
from app.pocket import classifier, spec, world
from app.pocket.check import BATCH, Tally, load
from app.pocket.check_identity import stacked
from app.pocket.checkpoints import generator_of, rng_of
from app.pocket.sheets import contact_sheet
from app.pocket.train_ip_adapter import ADAPTER, ENCODER, FILES, FOLDER, said_of
from app.pocket.train_pulid import RowsOfFaces

GOALS = {"background colour": 0.9, "thing's colour": 0.8, "right thing": 0.8}
"""After pictures alone."""
GOAL_BESIDE_WORDS = 0.8
"""Of the backgrounds that words name."""
ALONE_SCALE, BESIDE_WORDS_SCALE = 1.0, 0.6


def open_adapter(modules: Path) -> ip_adapter.IpAdapter:
    """The finished files, through the product's own loader."""
    rows = {row.id: row for row in catalog.CATALOG}
    encoder = ModelRow(rows[ENCODER], True, modules / ENCODER / FILES[ENCODER], 0)
    return ip_adapter.load(rows[ADAPTER], modules / ADAPTER / FILES[ADAPTER], TorchDevice("cpu"), [encoder])


def scenes_of(seed: object, count: int) -> list[world.Scene]:
    """Scenes that no training saw."""
    return [world.random_scene(rng_of("check-ip-adapter", seed, number)) for number in range(count)]


def other_background(scene: world.Scene, seed: object, number: int) -> str:
    """A colour that nothing in the scene has."""
    taken = {scene.background, *(thing.colour for thing in scene.things)}
    if scene.person is not None:
        taken.add(scene.person.clothing_colour)
    return rng_of("check-ip-adapter", seed, number, "other").choice([c for c in world.COLOURS if c not in taken])


@torch.no_grad()
def draw(
    pipeline: StableDiffusionXLPipeline,
    adapter: ip_adapter.IpAdapter | None,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    scale: float,
    seed: object,
) -> list[Image.Image]:
    """One picture for each, after it and the prompt, or after the prompt alone."""
    made: list[Image.Image] = []
    for first in range(0, len(images), BATCH):
        some = slice(first, first + BATCH)
        with ExitStack() as stack:
            if adapter is not None:
                tokens = stacked([adapter.tokens([image]) for image in images[some]])
                branch = RowsOfFaces(tokens, adapter.layers, scale)
                stack.enter_context(attending(pipeline.unet, [Part(2 * len(images[some]), (branch,))]))
            made += pipeline(
                list(prompts[some]),
                width=spec.WIDTH,
                height=spec.HEIGHT,
                num_inference_steps=spec.NUM_INFERENCE_STEPS,
                guidance_scale=spec.GUIDANCE_SCALE,
                generator=[generator_of("check-ip-adapter", seed, first + n) for n in range(len(prompts[some]))],
            ).images
    return made


def measured(scenes: Sequence[world.Scene], images: Sequence[Image.Image]) -> Tally:
    """What of the scenes' facts the pictures show."""
    tally, network = Tally(), classifier.load(spec.WEIGHTS)
    for scene, image in zip(scenes, images, strict=True):
        tally.add(said_of(scene), image, network)
    return tally


def main(argv: list[str] | None = None) -> int:
    """Draw, measure, print, write the contact sheet; 1 when a goal is missed."""
    parser = argparse.ArgumentParser("eis pocket check-ip-adapter", description=__doc__)
    parser.add_argument("--modules", type=Path, default=FOLDER, help="folder of the adapter and its encoder")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("pocket-ip-adapter.png"), help="the contact sheet")
    options = parser.parse_args(argv)
    pipeline, adapter = load(spec.WEIGHTS), open_adapter(options.modules)
    scenes = scenes_of(options.seed, options.pictures)
    pictures = [world.draw(scene, spec.WIDTH) for scene in scenes]
    wishes = [
        replace(scene, background=other_background(scene, options.seed, number)) for number, scene in enumerate(scenes)
    ]
    nothing, words = [""] * len(scenes), [f"{wish.background} background" for wish in wishes]
    rows = {
        "the pictures": (scenes, pictures),
        "nothing": (scenes, draw(pipeline, None, pictures, nothing, 1.0, options.seed)),
        "after the pictures": (scenes, draw(pipeline, adapter, pictures, nothing, ALONE_SCALE, options.seed)),
        "and another background in words": (
            wishes, draw(pipeline, adapter, pictures, words, BESIDE_WORDS_SCALE, options.seed)
        ),
    }  # fmt: skip
    tallies = {name: measured(*row) for name, row in rows.items()}
    questions = list(dict.fromkeys([*GOALS, *(q for tally in tallies.values() for q in sorted(tally.all))]))
    print(f"| drawn | {' | '.join(questions)} |")
    print("| --- " * (len(questions) + 1) + "|")
    for name, tally in tallies.items():
        cells = [f"{tally.right[q]} of {tally.all[q]}, {tally.share(q):.0%}" for q in questions]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    contact_sheet({name: images for name, (_, images) in rows.items()}).save(options.out)
    print(f"contact sheet: {options.out}")
    alone, beside = tallies["after the pictures"], tallies["and another background in words"]
    reached = all(alone.share(question) >= goal for question, goal in GOALS.items())
    return 0 if reached and beside.share("background colour") >= GOAL_BESIDE_WORDS else 1


if __name__ == "__main__":
    raise SystemExit(main())
