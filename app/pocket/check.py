"""Check pocket: draw prompts of the grammar and measure by the pictures' own pixels whether they were followed."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from app.pocket import captions, classifier, measure, spec, world
from app.pocket.checkpoints import generator_of, rng_of

GOALS = {"background colour": 0.95, "thing's colour": 0.90, "right thing": 0.85}
DARK_WITH_GLASSES = 0.26  # of the band around the eyes; without glasses at most 0.22, with at least 0.30
BATCH = 10
COLUMNS = 10


def main(argv: list[str] | None = None) -> int:
    """Draw, measure, print, write the contact sheet; 1 when a goal is missed."""
    parser = argparse.ArgumentParser("eis pocket check", description=__doc__)
    parser.add_argument("--weights", type=Path, default=spec.WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=spec.NUM_INFERENCE_STEPS)
    parser.add_argument("--guidance", type=float, default=spec.GUIDANCE_SCALE)
    parser.add_argument("--out", type=Path, default=Path("pocket-check.png"), help="the contact sheet")
    arguments = parser.parse_args(argv)
    pipeline = load(arguments.weights)
    prompts = prompts_of(arguments.seed, arguments.prompts)
    started = time.monotonic()
    images = draw(pipeline, prompts, arguments.seed, arguments.steps, arguments.guidance)
    seconds = (time.monotonic() - started) / len(images)
    tally = Tally()
    network = classifier.load(arguments.weights)
    for prompt, image in zip(prompts, images, strict=True):
        tally.add(prompt, image, network)
    contact_sheet(prompts, images, tally.wrong).save(arguments.out)
    print(
        f"{len(prompts)} prompts, seed {arguments.seed}, {arguments.steps} steps, "
        f"guidance {arguments.guidance}, {seconds:.2f} s a picture"
    )
    print(f"classifier alone, on the renderer's pictures: {classifier.held_out_accuracy(network):.1%}")
    print(tally.report())
    print(f"contact sheet: {arguments.out}")
    return 0 if tally.reaches_goals() else 1


def load(weights: Path) -> StableDiffusionXLPipeline:
    """The shipped pipeline on the CPU, without a progress bar."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompts_of(seed: int, count: int) -> list[str]:
    """Prompts of the grammar, in varied words; a function of the seed."""
    prompts = []
    for number in range(count):
        rng = rng_of("check", seed, number)
        prompts.append(captions.caption(world.random_scene(rng), rng))
    return prompts


def draw(
    pipeline: StableDiffusionXLPipeline, prompts: list[str], seed: int, steps: int, guidance: float
) -> list[Image.Image]:
    """One picture a prompt, each with noise of its own."""
    images: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        generators = [generator_of("check", seed, first + i) for i in range(len(some))]
        images += pipeline(
            some,
            width=spec.WIDTH,
            height=spec.HEIGHT,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
        ).images
    return images


class Tally:
    """Right and all answers per question, and the numbers of the pictures with something wrong."""

    def __init__(self):
        self.right: Counter[str] = Counter()
        self.all: Counter[str] = Counter()
        self.wrong: set[int] = set()
        self.count = 0

    def note(self, question: str, answer: bool) -> None:
        self.all[question] += 1
        self.right[question] += bool(answer)
        if not answer and question in GOALS:
            self.wrong.add(self.count)

    def add(self, prompt: str, image: Image.Image, network: classifier.ThingClassifier) -> None:
        """Measure everything that the prompt says."""
        facts = captions.parse(prompt)
        if facts.background is not None:
            self.note("background colour", measure.background_colour(image) == facts.background)
        if facts.person is not None:
            self._add_person(facts.person, image)
        else:
            self._add_things(facts, image, network)
        self.count += 1

    def _add_things(self, facts: world.Scene, image: Image.Image, network: classifier.ThingClassifier) -> None:
        regions = measure.regions_of(facts)
        if len(facts.things) == 2 and facts.relation is None:
            found = [measure.find(image, region) for region in regions]
            names = [part and classifier.name_of(network, part) for part in found]
            if names[0] == facts.things[1].name or names[1] == facts.things[0].name:
                regions.reverse()
        for thing, region in zip(facts.things, regions, strict=True):
            found = measure.find(image, region)
            self.note("right thing", found is not None and classifier.name_of(network, found) == thing.name)
            self.note("right thing by outline alone", found is not None and measure.outline_of(found) == thing.name)
            if thing.colour is not None:
                self.note("thing's colour", found is not None and measure.colour_of(found) == thing.colour)
            if facts.place is not None:
                self.note("place", found is not None and measure.is_at(found, facts.place, image.size))

    def _add_person(self, person, image: Image.Image) -> None:
        self.note("a portrait where one is asked for", measure.is_portrait(image))
        if person.skin is not None:
            self.note("skin", measure.skin_of(image) == person.skin)
        if person.hair_colour is not None and person.hair_style not in (None, "bald"):
            self.note("hair colour", measure.hair_colour_of(image) == person.hair_colour)
        if person.glasses is not None:
            self.note(
                "glasses or none", (measure.dark_around_eyes(image) > DARK_WITH_GLASSES) == (person.glasses != "none")
            )

    def share(self, question: str) -> float:
        return self.right[question] / max(1, self.all[question])

    def reaches_goals(self) -> bool:
        return all(self.share(question) >= goal for question, goal in GOALS.items())

    def report(self) -> str:
        """A table in Markdown."""
        lines = ["| measured | right | of | share | goal |", "| --- | --- | --- | --- | --- |"]
        for question in [*GOALS, *sorted(set(self.all) - set(GOALS))]:
            goal = f"{GOALS[question]:.0%}" if question in GOALS else ""
            lines.append(
                f"| {question} | {self.right[question]} | {self.all[question]} | {self.share(question):.1%} | {goal} |"
            )
        return "\n".join(lines)


def contact_sheet(prompts: list[str], images: list[Image.Image], wrong: set[int]) -> Image.Image:
    """All pictures with their prompts beneath; a red bar under those with something wrong."""
    width, height = images[0].size
    cell = (width + 4, height + 40)
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (cell[0] * COLUMNS, cell[1] * rows), "white")
    pencil = ImageDraw.Draw(sheet)
    for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        left, top = number % COLUMNS * cell[0], number // COLUMNS * cell[1]
        sheet.paste(image, (left, top))
        if number in wrong:
            pencil.rectangle((left, top + height, left + width, top + height + 3), fill=(220, 40, 40))
        for line, words in enumerate(_lines(prompt, 24)[:3]):
            pencil.text((left + 1, top + height + 4 + 11 * line), words, fill="black", font_size=10)
    return sheet


def _lines(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
