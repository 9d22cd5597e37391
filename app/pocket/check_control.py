"""Check pocket's ControlNet: draw scenes that no training saw after their maps, and measure whose edges are there.

The measure is the F1 of edges: the share of the drawn picture's edges (Canny's) that lie within two pixels of the
wished ones, and of the wished ones that lie within two pixels of a drawn one. Beside it stands what the same prompts
and seeds give without the network. The prompts say nothing of what a map shows: with places and sizes in them pocket
alone comes to 0.73, for its world has few of each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from PIL import Image
from scipy.ndimage import distance_transform_edt

from app.imaging import control_maps
from app.pocket import captions, spec, train_control, world
from app.pocket.check import load
from app.pocket.checkpoints import generator_of, rng_of
from app.pocket.sheets import contact_sheet

WITHIN = 2.0  # pixels of the picture
BATCH = 10
GOAL, TIMES = 0.7, 2.0


def edges_of(image: Image.Image) -> np.ndarray:
    """[height, width] true where Canny sees an edge."""
    return np.asarray(control_maps.canny(image)) > 0


def edge_f1(drawn: np.ndarray, wished: np.ndarray, within: float = WITHIN) -> float:
    """0 to 1: how well edges lie on edges, both ways; 1 where there are none in either."""
    if not drawn.any() or not wished.any():
        return float(drawn.any() == wished.any())
    precision = (distance_transform_edt(~wished)[drawn] <= within).mean()
    recall = (distance_transform_edt(~drawn)[wished] <= within).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def scenes_of(seed: object, count: int) -> list[world.Scene]:
    """Scenes that no training saw."""
    return [train_control.scene_of(f"check-{seed}", number) for number in range(count)]


def prompts_of(scenes: Sequence[world.Scene], seed: object) -> list[str]:
    """Words for each scene that leave its layout to the map."""
    sources = [rng_of("check-control", seed, number) for number in range(len(scenes))]
    return [
        captions.word(train_control.without_layout(captions.mention(scene, rng)), rng)
        for scene, rng in zip(scenes, sources, strict=True)
    ]


@torch.no_grad()
def draw(
    pipeline: StableDiffusionXLPipeline,
    network: ControlNetModel | None,
    prompts: Sequence[str],
    maps: Sequence[Image.Image],
    seed: object,
    scale: float = 1.0,
) -> list[Image.Image]:
    """One picture a prompt, after its map where there is a network."""
    more = [{} for _ in prompts]
    if network is not None:
        pipeline = StableDiffusionXLControlNetPipeline(**pipeline.components, controlnet=network)
        pipeline.set_progress_bar_config(disable=True)
        more = [{"image": map, "controlnet_conditioning_scale": scale} for map in maps]
    images: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH):
        some = range(first, min(first + BATCH, len(prompts)))
        told = dict(more[first]) | ({"image": [more[n]["image"] for n in some]} if network is not None else {})
        images += pipeline(
            [prompts[n] for n in some],
            width=spec.WIDTH,
            height=spec.HEIGHT,
            num_inference_steps=spec.NUM_INFERENCE_STEPS,
            guidance_scale=spec.GUIDANCE_SCALE,
            generator=[generator_of("check-control", seed, n) for n in some],
            **told,
        ).images
    return images


def main(argv: list[str] | None = None) -> int:
    """Draw, measure, print, write the contact sheet; 1 when a goal is missed."""
    parser = argparse.ArgumentParser("eis pocket check-control", description=__doc__)
    parser.add_argument("--module", type=Path, default=train_control.FOLDER, help="folder of the network")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=train_control.KINDS, default=list(train_control.KINDS))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("pocket-control.png"), help="the contact sheet")
    options = parser.parse_args(argv)
    pipeline = load(spec.WEIGHTS)
    network = ControlNetModel.from_pretrained(options.module, dtype=torch.float32)
    scenes = scenes_of(options.seed, options.pictures)
    prompts, pictures = prompts_of(scenes, options.seed), [world.draw(scene) for scene in scenes]
    wished = [edges_of(picture) for picture in pictures]
    without = draw(pipeline, None, prompts, [], options.seed)
    rows: dict[str, list[Image.Image]] = {"the renderer's": pictures, "without": without}
    base = np.mean([edge_f1(edges_of(image), edge) for image, edge in zip(without, wished, strict=True)])
    print(f"| map | edge F1 within {WITHIN:.0f} pixels | without |\n| --- | --- | --- |", flush=True)
    reached = True
    for kind in options.kinds:
        maps = [Image.fromarray(train_control.map_of(kind, picture)).convert("RGB") for picture in pictures]
        drawn = draw(pipeline, network, prompts, maps, options.seed, options.scale)
        score = np.mean([edge_f1(edges_of(image), edge) for image, edge in zip(drawn, wished, strict=True)])
        rows |= {f"{kind}": maps, f"after {kind}": drawn}
        reached &= score >= GOAL and score >= TIMES * base
        print(f"| {kind} | {score:.3f} | {base:.3f} |", flush=True)
    contact_sheet(rows).save(options.out)
    print(f"contact sheet: {options.out}")
    return 0 if reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
