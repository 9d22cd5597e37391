"""Check pocket's InstantID: draw unseen people in five poses that only keypoints tell, and measure where faces lie.

A wish is a portrait of the reference's person in another pose; the network sees its five keypoints, the prompt says
nothing of the pose. Measured are the distance of the five points that the face pack finds in the drawn picture from
the wished ones, in pixels of the 128 wide picture, and the pose that the measure of likeness reads off it: it is right
where the nearest of the five poses is the wished one. Who is seen is measured as in `check_identity`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLControlNetPipeline
from PIL import Image

from app.errors import NoFaceFound
from app.imaging import keypoints
from app.models import instantid
from app.models.row_attention import Halves
from app.pocket import portraits, spec, world
from app.pocket.check_identity import BATCH, Case, Identities, case_of, measured, stacked
from app.pocket.sheets import contact_sheet
from app.pocket.train_identity import IDENTITY, INSTANTID
from app.pocket.train_pulid import RowsOfFaces

GOAL_POSES = 0.8
NETWORK_SCALE, TOKEN_SCALE = 1.0, 1.0


def cases_of(seed: object, count: int) -> list[Case]:
    """The five poses in turn; prompts that say nothing of them."""
    found = []
    for number in range(count):
        case = case_of(seed, number, list(portraits.POSES)[number % len(portraits.POSES)])
        found.append(Case(case.reference, case.wish, case_of(seed, number).prompt))
    return found


def five_points_of(scene: world.Scene) -> np.ndarray:
    """[5, 2] in pixels: eyes, nose tip, mouth corners."""
    return keypoints.five_points(np.array(world.keypoints(scene)))


def draw_cases(
    identities: Identities, module: Path | None, cases: Sequence[Case], seed: object,
    network_scale: float = NETWORK_SCALE, token_scale: float = TOKEN_SCALE,
) -> list[Image.Image]:  # fmt: skip
    """Each case once: after its keypoints and with its face, or by the prompt alone where there is no module."""
    images: list[Image.Image] = []
    opened = module and instantid.load(SimpleNamespace(id=INSTANTID, options={}), module, identities.device)
    plain = identities.pipeline
    for first in range(0, len(cases), BATCH):
        some = cases[first : first + BATCH]
        more: dict[str, Any] = {}
        branches = []
        if opened:
            faces = identities.identify([world.draw(case.reference) for case in some])
            tokens = stacked([opened.adapter.tokens(torch.tensor(face.arcface)) for face in faces])
            branches = [RowsOfFaces(tokens, opened.layers, scale=token_scale)]
            network = _seeing(opened.control.network, tokens)
            identities.pipeline = StableDiffusionXLControlNetPipeline(**plain.components, controlnet=network)
            identities.pipeline.set_progress_bar_config(disable=True)
            size = (spec.WIDTH, spec.HEIGHT)
            drawings = [keypoints.draw_keypoints(size, five_points_of(case.wish)) for case in some]
            more = {"image": drawings, "controlnet_conditioning_scale": network_scale}
        try:
            images += identities.draw([case.prompt for case in some], f"{seed}-{first}", branches, **more)
        finally:
            identities.pipeline = plain
    return images


def _seeing(network: Any, tokens: Halves) -> Any:
    """The network with the faces' tokens in the text's place, as the product calls it."""
    rows = torch.cat(tokens.of(True))

    def forward(sample, timestep, encoder_hidden_states, **more):
        return type(network).forward(network, sample, timestep, encoder_hidden_states=rows, **more)

    network.__dict__["forward"] = forward
    return network


def distances(identities: Identities, images: Sequence[Image.Image], cases: Sequence[Case]) -> np.ndarray:
    """The mean distance of the five points found in each picture from the wished ones; nan where no face is found."""
    found = []
    for image, case in zip(images, cases, strict=True):
        try:
            points = np.asarray(identities.faces.find(image).keypoints)
        except NoFaceFound:
            found.append(np.nan)
            continue
        found.append(np.linalg.norm(points - five_points_of(case.wish), axis=-1).mean())
    return np.array(found)


def main(argv: list[str] | None = None) -> int:
    """Draw, measure, print, write the contact sheet; 1 when too few poses are right."""
    parser = argparse.ArgumentParser("eis pocket check-instantid", description=__doc__)
    parser.add_argument("--modules", type=Path, default=IDENTITY, help="folder of the identity modules")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--faces", type=int, default=100)
    parser.add_argument("--network-scale", type=float, default=NETWORK_SCALE)
    parser.add_argument("--token-scale", type=float, default=TOKEN_SCALE)
    parser.add_argument("--out", type=Path, default=Path("pocket-instantid.png"), help="the contact sheet")
    options = parser.parse_args(argv)
    identities, cases = Identities(options.modules), cases_of(options.seed, options.faces)
    wishes, references = ([world.draw(getattr(case, side)) for case in cases] for side in ("wish", "reference"))
    scales = options.network_scale, options.token_scale
    rows = {
        "wished": wishes,
        "by the prompt alone": draw_cases(identities, None, cases, options.seed),
        "pocket-instantid": draw_cases(identities, options.modules / INSTANTID, cases, options.seed, *scales),
    }
    print("| pictures | points off, pixels | no face | poses | own face, of another's | skin | background | clothing |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, images in rows.items():
        off, figures = distances(identities, images, cases), measured(identities, cases, images)
        shares = (figures.skin, figures.background, figures.clothing)
        cells = [f"{np.nanmean(off):.2f}", f"{np.isnan(off).sum()}", f"{figures.poses.mean():.0%}"]
        cells += [f"{figures.ratio:.3f}", *(f"{share.mean():.0%}" for share in shares)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    contact_sheet({"reference": references, **rows}).save(options.out)
    print(f"contact sheet: {options.out}")
    return 0 if figures.poses.mean() >= GOAL_POSES else 1


if __name__ == "__main__":
    raise SystemExit(main())
