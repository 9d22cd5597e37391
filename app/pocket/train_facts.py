"""Teach PuLID's new layers to draw a face that is told in facts, and then its encoder to tell a face in that way.

Geometry is half a hundredth of what latents vary by, beside clothes, colours, poses: the loss of diffusion alone hardly
sees it, and the encoder's own mistakes hide what is left. So it is learned in two parts. First tokens are a linear map
of the true facts of a face, and every picture is asked for somebody else's geometry than it shows: what the judge
reads off the prediction must be the geometry that the tokens tell. Then the encoder learns to say the same tokens from
the face models' answers, which needs no UNet. What the judge itself cannot read is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from torch import nn
from torch.nn import functional

from app.models.row_attention import Halves
from app.pocket import captions, train_pulid, world
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.face_features import FaceFeatures
from app.pocket.faces import GEOMETRY
from app.pocket.latent_judge import LatentJudge
from app.pocket.people import LOOKS, People
from app.pocket.shards import mixed_precision
from app.pocket.train_pulid import EMPTY_CAPTIONS, NOBODY, TOKENS, WIDTHS, Attachment, Frozen, RowsOfFaces

BATCH = 16
RATE = 2e-3
OTHER_FACES = 0.75  # of the rows show a front face and ask for another geometry; the others show what is told
OTHER_WEIGHT = 0.3  # of the diffusion loss where the picture shows another geometry
GEOMETRY_WEIGHT = 2.0
LOOKS_WEIGHT = 0.1
EARLIEST = 500  # times below do not decide a geometry any more
FASTER = 4.0  # the tokens' numbers are that many times larger inside than their parameters
TELL_BATCH, TELL_RATE = 64, 1.5e-3


class FactTokens(nn.Module):
    """Geometry [n, 14] and looks [n, 7] to tokens [n, tokens, width]; of nobody, what all faces have in common."""

    def __init__(self, tokens: int):
        super().__init__()
        self.sizes = [len(values) for values in LOOKS.values()]
        self.shape = (tokens, WIDTHS["context"])
        self.nobody = nn.Parameter(torch.randn(self.shape) * 0.5 / FASTER)
        self.linear = nn.Linear(len(GEOMETRY) + sum(self.sizes), tokens * WIDTHS["context"], bias=False)

    def forward(self, geometry: torch.Tensor, looks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """`known` [n] is 1 for a face and 0 for nobody."""
        named = [functional.one_hot(looks[:, i], size).float() for i, size in enumerate(self.sizes)]
        told = self.linear(torch.cat([geometry, *named], 1)).unflatten(-1, self.shape)
        return FASTER * (self.nobody + told * known[:, None, None])


@torch.no_grad()
def trust(judge: LatentJudge, held_out: People) -> torch.Tensor:
    """[14] how far the judge is to be believed: its R2 on front faces of the held-out people, at least 0."""
    front = [i for i, scene in enumerate(held_out.scenes) if scene.person.pose == "front"]
    read = judge.geometry(judge.states(torch.from_numpy(held_out.latents[front].astype("float32"))))
    truth = held_out.geometry[front]
    return (1 - (read - truth).square().mean(0) / truth.var(0)).clamp(min=0)


def caption_of(scene: world.Scene, rng) -> str:
    """Words for everything but what the face itself tells; sometimes none."""
    if rng.random() < EMPTY_CAPTIONS:
        return ""
    unsaid = {name: None for name in LOOKS if name != "kind"}
    return captions.word(replace(scene, person=replace(scene.person, **unsaid)), rng)


def teach(
    version: str,
    pipeline: StableDiffusionXLPipeline,
    some: People,
    held_out: People,
    judge: LatentJudge,
    folder: Path,
    seed: object,
    steps: int,
    begin: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[FactTokens, Attachment, bool]:
    """(tokens, attachment, whether it is complete); `begin`: a checkpoint whose attachment it takes."""
    name = f"facts-{version}"
    torch.manual_seed(rng_of(seed, name).getrandbits(31))
    frozen, tokens, attachment = Frozen(pipeline), FactTokens(TOKENS[version]), Attachment(pipeline.unet)
    if begin is not None and begin.exists():
        attachment.load_state_dict(torch.load(begin, weights_only=True)["modules"][1])
    judge.eval().requires_grad_(False)
    weights = trust(judge, held_out)
    report(f"{name}: the judge is believed " + " ".join(f"{w:.2f}" for w in weights))
    front = [index for index, scene in enumerate(some.scenes) if scene.person.pose == "front"]
    stage = Stage(name, folder, [tokens, attachment], RATE, steps, horizon=50, cool_down=0.4)
    others = round(OTHER_FACES * BATCH)

    def step(number: int) -> float:
        rng, generator = rng_of(seed, name, number), generator_of(seed, name, number)
        indices = [rng.choice(front) if row < others else rng.randrange(len(some)) for row in range(BATCH)]
        known = torch.ones(BATCH)
        known[BATCH - max(1, round(NOBODY * BATCH)) :] = 0
        text = frozen.text([caption_of(some.scenes[index], rng) for index in indices])
        clean = torch.from_numpy(some.latents[indices].astype("float32"))
        noise = torch.randn(clean.shape, generator=generator)
        early = torch.randint(EARLIEST, 1000, (others,), generator=generator)
        time = torch.cat([early, train_pulid.noisy_times(BATCH - others, generator)])
        geometry = some.geometry[indices].clone()
        geometry[:others] = torch.rand(others, geometry.shape[1], generator=generator) * 2 - 1
        told = tokens(geometry, some.looks[indices], known)
        branch = RowsOfFaces(Halves(told, told), attachment.layers, 1.0)
        signal, sigma = frozen.levels(time)
        noisy = signal * clean + sigma * noise
        velocity = frozen.velocity(noisy, time, text, [branch])
        each = (velocity - (signal * noise - sigma * clean)).square().mean((1, 2, 3))
        share = torch.where(torch.arange(BATCH) < others, OTHER_WEIGHT, 1.0)
        loss = (each * share).sum() / share.sum()
        with mixed_precision(torch.device("cpu")):
            states = judge.states((signal * noisy - sigma * velocity)[:others])
            read, named = judge.geometry(states).float(), [head(states).float() for head in judge.looks]
        wrong = (read - geometry[:others]).square().mean(0)
        loss = loss + GEOMETRY_WEIGHT * (wrong * weights).sum() / weights.sum().clamp(min=1e-3)
        looks = some.looks[indices[:others]]
        for number_of_look, scores in enumerate(named):
            loss = loss + LOOKS_WEIGHT / len(named) * functional.cross_entropy(scores, looks[:, number_of_look])
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    for module in (tokens, attachment):
        module.eval().requires_grad_(False)
    return tokens, attachment, complete


def tell(
    version: str,
    tokens: FactTokens,
    some: People,
    features: FaceFeatures,
    folder: Path,
    seed: object,
    steps: int,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[nn.Module, bool]:
    """(encoder, whether it is complete): it says of a face's picture what `tokens` say of its facts."""
    name = f"tell-{version}"
    torch.manual_seed(rng_of(seed, name).getrandbits(31))
    encoder = train_pulid.build_encoder(version)
    stage = Stage(name, folder, [encoder], TELL_RATE, steps, horizon=60, cool_down=0.5)
    with torch.no_grad():
        spread = tokens(some.geometry[:512], some.looks[:512], torch.ones(len(some.looks[:512]))).var(0).mean()

    def step(number: int) -> float:
        rng, generator = rng_of(seed, name, number), generator_of(seed, name, number)
        indices = [rng.randrange(len(some)) for _ in range(TELL_BATCH)]
        vectors, hidden = features.of([rng.randrange(2) for _ in indices], indices)
        known = (torch.rand(TELL_BATCH, generator=generator) >= NOBODY).float()
        with mixed_precision(torch.device("cpu")):
            said = encoder(vectors * known[:, None], [states * known[:, None, None] for states in hidden.unbind(1)])
        wished = tokens(some.geometry[indices], some.looks[indices], known)
        loss = functional.mse_loss(said.float(), wished) / spread
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    return encoder.eval().requires_grad_(False), complete
