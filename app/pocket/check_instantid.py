"""Check pocket's InstantID and EcomID: draw unseen people in five poses that only keypoints tell, and measure where
faces lie.

A wish is a portrait of the reference's person in another pose; the network sees its five keypoints, the prompt says
nothing of the pose. Measured are the distance of the five points that the face pack finds in the drawn picture from
the wished ones, in pixels of the 128 wide picture, and the pose that the measure of likeness reads off it: it is right
where the nearest of the five poses is the wished one. Who is seen is measured as in `check_identity`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
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
from app.models.controls import open_network
from app.models.row_attention import Halves, IdentityBranch
from app.pocket import portraits, spec, world
from app.pocket.check_identity import BATCH, Case, Identities, case_of, measured, stacked
from app.pocket.sheets import contact_sheet
from app.pocket.train_ecomid import MODES
from app.pocket.train_identity import ECOMID, IDENTITY, INSTANTID, PULID
from app.pocket.train_pulid import RowsOfFaces

GOAL_POSES = 0.8
NETWORK_SCALE, TOKEN_SCALE = 0.8, 0.8
"""InstantID's, and the first one EcomID's: the product's defaults."""
METHOD = "fidelity"
"""Of EcomID; the product's default."""


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


@dataclass(frozen=True)
class Module:
    """A folder of InstantID or of EcomID, opened: face tokens, IdentityNet, and PuLID's row where it has one."""

    adapter: instantid.FaceTokens
    network: Any
    pulid: str | None = None

    def branch(
        self, identities: Identities, references: Sequence[Image.Image], tokens: Halves, scale: float
    ) -> IdentityBranch:
        """What cross-attention looks at beside the text; `scale` is InstantID's."""
        if self.pulid is None:
            return RowsOfFaces(tokens, self.adapter.layers, scale=scale)
        return identities.pulid_branch(self.pulid, references, **MODES[METHOD])


def open_module(identities: Identities, name: str) -> Module:
    """By the product's own loaders; EcomID stands on InstantID's tokens and on PuLID v1."""
    folder, row = identities.folder / INSTANTID, SimpleNamespace(id=name, options={})
    if name == ECOMID:
        adapter = instantid.open_adapter(row, folder, identities.device)
        return Module(adapter, open_network(identities.folder / ECOMID, row, identities.device), PULID["v1"])
    opened = instantid.load(row, folder, identities.device)
    return Module(opened.adapter, opened.control.network)


def draw_cases(
    identities: Identities, name: str | None, cases: Sequence[Case], seed: object,
    network_scale: float = NETWORK_SCALE, token_scale: float = TOKEN_SCALE,
) -> list[Image.Image]:  # fmt: skip
    """Each case once: after its keypoints and with its face, or by the prompt alone where no module is named."""
    images: list[Image.Image] = []
    opened = name and open_module(identities, name)
    plain = identities.pipeline
    for first in range(0, len(cases), BATCH):
        some = cases[first : first + BATCH]
        more: dict[str, Any] = {}
        branches = []
        if opened:
            references = [world.draw(case.reference) for case in some]
            tokens = stacked(
                [opened.adapter.tokens(torch.tensor(face.arcface)) for face in identities.identify(references)]
            )
            branches = [opened.branch(identities, references, tokens, token_scale)]
            network = _seeing(opened.network, tokens)
            identities.pipeline = StableDiffusionXLControlNetPipeline(**plain.components, controlnet=network)
            identities.pipeline.set_progress_bar_config(disable=True)
            size = (spec.WIDTH, spec.HEIGHT)
            drawings = [keypoints.draw_keypoints(size, five_points_of(case.wish)) for case in some]
            more = {"image": drawings, "controlnet_conditioning_scale": network_scale}
        try:
            with identities.dressed(name):
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
    parser.add_argument("--rows", nargs="+", default=[INSTANTID, ECOMID], choices=(INSTANTID, ECOMID))
    parser.add_argument("--seed", default="0")
    parser.add_argument("--faces", type=int, default=100)
    parser.add_argument("--network-scale", type=float, default=NETWORK_SCALE)
    parser.add_argument("--token-scale", type=float, default=TOKEN_SCALE, help="InstantID's; EcomID's is its row's")
    parser.add_argument("--out", type=Path, default=Path("pocket-instantid.png"), help="the contact sheet")
    options = parser.parse_args(argv)
    identities, cases = Identities(options.modules), cases_of(options.seed, options.faces)
    wishes, references = ([world.draw(getattr(case, side)) for case in cases] for side in ("wish", "reference"))
    scales = options.network_scale, options.token_scale
    rows = {
        "wished": wishes,
        "by the prompt alone": draw_cases(identities, None, cases, options.seed),
        **{name: draw_cases(identities, name, cases, options.seed, *scales) for name in options.rows},
    }
    right = []
    print("| pictures | points off, pixels | no face | poses | own face, of another's | skin | background | clothing |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, images in rows.items():
        off, figures = distances(identities, images, cases), measured(identities, cases, images)
        shares = (figures.skin, figures.background, figures.clothing)
        cells = [f"{np.nanmean(off):.2f}", f"{np.isnan(off).sum()}", f"{figures.poses.mean():.0%}"]
        cells += [f"{figures.ratio:.3f}", *(f"{share.mean():.0%}" for share in shares)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        if name in options.rows:
            right.append(figures.poses.mean())
    contact_sheet({"reference": references, **rows}).save(options.out)
    print(f"contact sheet: {options.out}")
    return 0 if min(right) >= GOAL_POSES else 1


if __name__ == "__main__":
    raise SystemExit(main())
