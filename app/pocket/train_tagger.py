"""Train the tagger of pocket's world on pictures whose facts are known; resumable, minutes on a CPU."""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from app.pocket import crops, encoding, spec, tagger, world
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.command_lines import ending, parse, parser_of, say
from app.pocket.face_pack import write_tagger
from app.pocket.shards import mixed_precision

FOLDER = Path(__file__).parent / "tagger"
MODEL, LABELS = "model.onnx", "selected_tags.csv"
NAME = "tagger"
BATCH, RATE = 48, 4e-3
DECODED_OF = 8
"""One picture of so many is what the autoencoder gives back: what pocket's UNet draws looks like that."""

THRESHOLD = 0.35


@dataclass(frozen=True)
class Lengths:
    """How many pictures are drawn, and how many steps the network takes."""

    pictures: int
    held_out: int
    steps: int


PRESETS = {"cpu": Lengths(6_000, 480, 1_200), "tiny": Lengths(64, 32, 1)}


@dataclass(frozen=True)
class Pictures:
    """A drawn set: pictures [n, 128, 128, 3] of bytes, and their scenes' numbers as `tagger.numbers_of` tells them."""

    seed: object
    scenes: list[world.Scene]
    pixels: np.ndarray
    whole: torch.Tensor  # [n, 2]
    things: torch.Tensor  # [n, things, 1 + facts]
    person: torch.Tensor  # [n, facts]


def scene_of(seed: object, index: int) -> world.Scene:
    """The scene of one entry: a function of the seed and its index."""
    return world.random_scene(rng_of(seed, NAME, index))


def build(
    folder: Path, seed: object, count: int, autoencoder: AutoencoderKL | None, report: Callable[[str], None] = say
) -> Pictures:
    """Draw what the folder lacks of the set; some go through the autoencoder, where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"pictures-{seed}.bin"
    size = spec.WIDTH * spec.HEIGHT * 3
    there = path.stat().st_size // size if path.exists() else 0
    done = count if there == count else there // BATCH * BATCH
    if done < count:
        path.touch()
        os.truncate(path, done * size)
    reported = time.monotonic()
    with path.open("ab") as file:
        for first in range(done, count, BATCH):
            images = [world.draw(scene_of(seed, index)) for index in range(first, min(first + BATCH, count))]
            pixels = np.stack([np.asarray(image) for image in images])
            if autoencoder is not None:
                some = slice(0, None, DECODED_OF)
                latents = encoding.encode(autoencoder, encoding.to_tensor(images[some]))
                pixels[some] = encoding.decode(autoencoder, latents)
            file.write(pixels.tobytes())
            if time.monotonic() - reported > 20:
                reported = time.monotonic()
                report(f"{NAME}: {first + len(images)} of {count} pictures drawn")
    scenes = [scene_of(seed, index) for index in range(count)]
    told = [tagger.numbers_of(scene) for scene in scenes]
    return Pictures(
        seed,
        scenes,
        np.memmap(path, np.uint8, "r", shape=(count, spec.HEIGHT, spec.WIDTH, 3)),
        *(torch.tensor([numbers[at] for numbers in told]) for at in range(3)),
    )


def batch_of(some: Pictures, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices, pictures [n, 3, 112, 112] of -1 to 1): a little askew, and made worse at random."""
    rng, generator = rng_of(some.seed, NAME, "batch", number), generator_of(some.seed, NAME, "batch", number)
    indices = [rng.randrange(len(some.scenes)) for _ in range(BATCH)]
    pictures = crops.to_unit(some.pixels[indices])
    askew = crops.shake(smaller(len(indices)), tagger.LOOK, generator, 0.4)
    # Beyond the picture its edge goes on: a corner of the background, whatever its colour.
    pictures = functional.pad(pictures, (8, 8, 8, 8), mode="replicate")
    askew = torch.cat([askew[..., :2], askew[..., 2:] - askew[..., :2] @ torch.full((2, 1), 8.0)], -1)
    pictures = crops.warp(pictures, askew, tagger.LOOK)
    return torch.tensor(indices), crops.worsen(pictures, rng, generator) * 2 - 1


def smaller(count: int) -> torch.Tensor:
    """[n, 2, 3]: from a drawn picture's pixels to those that are looked at."""
    scale = tagger.LOOK / spec.WIDTH
    shift = torch.full((2, 1), scale / 2 - 0.5)
    return torch.cat([scale * torch.eye(2), shift], -1).expand(count, 2, 3)


def loss_of(network: tagger.Tagger, some: Pictures, indices: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """What is there as likelihoods, and each fact where its thing, or its person, is shown."""
    presence, *told = network.look(pictures)
    whole, things, person = some.whole[indices], some.things[indices], some.person[indices]
    there = things[..., 0]
    loss = 10 * functional.binary_cross_entropy_with_logits(presence, there.float())
    loss = loss + functional.binary_cross_entropy_with_logits(told[3][:, 0].float(), whole[:, 1].float())
    loss = loss + functional.cross_entropy(told[4].float(), whole[:, 0])
    for at, logits in enumerate(told[:3], start=1):
        loss = loss + functional.cross_entropy(logits[there == 1].float(), things[..., at][there == 1])
    for at, logits in enumerate(told[5:]):
        if (person[:, at] >= 0).any():
            loss = loss + 0.5 * functional.cross_entropy(logits.float(), person[:, at], ignore_index=tagger.UNKNOWN)
    return loss


def train(
    some: Pictures, work: Path, steps: int, seconds: float | None = None, report: Callable[[str], None] = say
) -> tuple[tagger.Tagger, bool]:
    """(the network with its averaged parameters, whether it is complete)."""
    torch.manual_seed(rng_of(some.seed, NAME).getrandbits(31))
    network = tagger.Tagger().train().to(memory_format=torch.channels_last)
    stage = Stage(NAME, work, [network], RATE, steps, horizon=200)

    def step(number: int) -> float:
        indices, pictures = batch_of(some, number)
        with mixed_precision(torch.device("cpu")):
            loss = loss_of(network, some, indices, pictures.contiguous(memory_format=torch.channels_last))
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    return network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format), complete


@torch.no_grad()
def accuracy(network: torch.nn.Module, some: Pictures) -> str:
    """How well the tags of a set that was not trained on are told, at the usual threshold."""
    names = [tag.name for tag in tagger.tags()]
    guessed = []
    for first in range(0, len(some.scenes), BATCH):
        pixels = crops.to_unit(some.pixels[first : first + BATCH])
        seen = functional.interpolate(pixels, size=(tagger.LOOK,) * 2, mode="bilinear", antialias=True) * 2 - 1
        guessed.append(network.in_tags(*network.look(seen)).numpy())
    return in_words(names, np.concatenate(guessed), [tagger.tags_of(scene) for scene in some.scenes])


def in_words(names: list[str], guessed: np.ndarray, truth: list[set[str]]) -> str:
    """Precision, recall, and the share of right answers tag by tag, of probabilities [n, tags] at the threshold."""
    start = len(tagger.RATINGS)
    wanted = np.array([[name in facts for name in names[start:]] for facts in truth])
    told = guessed[:, start:] >= THRESHOLD
    both = (told & wanted).sum(0)
    precision, recall = both.sum() / max(1, told.sum()), both.sum() / wanted.sum()
    right = (told == wanted).mean(0)
    shown = wanted.any(0)
    found = both[shown] / wanted.sum(0)[shown]
    worst = sorted(zip(found, np.array(names[start:])[shown], strict=True))[:8]
    return (
        f"precision {precision:.1%}, recall {recall:.1%}; right per tag: mean {right.mean():.2%}, least "
        f"{right.min():.1%} ({names[start + int(right.argmin())]}); least found: "
        + ", ".join(f"{name} {share:.0%}" for share, name in worst)
    )


def write_labels(file: Path, scenes: list[world.Scene]) -> None:
    """selected_tags.csv: the columns of the published ones; `count` is how many of these scenes show it."""
    counts = Counter(name for scene in scenes for name in tagger.tags_of(scene)) + Counter({"general": len(scenes)})
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(("tag_id", "name", "category", "count"))
        rows.writerows((at, tag.name, tag.category, counts[tag.name]) for at, tag in enumerate(tagger.tags()))


def export(network: tagger.Tagger, scenes: list[world.Scene], out: Path) -> None:
    """Write the folder, whole or not at all."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_tagger(network, part / MODEL)
    write_labels(part / LABELS, scenes)
    shutil.rmtree(out, ignore_errors=True)
    part.rename(out)


def main(argv: list[str] | None = None) -> int:
    """Parse the options and train; returns the exit code."""
    parser = parser_of(NAME, __doc__, FOLDER, "tagger", PRESETS)
    parser.add_argument("--steps", type=int, help="how many steps (the preset says it)")
    options = parse(parser, argv)
    lengths = PRESETS[options.preset]
    autoencoder = AutoencoderKL.from_pretrained(options.weights / "vae", torch_dtype=torch.float32).eval()
    held_out = build(options.work, "held-out", lengths.held_out, autoencoder)
    some = build(options.work, options.seed, lengths.pictures, autoencoder)
    network, complete = train(some, options.work, options.steps or lengths.steps, options.seconds)
    say(f"{NAME}: {accuracy(network, held_out)}")
    export(network, some.scenes, options.out)
    print(f"pocket tagger: {ending(complete)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
