"""Train the text encoders to say a caption's facts, before the UNet learns to draw from what they say.

Captions cost nothing to make and their facts are known, so the encoders learn the grammar in minutes from words alone:
linear heads read every fact off the pooled text and off the hidden states that the UNet attends to. Afterwards the
heads are dropped and the encoders stay as they are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from app.pocket import captions, world
from app.pocket.checkpoints import Stage, rng_of
from app.pocket.networks import LONGEST_UNKNOWN, POSITIONS, encode_tokens
from app.pocket.shards import Ahead, Shards, mixed_precision
from app.pocket.spec import Preset
from app.pocket.things import THINGS

BATCH = 128
RATE = 1e-3

FACTS: dict[str, tuple] = {
    "background": tuple(world.COLOURS),
    "relation": tuple(world.RELATIONS),
    "place": tuple(world.PLACES),
    **{f"thing {i} {part}": tuple(values) for i in (0, 1)
       for part, values in (("name", THINGS), ("colour", world.COLOURS), ("size", world.SIZES))},
    "is portrait": (True,),
    **(world.PERSON_FACTS | {"beard": (True,)}),
}  # fmt: skip


def targets(facts: world.Scene) -> list[int]:
    """The number of each fact's value in FACTS, 0 for what is not said (no caption says that there is no beard)."""
    said: dict[str, object] = {"background": facts.background, "relation": facts.relation, "place": facts.place}
    for i, thing in enumerate(facts.things):
        said |= {f"thing {i} name": thing.name, f"thing {i} colour": thing.colour, f"thing {i} size": thing.size}
    if facts.person is not None:
        said |= vars(facts.person) | {"is portrait": True}
    return [0 if said.get(fact) in (None, False) else 1 + values.index(said[fact]) for fact, values in FACTS.items()]


def add_noise(text: str, rng: random.Random) -> str:
    """Sometimes unknown words and marks between the words: they must change nothing."""
    if rng.random() < 0.5:
        return text
    words = text.split()
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        words.insert(rng.randint(0, len(words)), "x" * min(LONGEST_UNKNOWN, rng.randint(1, 13)))
    return " ".join(words)


class Heads(nn.Module):
    """One linear reading per fact, of the pooled text and of the hidden state at the end of the text."""

    def __init__(self, preset: Preset):
        super().__init__()
        counts = [len(values) + 1 for values in FACTS.values()]
        self.counts = counts
        self.pooled = nn.Linear(preset.text_widths[1], sum(counts))
        self.hidden = nn.Linear(sum(preset.text_widths), sum(counts))

    def forward(self, hidden: torch.Tensor, pooled: torch.Tensor, ends: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        last = hidden[torch.arange(len(ends)), ends]
        return [reading.float().split(self.counts, dim=-1) for reading in (self.pooled(pooled), self.hidden(last))]


def batch_of(tokenizer: CLIPTokenizer, seed: object, number: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens padded to the longest caption, targets) of one step: every third step portraits, else things."""
    rng = rng_of(seed, "text", number)
    texts, facts = [], []
    while len(texts) < count:
        scene = world.random_scene(rng)
        if (scene.person is not None) != (number % 3 == 0):
            continue
        said = captions.mention(scene, rng) if rng.random() > 0.05 else world.Scene()
        text = captions.word(said, rng) if said != world.Scene() else ""
        if len(said.things) == 2 and captions.parse(text).relation is None:
            said = captions.parse(text)
        texts.append(add_noise(text, rng))
        facts.append(targets(said))
    tokens = tokenizer(texts, padding="longest", truncation=True, max_length=POSITIONS, return_tensors="pt").input_ids
    return tokens, torch.tensor(facts)


def train(
    first: CLIPTextModel,
    second: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    preset: Preset,
    folder: Path,
    seed: int,
    device: torch.device,
    until: int | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Train to the end of the preset; leaves the averaged weights in both encoders and reports their accuracy."""
    heads = Heads(preset)
    for module in (first, second, heads):
        module.to(device).train()
    steps = max(1, preset.text_captions // BATCH)
    stage = Stage("text", folder, [first, second, heads], RATE, steps, horizon=300)

    def readings(tokens: torch.Tensor):
        with mixed_precision(device):
            return heads(*encode_tokens(first, second, tokens), (tokens == 1).int().argmax(-1))

    def loss_of(tokens: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        both = readings(tokens)
        return sum(functional.cross_entropy(logits, facts[:, i]) for one in both for i, logits in enumerate(one)) / 2

    def step(number: int) -> float:
        return shards.backward(*(part.to(device) for part in batches(number)))

    with (
        Shards(device, stage.parameters, loss_of) as shards,
        Ahead(lambda number: batch_of(tokenizer, seed, number, BATCH)) as batches,
    ):
        complete = stage.run(step, until, report=report)
    stage.averages.copy_to_parameters()
    for module in (first, second, heads):
        module.eval().requires_grad_(False)
    for number, subject in enumerate(("portraits", "things")):
        tokens, facts = batch_of(tokenizer, f"{seed}-held-out", number, 512)
        with torch.no_grad():
            both = readings(tokens.to(device))
        for name, reading in zip(("pooled", "hidden"), both, strict=True):
            right = torch.stack([logits.argmax(-1).cpu() == facts[:, i] for i, logits in enumerate(reading)], -1)
            report(
                f"text: every fact right in {right.all(-1).float().mean():.1%} of held-out {subject} captions ({name})"
            )
    return complete
