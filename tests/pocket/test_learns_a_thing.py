"""The proof that a training teaches: a thing that pocket cannot draw is drawn by its trigger word, and not without it.

Five rendered pictures go in by the service; a small classifier of the renderer's things and the new one judges
fifty seeds. Alone it runs in part: a few steps and one seed, which show the way and judge nothing.
"""

import io
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from app.core.jobs import JobStatus  # noqa: E402
from app.core.service import Service  # noqa: E402
from app.pocket import classifier, measure, world  # noqa: E402
from app.pocket.pen import Pen, blank, finish, outline_of  # noqa: E402
from tests.engine.conftest import options, until  # noqa: E402
from tests.engine.ledger import tell  # noqa: E402

WHOLE = "EIS_PROVE_CYCLES" in os.environ
STEPS = int(os.environ.get("EIS_PROVE_STEPS", "400" if WHOLE else "2"))
SEEDS = 50 if WHOLE else 1
LONGEST_SECONDS = 600.0
WORD = "zorp"
NEW = len(classifier.NAMES)

pytestmark = [pytest.mark.prove, pytest.mark.timeout(7200)]


def zorp(pen: Pen, colour: tuple[int, int, int]) -> None:
    """A cross of four round arms with a dark hub: nothing in the little world has this outline."""
    for points in ([(-0.75, -0.75), (0.75, 0.75)], [(-0.75, 0.75), (0.75, -0.75)]):
        pen.stroke(points, 0.34, colour, True)
    for x in (-0.75, 0.75):
        for y in (-0.75, 0.75):
            pen.ellipse(x, y, 0.26, 0.26, colour)
    pen.ellipse(0, 0, 0.3, 0.3, (45, 45, 52), False)


def rendered(seed: int, background: str | None = None, colour: str | None = None):
    """A picture of the new thing, and the colours in it."""
    chance = random.Random(f"zorp {seed}")
    names = list(world.COLOURS)
    background = background or chance.choice(names)
    colour = colour or chance.choice([name for name in names if name != background])
    canvas = blank(128, world.COLOURS[background])
    place = chance.uniform(0.44, 0.56), chance.uniform(0.44, 0.56)
    pen = Pen(*place, chance.uniform(0.24, 0.32), chance.uniform(-8, 8))
    zorp(pen, world.COLOURS[colour])
    pen.put(ImageDraw.Draw(canvas), outline_of(world.COLOURS[colour]))
    return finish(canvas), background, colour


def judge() -> nn.Module:
    """A network that tells the renderer's things and the new one apart, of the shape of pocket's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = classifier.ThingClassifier()
        net.layers[-1] = nn.Linear(96, NEW + 1)
        optimiser = torch.optim.AdamW(net.parameters(), 2e-3)
        for step in range(300 if WHOLE else 2):
            boxes, names = classifier.batch_of("zorp", step)
            found = [measure.find(rendered(1000 + step * 12 + number)[0]) for number in range(12)]
            new = torch.from_numpy(np.stack([classifier.features(one) for one in found if one is not None]))
            boxes, names = torch.cat([boxes, new]), torch.cat([names, torch.full((len(new),), NEW)])
            optimiser.zero_grad()
            functional.cross_entropy(net(boxes), names).backward()
            optimiser.step()
    return net.eval()


def shows_it(net: nn.Module, image) -> bool:
    found = measure.find(image)
    if found is None:
        return False
    with torch.no_grad():
        return int(net(torch.from_numpy(classifier.features(found))[None]).argmax()) == NEW


def run(service: Service, capability: str, wish: dict, seconds: float):
    job = service.submit(capability, wish)
    until(lambda: service.get(job.id).status.is_terminal, seconds)
    done = service.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    return done


def test_a_new_thing_is_learned_by_its_word(tmp_path: Path) -> None:
    net = judge()
    examples = [rendered(seed) for seed in range(5)]
    service = Service(options(tmp_path, catalog="app.core.catalog:CATALOG", devices=("cpu",), worker_lost_seconds=60.0))
    service.start()
    try:
        until(lambda: service.readiness()["ready"], 120.0)
        references, captions = [], []
        for image, background, colour in examples:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            references.append(service.upload(buffer.getvalue()).id)
            captions.append(f"a {colour} {WORD} on a {background} background")
        wish = {
            "name": "Zorp",
            "images": references,
            "captions": captions,
            "trigger_word": WORD,
            "model": "pocket",
            "max_train_steps": STEPS,
            "train_batch_size": 4,
            "rank": 16,
            "learning_rate": 2e-3,
            "lr_scheduler": "cosine",
            "train_text_encoder": True,
            "text_encoder_lr": 5e-4,
            "seed": 1,
        }
        began = time.monotonic()
        trained = run(service, "lora-training", wish, 1.5 * LONGEST_SECONDS)
        seconds = time.monotonic() - began
        lora = [{"model": trained.result["data"]["lora"]}]
        drawn = {"with the word": 0, "without the word": 0, "the word without the LoRA": 0}
        for seed in range(SEEDS):
            colour, background = random.Random(seed).sample(list(world.COLOURS), 2)
            for name, word, loras in (
                ("with the word", WORD, lora),
                ("without the word", random.Random(seed).choice(classifier.NAMES), lora),
                ("the word without the LoRA", WORD, []),
            ):
                prompt = f"a {colour} {word} on a {background} background"
                told = {"prompt": prompt, "model": "pocket", "seed": seed, "loras": loras}
                made = run(service, "text-to-image", told, 120.0)
                drawn[name] += shows_it(net, service.storage.open(made.result["images"][0]["id"]))
    finally:
        service.stop(0.0)
    tell("a new thing learned by pocket", {"steps": STEPS, "training seconds": round(seconds), "seeds": SEEDS, **drawn})
    if WHOLE:
        assert sum(shows_it(net, rendered(10_000 + seed)[0]) for seed in range(50)) >= 48, "the judge is blind"
        assert seconds <= LONGEST_SECONDS
        assert drawn["with the word"] >= 0.8 * SEEDS, drawn
        assert drawn["without the word"] <= 0.1 * SEEDS and drawn["the word without the LoRA"] <= 0.1 * SEEDS, drawn
