"""What a training keeps on the disk while it runs: its last checkpoint, its losses and samples, and the class pictures.

Invariant: a folder named `checkpoint-N` is whole. It is written under another name, synced and renamed, and the one
before it goes afterwards: a kill at any moment leaves the last whole one, from which the run goes on.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from app.core.capability import Trainer
from app.on_disk import sync

CHECKPOINT = "checkpoint-"
STATE = "training.json"


@dataclass(frozen=True)
class SampleDrawn:
    """A picture that was drawn to see how far the training is."""

    step: int
    number: int
    seed: int
    path: Path


@dataclass
class Notebook:
    """The notes of one training in its folder; `seed` is the one that its chance follows."""

    folder: Path
    seed: int
    losses: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return len(self.losses)

    def read(self, checkpoint: Path) -> None:
        """Go on from this checkpoint's notes."""
        state = json.loads((checkpoint / STATE).read_text())
        self.losses, self.seed = list(state["losses"]), int(state["seed"])

    def save(self, trainer: Trainer) -> None:
        """Keep the trainer's state as the checkpoint of this step, in the place of earlier ones."""
        part, whole = self.folder / "checkpoint.part", self.folder / f"{CHECKPOINT}{self.step:06d}"
        if whole.is_dir():
            return
        shutil.rmtree(part, ignore_errors=True)
        trainer.save(part)
        (part / STATE).write_text(json.dumps({"losses": self.losses, "seed": self.seed}))
        for path in (*part.iterdir(), part):
            sync(path)
        part.rename(whole)
        sync(self.folder)
        for earlier in self.folder.glob(f"{CHECKPOINT}*"):
            if earlier != whole:
                shutil.rmtree(earlier, ignore_errors=True)

    def keep_sample(self, image: Image.Image, number: int, seed: int) -> None:
        """Keep a picture that was drawn at this step."""
        (self.folder / "samples").mkdir(exist_ok=True)
        image.save(self.folder / "samples" / f"{self.step:06d}-{number}-{seed}.png")

    def samples(self) -> list[SampleDrawn]:
        """What was drawn up to this step, in order."""
        found = []
        for path in sorted((self.folder / "samples").glob("*.png")):
            step, number, seed = (int(part) for part in path.stem.split("-"))
            if step <= self.step:
                found.append(SampleDrawn(step, number, seed, path))
        return found

    def last_samples(self) -> list[Image.Image]:
        """The pictures that were drawn last."""
        drawn = self.samples()
        return [open_sample(sample.path) for sample in drawn if sample.step == drawn[-1].step]

    def class_pictures(self) -> Iterator[Path]:
        """Where the pictures of the class are to lie, one after the other."""
        (self.folder / "class").mkdir(exist_ok=True)
        number = 0
        while True:
            yield self.folder / "class" / f"{number:04d}.png"
            number += 1


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a training's folder."""
    return max(folder.glob(f"{CHECKPOINT}[0-9]*"), default=None)


def open_sample(path: Path) -> Image.Image:
    """A kept picture."""
    with Image.open(path, formats=["PNG"]) as image:
        return image.convert("RGB")


def save_whole(image: Image.Image, path: Path) -> None:
    """Write a picture that is there whole or not at all."""
    part = path.with_suffix(".part")
    image.save(part, "PNG")
    part.rename(path)
