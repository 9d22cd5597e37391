"""Check pocket's identity: draw unseen people anew and measure, by the pictures' own pixels, who is seen and how.

The error of an identity is the distance between two geometries: what the measure of likeness reads off the picture,
and what it reads off the reference; beside it stands the distance to somebody else's reference. The same is told
against the true geometry, of which the measure cannot see every number. What judges took no part in training: the
measure was never a loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from app.models import eva_clip, faces, pulid
from app.models.device import TorchDevice
from app.models.row_attention import Branch, Halves, IdentityBranch, Part, attending
from app.pocket import likeness, measure, portraits, spec, unet_lora, world
from app.pocket.check import load
from app.pocket.checkpoints import generator_of, rng_of
from app.pocket.sheets import contact_sheet
from app.pocket.train_identity import FACES, IDENTITY, IMAGE_ENCODER, PULID
from app.pocket.train_pulid import RowsOfFaces

CLIP_HEAD_DIM = 32
BATCH = 10
GOALS = {"identity error, of a random one's": 0.5, "background": 0.85, "clothing colour": 0.85, "pose": 0.8}
ID_SCALE, ORTHO, NUM_ZERO = 1.0, "off", 0


@dataclass(frozen=True)
class Case:
    """One person to be drawn anew: the reference, and what is asked for."""

    reference: world.Scene
    wish: world.Scene
    prompt: str


def case_of(seed: object, number: int, pose: str | None = None) -> Case:
    """A person whom no training saw, other clothes before another background; a function of seed and number."""
    reference = world.random_portrait(rng_of("check-identity", seed, number))
    rng = rng_of("check-identity", seed, number, "wish")
    colours = rng.sample(list(world.COLOURS), 2)
    person = replace(
        reference.person, clothing=rng.choice(portraits.CLOTHES), clothing_colour=colours[0], pose=pose or "front"
    )
    wish = replace(reference, background=colours[1], person=person)
    looks = {"left": ", looking left", "right": ", looking right", "up": ", looking up", "down": ", looking down"}
    prompt = f"a {person.kind} wearing a {colours[0]} {person.clothing}, {colours[1]} background"
    return Case(reference, wish, prompt + looks.get(pose, ""))


def clothing_colour(image: Image.Image) -> str:
    """The colour of most of the shoulders, left and right of what is worn in the middle."""
    width, height = image.size
    rows = slice(round(0.9 * height), height)
    pixels = np.asarray(image)[rows]
    sides = [pixels[:, round(a * width) : round(b * width)].reshape(-1, 3) for a, b in ((0.1, 0.3), (0.7, 0.9))]
    return measure.most_common(np.concatenate(sides), world.COLOURS)


class Identities:
    """The shipped modules, opened through the product's own loaders, on pocket's pipeline."""

    def __init__(self, folder: Path = IDENTITY, weights: Path = spec.WEIGHTS):
        self.folder, self.device = folder, TorchDevice("cpu")
        self.pipeline: StableDiffusionXLPipeline = load(weights)
        clip = eva_clip.open_file(next((folder / IMAGE_ENCODER).glob("*.safetensors")), CLIP_HEAD_DIM)
        self.faces = faces.open_analyser([folder / FACES], self.device, clip)
        self.likeness = likeness.load(weights)

    def identify(self, images: Sequence[Image.Image]) -> list:
        """What the face pack and the image encoder say of the face in each picture."""
        return [self.faces.identify(image, self.faces.find(image)) for image in images]

    def pulid_branch(self, row: str, images: Sequence[Image.Image], **mode) -> IdentityBranch:
        """The branch of PuLID's file in this row, a face for each row of a batch."""
        file = next((self.folder / row).glob("*.safetensors"))
        opened = pulid.load(SimpleNamespace(id=row, options={}), file, self.device)
        halves = [
            opened.tokens(
                [(torch.tensor(f.arcface), torch.tensor(f.clip_pooled), [torch.tensor(h) for h in f.clip_hidden])]
            )
            for f in self.identify(images)
        ]
        settings = {"scale": ID_SCALE, "num_zero": NUM_ZERO, "ortho": ORTHO} | mode
        return RowsOfFaces(stacked(halves), opened.layers, **settings)

    @contextmanager
    def dressed(self, row: str | None) -> Iterator[None]:
        """The pipeline with the LoRA on that every identity module wears; as it is where no row is named."""
        lora = self.folder / f"{PULID['v1.1']}-lora" / unet_lora.FILE_NAME
        if row is None or not lora.exists():
            yield
            return
        self.pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
        try:
            yield
        finally:
            self.pipeline.unload_lora_weights()

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], seed: object, branches: Sequence[Branch] = (), **more) -> list[Image.Image]:
        """One picture a prompt; the branches have a face for each."""
        with ExitStack() as stack:
            stack.enter_context(attending(self.pipeline.unet, [Part(2 * len(prompts), tuple(branches))]))
            return self.pipeline(
                list(prompts),
                width=spec.WIDTH,
                height=spec.HEIGHT,
                num_inference_steps=spec.NUM_INFERENCE_STEPS,
                guidance_scale=spec.GUIDANCE_SCALE,
                generator=[generator_of("check-identity", seed, number) for number in range(len(prompts))],
                **more,
            ).images


def stacked(halves: Sequence[Halves]) -> Halves:
    """The tokens of several faces, a row for each."""
    return Halves(torch.cat([h.prompt for h in halves]), torch.cat([h.negative for h in halves]))


@dataclass
class Figures:
    """What was measured; errors are one per picture."""

    own: np.ndarray
    other: np.ndarray
    own_truth: np.ndarray
    other_truth: np.ndarray
    background: np.ndarray
    clothing: np.ndarray
    poses: np.ndarray
    skin: np.ndarray

    @property
    def ratio(self) -> float:
        """The mean error against the own reference over that against another's."""
        return float(self.own.mean() / self.other.mean())

    @property
    def ratio_of_truth(self) -> float:
        """The same against the true geometries."""
        return float(self.own_truth.mean() / self.other_truth.mean())


def measured(identities: Identities, cases: Sequence[Case], images: Sequence[Image.Image]) -> Figures:
    """Each picture against its own case, and against the face of the case half the list away."""
    geometry, angles = likeness.read(identities.likeness, images)
    seen, _ = likeness.read(identities.likeness, [world.draw(case.reference) for case in cases])
    truth = np.array([case.reference.geometry for case in cases])
    away = len(cases) // 2
    return Figures(
        likeness.error(geometry, seen),
        likeness.error(geometry, np.roll(seen, away, axis=0)),
        likeness.error(geometry, truth),
        likeness.error(geometry, np.roll(truth, away, axis=0)),
        np.array([measure.background_colour(i) == c.wish.background for i, c in zip(images, cases, strict=True)]),
        np.array([clothing_colour(i) == c.wish.person.clothing_colour for i, c in zip(images, cases, strict=True)]),
        np.array([likeness.pose_name(*a) == c.wish.person.pose for a, c in zip(angles.tolist(), cases, strict=True)]),
        np.array([measure.skin_of(i) == c.reference.person.skin for i, c in zip(images, cases, strict=True)]),
    )


def draw_cases(
    identities: Identities, row: str | None, cases: Sequence[Case], seed: object, **mode
) -> list[Image.Image]:
    """The cases drawn with the identity module of a row, or without one."""
    images: list[Image.Image] = []
    for first in range(0, len(cases), BATCH):
        some = cases[first : first + BATCH]
        references = [world.draw(case.reference) for case in some]
        branches = [identities.pulid_branch(row, references, **mode)] if row else []
        with identities.dressed(row):
            images += identities.draw([case.prompt for case in some], f"{seed}-{first}", branches)
    return images


def main(argv: list[str] | None = None) -> int:
    """Draw, measure, print, write the contact sheet; 1 when a goal is missed."""
    parser = argparse.ArgumentParser("eis pocket check-identity", description=__doc__)
    parser.add_argument("--modules", type=Path, default=IDENTITY, help="folder of the identity modules")
    parser.add_argument("--rows", nargs="+", default=["pocket-pulid"], help="PuLID modules to measure")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--faces", type=int, default=100)
    parser.add_argument("--id-scale", type=float, default=ID_SCALE)
    parser.add_argument("--ortho", choices=("off", "ortho", "ortho_v2"), default=ORTHO)
    parser.add_argument("--num-zero", type=int, default=NUM_ZERO)
    parser.add_argument("--out", type=Path, default=Path("pocket-identity.png"), help="the contact sheet")
    options = parser.parse_args(argv)
    identities = Identities(options.modules)
    mode = {"scale": options.id_scale, "ortho": options.ortho, "num_zero": options.num_zero}
    cases = [case_of(options.seed, number) for number in range(options.faces)]
    references = [world.draw(case.reference) for case in cases]
    drawn: dict[str, list[Image.Image]] = {}
    print("| module | own face | another's | ratio | of the true geometry | skin | background | clothing | poses |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    _report("the references themselves", measured(identities, cases, references), None)
    reached = True
    for row in (None, *options.rows):
        drawn[row or "no identity"] = draw_cases(identities, row, cases, options.seed, **mode)
        figures = measured(identities, cases, drawn[row or "no identity"])
        turned = [case_of(options.seed, n, list(portraits.POSES)[n % 5]) for n in range(options.faces // 2)]
        poses = measured(identities, turned, draw_cases(identities, row, turned, options.seed, **mode)).poses
        _report(row or "no identity", figures, poses)
        if row is not None:
            reached &= figures.ratio <= 0.5 and min(figures.background.mean(), figures.clothing.mean()) >= 0.85
    contact_sheet({"reference": references, **drawn}).save(options.out)
    print(f"contact sheet: {options.out}")
    return 0 if reached else 1


def _report(name: str, figures: Figures, poses: np.ndarray | None) -> None:
    shares = [figures.skin, figures.background, figures.clothing] + ([] if poses is None else [poses])
    errors = (figures.own.mean(), figures.other.mean(), figures.ratio, figures.ratio_of_truth)
    cells = [name, *(f"{error:.3f}" for error in errors), *(f"{share.mean():.0%}" for share in shares)]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
