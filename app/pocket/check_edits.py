"""Check pocket's InstructPix2Pix on wishes that no training saw: is the wish fulfilled, and did all else stay?

What is wished for is told by the picture's own pixels and the check's classifier. What else changed is the mean
absolute difference to the given picture, of 255, wherever the renderer's two pictures are the same (and so for MARGIN
pixels around); that is told of what the UNet drew, and of the same with `paste_changes`. A thing that comes in
another's place is judged by what it is: the wish says no colour, and whether the first one's stayed is told beside it.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLInstructPix2PixPipeline, UNet2DConditionModel
from PIL import Image
from scipy.ndimage import binary_dilation

from app.imaging.paste_changes import paste_changes
from app.models.pipelines import NOT_LOADED
from app.pocket import check_identity, classifier, edits, likeness, measure, spec, train_edits, world
from app.pocket.check import DARK_WITH_GLASSES, load
from app.pocket.checkpoints import generator_of
from app.pocket.sheets import contact_sheet

BATCH = 10
MARGIN = 16  # pixels that paste_changes grows and feathers a change by
GUIDANCE, IMAGE_GUIDANCE = spec.EDIT_GUIDANCE_SCALE, 1.5
GOAL, LARGEST_DIFFERENCE = 0.8, 3.0


def pipeline_of(file: Path) -> StableDiffusionXLInstructPix2PixPipeline:
    """The stock pipeline with pocket's other parts."""
    unet = UNet2DConditionModel.from_pretrained(file, dtype=torch.float32)
    parts = {name: part for name, part in load(spec.WEIGHTS).components.items() if name not in NOT_LOADED}
    pipeline = StableDiffusionXLInstructPix2PixPipeline(**parts | {"unet": unet})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def draw(
    pipeline: StableDiffusionXLInstructPix2PixPipeline,
    some: Sequence[edits.Edit],
    seed: object,
    guidance: float = GUIDANCE,
    image_guidance: float = IMAGE_GUIDANCE,
) -> list[Image.Image]:
    """What the pipeline makes of each wish's picture."""
    images: list[Image.Image] = []
    for first in range(0, len(some), BATCH):
        batch = some[first : first + BATCH]
        images += pipeline(
            [edit.instruction for edit in batch],
            image=[world.draw(edit.before) for edit in batch],
            width=spec.WIDTH,
            height=spec.HEIGHT,
            num_inference_steps=spec.NUM_INFERENCE_STEPS,
            guidance_scale=guidance,
            image_guidance_scale=image_guidance,
            generator=[generator_of("check-edits", seed, first + n) for n in range(len(batch))],
        ).images
    return images


def is_fulfilled(edit: edits.Edit, image: Image.Image, network: classifier.ThingClassifier) -> bool:
    """Whether the picture shows what was wished for, and the things that stay are still themselves."""
    wished = edit.after
    if wished.person is not None:
        return measure.is_portrait(image) and _shows_looks(edit, image)
    if measure.background_colour(image) != wished.background:
        return False
    for number, (thing, region) in enumerate(zip(wished.things, measure.regions_of(wished), strict=True)):
        found = measure.find(image, region)
        if thing.name is None:
            if found is not None:
                return False
            continue
        if found is None or classifier.name_of(network, found) != thing.name:
            return False
        is_new = number == edit.place and edit.kind in ("add", "replace")
        if (not is_new or thing.colour in edit.instruction.split()) and measure.colour_of(found) != thing.colour:
            return False
    return True


def keeps_colour(edit: edits.Edit, image: Image.Image) -> bool:
    """Whether what came in a thing's place has that thing's colour, which the wish does not speak of."""
    found = measure.find(image, measure.regions_of(edit.after)[edit.place])
    return found is not None and measure.colour_of(found) == edit.after.things[edit.place].colour


def _shows_looks(edit: edits.Edit, image: Image.Image) -> bool:
    person = edit.after.person
    if edit.kind == "background":
        return measure.background_colour(image) == edit.after.background
    if edit.kind == "pose":
        return pose_of(image) == person.pose
    if edit.kind == "hair":
        return measure.hair_colour_of(image) == person.hair_colour
    if edit.kind == "clothing":
        return check_identity.clothing_colour(image) == person.clothing_colour
    return (measure.dark_around_eyes(image) > DARK_WITH_GLASSES) == (person.glasses != "none")


def pose_of(image: Image.Image) -> str:
    """The pose that the measure of likeness reads off a portrait."""
    _, angles = likeness.read(_measure(), [image])
    return likeness.pose_name(*angles[0])


@functools.cache
def _measure() -> likeness.Likeness:
    return likeness.load(spec.WEIGHTS)


def outside(edit: edits.Edit) -> np.ndarray:
    """[height, width] true where the wish changes nothing, and nothing near."""
    before, after = (np.asarray(world.draw(scene), np.int16) for scene in (edit.before, edit.after))
    return ~binary_dilation((before != after).any(-1), np.ones((3, 3), bool), MARGIN)


def difference(edit: edits.Edit, image: Image.Image) -> float | None:
    """The mean absolute difference to the given picture outside, of 255; None where the wish concerns all of it."""
    kept = outside(edit)
    if kept.mean() < 0.02:
        return None
    given = np.asarray(world.draw(edit.before), np.float32)
    return float(np.abs(np.asarray(image, np.float32) - given)[kept].mean())


def mean_difference(some: Sequence[edits.Edit], images: Sequence[Image.Image]) -> float:
    """Of all wishes that leave a part of the picture alone."""
    each = [difference(edit, image) for edit, image in zip(some, images, strict=True)]
    return float(np.mean([value for value in each if value is not None]))


def main(argv: list[str] | None = None) -> int:
    """Draw, measure, print, write the contact sheet; 1 when a goal is missed."""
    parser = argparse.ArgumentParser("eis pocket check-edits", description=__doc__)
    parser.add_argument("--module", type=Path, default=train_edits.FOLDER, help="folder of the UNet")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--image-guidance", type=float, default=IMAGE_GUIDANCE)
    parser.add_argument("--out", type=Path, default=Path("pocket-edits.png"), help="the contact sheet")
    options = parser.parse_args(argv)
    some = [train_edits.edit_of(f"check-{options.seed}", number) for number in range(options.edits)]
    given, network = [world.draw(edit.before) for edit in some], classifier.load(spec.WEIGHTS)
    drawn = draw(pipeline_of(options.module), some, options.seed, options.guidance, options.image_guidance)
    pasted = [paste_changes(before, image).image for before, image in zip(given, drawn, strict=True)]
    right: dict[str, list[bool]] = defaultdict(list)
    for edit, image in zip(some, drawn, strict=True):
        right[edit.kind].append(is_fulfilled(edit, image, network))
    share = np.mean([answer for answers in right.values() for answer in answers])
    itself = np.mean([is_fulfilled(edit, world.draw(edit.after), network) for edit in some])
    as_drawn, as_pasted = (mean_difference(some, row) for row in (drawn, pasted))
    print("| wish | fulfilled | of |\n| --- | --- | --- |")
    for kind, answers in sorted(right.items()):
        print(f"| {kind} | {sum(answers)} | {len(answers)} |")
    print(f"| all | {share:.1%} | {len(some)} |")
    kept = [keeps_colour(edit, image) for edit, image in zip(some, drawn, strict=True) if edit.kind == "replace"]
    print(f"the first thing's colour on what came in its place: {sum(kept)} of {len(kept)}")
    print(f"the renderer's own pictures by the same measure: {itself:.1%}")
    print(f"difference outside, of 255: {as_drawn:.2f} as drawn, {as_pasted:.2f} with paste_changes")
    _sheets(some, given, drawn, pasted).save(options.out)
    print(f"contact sheet: {options.out}")
    return 0 if share >= GOAL and as_pasted <= LARGEST_DIFFERENCE else 1


def _sheets(some, given, drawn, pasted) -> Image.Image:
    """Ten wishes a row of blocks: the picture, what became of it, the same with paste_changes, and the wish below."""
    rows: dict[str, list[Image.Image]] = {}
    for first in range(0, min(30, len(some)), 10):
        words = "   |   ".join(edit.instruction for edit in some[first : first + 10])
        rows |= {
            f"{first} given": given[first : first + 10],
            words: drawn[first : first + 10],
            f"{first} with paste_changes": pasted[first : first + 10],
        }
    return contact_sheet(rows)


if __name__ == "__main__":
    raise SystemExit(main())
