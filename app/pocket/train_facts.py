"""Teach PuLID's new layers to draw a face that is told in facts, and then its encoder to tell a face in that way.

Geometry is half a hundredth of what latents vary by, beside clothes, colours, poses: the loss of diffusion alone hardly
sees it, and the encoder's own mistakes hide what is left. So it is learned in two parts. First tokens are a linear map
of the true facts of a face. The renderer draws each portrait with another geometry as well, all else the same; the same
noisy latents are denoised once with each geometry told, and the difference of the two answers must be the difference
of the two pictures: clothes, colours and noise cancel, and what is left to explain is geometry alone. Then the encoder
learns to say the same tokens from the face models' answers, which needs no UNet.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from app.models import pulid
from app.models.row_attention import Halves
from app.pocket import archive, captions, encoding, spec, unet_lora, world
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.face_features import FaceFeatures
from app.pocket.faces import GEOMETRY
from app.pocket.people import LOOKS, People
from app.pocket.shards import mixed_precision
from app.pocket.told_geometry import told_geometry
from app.pocket.train_pulid import EMPTY_CAPTIONS, NOBODY, TOKENS, WIDTHS, Attachment, Frozen, RowsOfFaces

NAME = "other-parts"
FILE_NAME = "facts-v1.1.safetensors"
PULID = "pocket-pulid"
WHOLLY_OTHER = 0.25  # of the other pictures differ in every number
FURTHER = 0.6  # a number that differs does so by at least this much
PAIRS, ALONE = 12, 4  # of a batch: portraits that are told with both geometries, and others for the diffusion loss
RATE = 1e-3
EVERYTHING_SAID = 0.5
DIFFERENCE_WEIGHT = 2.0
EVERYWHERE, PORTRAITS_LOOKED_AT = 0.3, 4096  # of `where_faces_differ`
SMALLEST = 0.02  # a difference below this share of the batch's mean counts by less
EARLIEST = 400  # times below do not decide a geometry any more
FASTER = 4.0  # the tokens' numbers are that many times larger inside than their parameters
TELL_BATCH, TELL_RATE = 64, 1.5e-3
GEOMETRY_WEIGHT = 3.0
"""Of the geometry that the told tokens say, beside the tokens themselves, most of which looks decide."""


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

    def reader(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What reads the geometry [n, 14] that tokens [n, tokens, width] say, by least squares."""
        back, nobody = torch.linalg.pinv(self.linear.weight.detach())[: len(GEOMETRY)].T, self.nobody.detach()
        return lambda said: (said / FASTER - nobody).flatten(1) @ back

    def save(self, file: Path) -> None:
        """Keep them for a training that goes on from what ships; the product does not read them."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().half() for name, tensor in self.state_dict().items()}, file)

    @torch.no_grad()
    def take(self, state: dict[str, torch.Tensor]) -> None:
        """These weights; where they are for fewer tokens, the first ones stand for the missing ones once more."""
        taught = len(state["nobody"])
        order = [number % taught for number in range(len(self.nobody))]
        self.nobody.copy_(state["nobody"][order])
        rows = state["linear.weight"].unflatten(0, (taught, -1))
        self.linear.weight.copy_(rows[order].flatten(0, 1))


def other_geometry(seed: object, index: int, own: Sequence[float]) -> tuple[float, ...]:
    """What the portrait of this entry has for a geometry in its other picture: mostly one to three numbers differ."""
    rng = rng_of(seed, NAME, index)
    count = len(GEOMETRY) if rng.random() < WHOLLY_OTHER else rng.randint(1, 3)
    numbers = list(own)
    for number in rng.sample(range(len(GEOMETRY)), count):
        while abs(numbers[number] - own[number]) < FURTHER:
            numbers[number] = rng.uniform(-1, 1)
    return tuple(numbers)


def build_others(
    folder: Path, some: People, autoencoder: AutoencoderKL, report: Callable[[str], None] = print
) -> np.ndarray:
    """[n, 4, h, w] the latents of every portrait with its other geometry and all else the same, made once."""

    def make(indices: range) -> dict[str, np.ndarray]:
        scenes = [
            replace(some.scenes[index], geometry=other_geometry(some.seed, index, some.scenes[index].geometry))
            for index in indices
        ]
        pictures = encoding.to_tensor([world.draw(scene, spec.WIDTH) for scene in scenes])
        return {"latents": encoding.encode(autoencoder, pictures).float().numpy()}

    shapes = {"latents": encoding.LATENTS}
    return archive.build(folder, f"{NAME}-{some.seed}", shapes, len(some), make, report)["latents"]


def caption_of(scene: world.Scene, rng) -> str:
    """Words for what the face does not tell: half the time all of it, else as a prompt has it; sometimes none."""
    if rng.random() < EMPTY_CAPTIONS:
        return ""
    facts = scene if rng.random() < EVERYTHING_SAID else captions.mention(scene, rng)
    unsaid = {name: None for name in LOOKS if name != "kind"}
    return captions.word(replace(facts, person=replace(facts.person, **unsaid)), rng)


def where_faces_differ(some: People, others: np.ndarray) -> torch.Tensor:
    """[h, w] with a mean of 1: EVERYWHERE is the same for all places, the rest goes by where geometry changes them.

    Every number of it counts the same, though eyes change thrice as much as mouths. A seventh of the places has more
    than twice its share then; clothes and hair, in most of the others, teach a UNet nothing of a face.
    """
    changes: dict[int, list[np.ndarray]] = {}
    for index, scene in enumerate(some.scenes[:PORTRAITS_LOOKED_AT]):
        other = other_geometry(some.seed, index, scene.geometry)
        numbers = [number for number, (a, b) in enumerate(zip(scene.geometry, other, strict=True)) if a != b]
        if len(numbers) == 1:
            change = others[index].astype("float32") - some.latents[index].astype("float32")
            changes.setdefault(numbers[0], []).append(np.square(change).mean(0))
    if not changes:
        raise ValueError("no portrait differs from its other in one number alone; train on more portraits")
    patterns = [np.mean(found, 0) for found in changes.values()]
    pattern = np.mean([found / found.mean() for found in patterns], 0)
    return EVERYWHERE + (1 - EVERYWHERE) * torch.from_numpy(pattern)


class Told:
    """A batch of portraits, of which the first ones are told with both of their geometries: rows of one forward.

    `rows` are the portraits that the rows of `tokens` belong to: all of them, then once more those told otherwise.
    """

    def __init__(
        self,
        some: People,
        others: np.ndarray,
        tokens: FactTokens,
        frozen: Frozen,
        rng: random.Random,
        generator: torch.Generator,
        pairs: int = PAIRS,
        alone: int = ALONE,
        earliest: int = EARLIEST,
        where: torch.Tensor | None = None,
    ):
        """`where` [h, w]: how much each place counts in the loss of diffusion; see `where_faces_differ`."""
        self._where = torch.ones(encoding.LATENTS[1][1:]) if where is None else where
        indices = [rng.randrange(len(some)) for _ in range(pairs + alone)]
        known = torch.ones(len(indices))
        known[len(known) - max(1, round(NOBODY * len(known))) :] = 0
        self.captions = [caption_of(some.scenes[index], rng) for index in indices]
        clean = torch.from_numpy(some.latents[indices].astype("float32"))
        noise = torch.randn(clean.shape, generator=generator)
        early = torch.randint(earliest, 1000, (pairs,), generator=generator)
        self.time = torch.cat([early, torch.randint(0, 1000, (alone,), generator=generator)])
        signal, sigma = frozen.levels(self.time)
        self.noisy, self._target = signal * clean + sigma * noise, signal * noise - sigma * clean
        told = indices[:pairs]
        another = torch.tensor([other_geometry(some.seed, index, some.scenes[index].geometry) for index in told])
        self.tokens = tokens(
            torch.cat([some.geometry[indices], another]), some.looks[indices + told], torch.cat([known, known[:pairs]])
        )
        self.rows = torch.cat([torch.arange(len(indices)), torch.arange(pairs)])
        self._wished = sigma[:pairs] * (torch.from_numpy(others[told].astype("float32")) - clean[:pairs])

    def velocity(self, frozen: Frozen, attachment: Attachment) -> torch.Tensor:
        """What the UNet says of every row."""
        branch = RowsOfFaces(Halves(self.tokens, self.tokens), attachment.layers, 1.0)
        text = (part[self.rows] for part in frozen.text(self.captions))
        return frozen.velocity(self.noisy[self.rows], self.time[self.rows], tuple(text), [branch])

    def losses(self, velocity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the loss of diffusion, the share of what the geometries change that is not drawn)."""
        own, other = velocity[: len(self.noisy)], velocity[len(self.noisy) :]
        loss = (self._where * (own - self._target).square()).mean()
        size = self._wished.square().mean((1, 2, 3))
        missed = (own[: len(other)] - other - self._wished).square().mean((1, 2, 3))
        return loss, (missed / (size + SMALLEST * size.mean())).mean()  # an eye is as much as a whole face


class Drawn:
    """How much of what geometry changes is drawn, as it comes; reported now and then."""

    def __init__(self, name: str, report: Callable[[str], None]):
        self._name, self._report, self._missed = name, report, 1.0

    def note(self, number: int, share: float) -> None:
        """The share that a step missed."""
        self._missed += 0.02 * (share - self._missed)
        if number % 100 == 99:
            self._report(f"{self._name}: {1 - self._missed:.0%} of what geometry changes is drawn")


def teach(
    version: str,
    pipeline: StableDiffusionXLPipeline,
    some: People,
    others: np.ndarray,
    folder: Path,
    seed: object,
    steps: int,
    begin: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[FactTokens, Attachment, bool]:
    """(tokens, attachment, whether it is complete); `others`: of build_others; `begin`: a checkpoint to begin with."""
    name = f"facts-{version}"
    torch.manual_seed(rng_of(seed, name).getrandbits(31))
    frozen, tokens, attachment = Frozen(pipeline), FactTokens(TOKENS[version]), Attachment(pipeline.unet)
    if begin is not None:
        begin_with(begin, tokens, attachment)
    stage = Stage(name, folder, [tokens, attachment], RATE, steps, horizon=50, cool_down=0.4)
    drawn = Drawn(name, report)

    def step(number: int) -> float:
        told = Told(some, others, tokens, frozen, rng_of(seed, name, number), generator_of(seed, name, number))
        loss, share = told.losses(told.velocity(frozen, attachment))
        (loss + DIFFERENCE_WEIGHT * share).backward()
        drawn.note(number, share.item())
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    for module in (tokens, attachment):
        module.eval().requires_grad_(False)
    return tokens, attachment, complete


def begin_with(source: Path, tokens: FactTokens, attachment: Attachment, unet: nn.Module | None = None) -> None:
    """Take the weights that a checkpoint of `teach` or of steering holds, or a folder of finished modules; the UNet's
    only of steering or of the LoRA.
    """
    if source.is_dir():
        _begin_with_modules(source, tokens, attachment, unet)
        return
    *networks, told, layers = torch.load(source, weights_only=True)["modules"]
    if unet is not None and networks:
        unet.load_state_dict(networks[0])
    attachment.load_state_dict(layers)
    tokens.take(told)


@torch.no_grad()
def _begin_with_modules(folder: Path, tokens: FactTokens, attachment: Attachment, unet: nn.Module | None) -> None:
    state = load_file(next((folder / PULID).glob("*.safetensors")))
    for number, key, value in zip(attachment.numbers, attachment.keys, attachment.values, strict=True):
        key.copy_(state[pulid.KEY.format(number)])
        value.copy_(state[pulid.VALUE.format(number)])
    tokens.take({name: tensor.float() for name, tensor in load_file(folder / FILE_NAME).items()})
    if unet is not None:
        unet_lora.put_on(unet, folder / f"{PULID}-lora")


def tell(
    name: str,
    encoder: nn.Module,
    say: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    tokens: FactTokens,
    some: People,
    features: FaceFeatures,
    folder: Path,
    seed: object,
    steps: int,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Teach the encoder to say of a face's picture what `tokens` say of its facts, as far as the picture tells them
    (`told_geometry`); leaves its averaged weights in it; True when complete.

    `say`: identity vectors [n, width] and hidden states [n, 5, places, width], zeros for nobody, to what it says.
    """
    told = told_geometry(features, some.geometry)
    found, read = features.indices, tokens.reader()
    stage = Stage(name, folder, [encoder], TELL_RATE, steps, horizon=60, cool_down=0.5)
    with torch.no_grad():
        spread = tokens(some.geometry[:512], some.looks[:512], torch.ones(len(some.looks[:512]))).var(0).mean()

    def step(number: int) -> float:
        rng, generator = rng_of(seed, name, number), generator_of(seed, name, number)
        indices = [rng.choice(found) for _ in range(TELL_BATCH)]
        vectors, hidden = features.of(indices)
        known = (torch.rand(TELL_BATCH, generator=generator) >= NOBODY).float()
        with mixed_precision(torch.device("cpu")):
            said = say(vectors * known[:, None], hidden * known[:, None, None, None])
        wished = tokens(told[indices], some.looks[indices], known)
        loss = functional.mse_loss(said.float(), wished) / spread
        faces = known.bool()
        geometry = read(said.float()[faces])
        loss = loss + GEOMETRY_WEIGHT * functional.mse_loss(geometry, told[indices][faces])
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    encoder.eval().requires_grad_(False)
    return complete
