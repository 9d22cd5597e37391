"""Train PuLID for pocket: an encoder of faces, and the keys and values with which the frozen UNet looks at them.

The losses are those of the paper (Guo et al. 2024, arXiv 2404.16022): the diffusion loss on another picture of the
same person; the identity of what a few steps make out of noise; and the alignment of the UNet's own queries with and
without the face, in what they ask of the text and in where they lie, so that a prompt stays followed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.models import pulid
from app.models.row_attention import Halves, IdentityBranch, Part, attending, cross_attentions
from app.pocket import captions, face_networks, people, spec, world
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.face_features import FaceFeatures
from app.pocket.latent_judge import LatentJudge
from app.pocket.networks import POSITIONS, encode_tokens
from app.pocket.people import People
from app.pocket.shards import mixed_precision
from app.pocket.train_faces import Heads

BATCH = 32
RATE = 1e-3
NOBODY = 0.1  # of the rows have no face, only the tokens of none
EMPTY_CAPTIONS = 0.1
LOOKS_UNSAID = 0.6  # of the captions leave to the face what it looks like
IDENTITY_WEIGHT = 0.3
TOLD_WEIGHT = 0.2  # of what the tokens alone must tell of the face, long before the UNet listens to them
ALIGNMENT_WEIGHT = 0.3
ALIGNMENT_EVERY = 16
HEAD_DIM = 64  # of the encoder's own attention, as in the published one
FAST_STEPS = 4
MODES = (("off", 0), ("ortho_v2", 8), ("ortho_v2", 20))
WIDTHS = {"context": 256, "inner": 256, "dim": 128, "depth": 5, "queries": 8}
TOKENS = {"v1": 10, "v1.1": WIDTHS["queries"]}


def build_encoder(version: str) -> nn.Module:
    """The encoder that the product opens, at pocket's widths."""
    width, clip = face_networks.EMBEDDING + face_networks.POOLED, 64
    if version == "v1":
        return pulid.IDEncoder(width, WIDTHS["context"], 5, clip, WIDTHS["inner"])
    heads = WIDTHS["dim"] // HEAD_DIM
    return pulid.IDFormer(
        WIDTHS["dim"], WIDTHS["depth"], HEAD_DIM, heads, 5, WIDTHS["queries"], WIDTHS["context"], width,
        clip, WIDTHS["inner"],
    )  # fmt: skip


def say(encoder: nn.Module, vectors: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What it says of faces: vectors [n, width] and hidden states [n, 5, places, width] to [n, tokens, width]."""
    return encoder(vectors, list(hidden.unbind(1)))


class Attachment(nn.Module):
    """Keys and values of every cross-attention, begun as copies of the text's."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        modules = cross_attentions(unet)
        self.numbers = sorted(modules)
        self.keys = nn.ParameterList(modules[n].to_k.weight.detach().float().clone() for n in self.numbers)
        self.values = nn.ParameterList(modules[n].to_v.weight.detach().float().clone() for n in self.numbers)

    @property
    def layers(self) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return dict(zip(self.numbers, zip(self.keys, self.values, strict=True), strict=True))

    def named(self, key: str, value: str) -> dict[str, torch.Tensor]:
        """All of them by these names, in which the number of a layer is `{}`."""
        keys = {key.format(number): part for number, (part, _) in self.layers.items()}
        return keys | {value.format(number): part for number, (_, part) in self.layers.items()}


class RowsOfFaces(IdentityBranch):
    """An identity branch whose tokens [rows, n, width] are another face's in every row."""

    def _keys_and_values(self, layer, heads, negative, query):
        tokens = self._tokens(negative)
        return tuple(
            functional.linear(tokens, weight.to(tokens)).unflatten(-1, (heads, -1)).transpose(1, 2).to(query)
            for weight in self.layers[layer]
        )


def caption_of(scene: world.Scene, rng: random.Random) -> str:
    """Words for a target: often nothing about what the face itself tells."""
    if rng.random() < EMPTY_CAPTIONS:
        return ""
    facts = captions.mention(scene, rng)
    if rng.random() < LOOKS_UNSAID:
        unsaid = {name: None for name in people.LOOKS if name != "kind"}
        facts = replace(facts, person=replace(facts.person, **unsaid))
    return captions.word(facts, rng)


def pairs_of(some: People, seed: object, name: str, number: int, batch: int = BATCH):
    """(random source, indices of references, indices of targets): two pictures of each."""
    rng = rng_of(seed, name, number)
    references, targets = [], []
    for _ in range(batch):
        person = rng.randrange(len(some) // people.PICTURES_EACH) * people.PICTURES_EACH
        one, other = rng.sample(range(people.PICTURES_EACH), 2)
        references.append(person + one)
        targets.append(person + other)
    return rng, references, targets


def noisy_times(count: int, generator: torch.Generator) -> torch.Tensor:
    """Times about the upper middle, where it is decided who is seen; 0 to 999."""
    middle = torch.sigmoid(0.6 + torch.randn(count, generator=generator))
    even = torch.rand(count, generator=generator)
    return (torch.where(torch.rand(count, generator=generator) < 0.25, even, middle) * 1000).long().clamp(max=999)


class Frozen:
    """What stays as it is: pocket's UNet, its text encoders, its noise schedule."""

    def __init__(self, pipeline: StableDiffusionXLPipeline):
        self.unet = pipeline.unet
        self.unet.set_attn_processor(AttnProcessor())
        self.unet.to(memory_format=torch.channels_last)
        self.settle()
        self.first, self.second = pipeline.text_encoder.eval(), pipeline.text_encoder_2.eval()
        self.first.requires_grad_(False)
        self.second.requires_grad_(False)
        self.tokenizer = pipeline.tokenizer
        self.signal = pipeline.scheduler.alphas_cumprod
        self.time_ids = torch.tensor([[spec.WIDTH, spec.HEIGHT, 0, 0, spec.WIDTH, spec.HEIGHT]], dtype=torch.float32)

    def settle(self) -> None:
        """Make the UNet what it is while others learn."""
        self.unet.requires_grad_(False).eval()
        for module in self.unet.modules():  # what autocast would cast at every forward is cast once
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(torch.bfloat16)

    def text(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=POSITIONS, return_tensors="pt"
        ).input_ids
        with torch.no_grad(), mixed_precision(torch.device("cpu")):
            hidden, pooled = encode_tokens(self.first, self.second, tokens)
        return hidden.float(), pooled.float()

    def levels(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(signal, noise) of each time, [n, 1, 1, 1]."""
        signal = self.signal[time].sqrt()[:, None, None, None]
        return signal, (1 - self.signal[time]).sqrt()[:, None, None, None]

    def velocity(self, noisy, time, text, branches=(), time_ids=None, **more) -> torch.Tensor:
        hidden, pooled = text
        sizes = self.time_ids.expand(len(noisy), -1) if time_ids is None else time_ids
        conditions = {"text_embeds": pooled, "time_ids": sizes}
        parts = [Part(len(noisy), tuple(branches), guided=False)]
        with mixed_precision(torch.device("cpu")), sdpa_kernel(SDPBackend.MATH), attending(self.unet, parts):
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            return self.unet(noisy, time, hidden, added_cond_kwargs=conditions, **more).sample.float()

    def noised(
        self, clean: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents at times about the upper middle: (noisy latents, times [n], the velocity that leads back)."""
        noise = torch.randn(clean.shape, generator=generator)
        time = noisy_times(len(clean), generator)
        signal, sigma = self.levels(time)
        return signal * clean + sigma * noise, time, signal * noise - sigma * clean

    @contextmanager
    def queries(self):
        """Collects, by layer, what cross-attention asks with: [n, places, width]."""
        found: list[torch.Tensor] = []
        hooks = [
            module.to_q.register_forward_hook(lambda _, __, out: found.append(out.float()))
            for module in cross_attentions(self.unet).values()
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def alignment(frozen: Frozen, plain: list[torch.Tensor], faced: list[torch.Tensor], text) -> torch.Tensor:
    """The paper's two losses between the queries without and with a face: what they say to the text, where they lie."""
    hidden, total = text[0], 0.0
    order = [module for module in cross_attentions(frozen.unet).values()]
    by_width = {id(module): module for module in order}
    for module, before, after in zip(_running_order(frozen.unet), plain, faced, strict=True):
        keys = functional.linear(hidden, by_width[id(module)].to_k.weight.float())
        scale = keys.shape[-1] ** -0.5

        def said(queries, keys=keys, scale=scale):
            return (keys @ queries.transpose(1, 2) * scale).softmax(-1) @ queries

        size = before.square().mean().detach() + 1e-4
        total = total + functional.mse_loss(said(after), said(before)) / size
        total = total + 0.2 * functional.mse_loss(after, before) / size
    return total / len(plain)


def _running_order(unet: nn.Module) -> list[nn.Module]:
    """The cross-attentions as a forward meets them: down, middle, up."""
    named = cross_attentions(unet)
    names = list(unet.attn_processors)
    place = {"down": 0, "mid_": 1, "up_b": 2}
    return [named[n] for n in sorted(named, key=lambda n: (place[names[n][:4]], n))]


def train(
    version: str,
    pipeline: StableDiffusionXLPipeline,
    some: People,
    features: FaceFeatures,
    judge: LatentJudge,
    folder: Path,
    seed: int,
    steps: int,
    begin: tuple[nn.Module, Attachment] | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[nn.Module, Attachment, bool]:
    """(encoder, attachment, whether it is complete); `begin`: those with which it begins, as they were taught facts."""
    torch.manual_seed(rng_of(seed, "pulid", version).getrandbits(31))
    frozen = Frozen(pipeline)
    encoder, attachment = begin or (build_encoder(version), Attachment(pipeline.unet))
    for module in (encoder, attachment):
        module.requires_grad_(True)
    judge.eval().requires_grad_(False)
    told = Heads(TOKENS[version] * WIDTHS["context"])
    stage = Stage(f"pulid-{version}", folder, [encoder, attachment, told], RATE, steps, horizon=200)

    def step(number: int) -> float:
        rng, references, targets = pairs_of(some, seed, f"pulid-{version}", number)
        generator = generator_of(seed, f"pulid-{version}", number)
        vectors, hidden = features.of(references)
        known = (torch.rand(BATCH, generator=generator) >= NOBODY).float()
        known = known * torch.from_numpy(features.found[references].astype("float32"))
        text = frozen.text([caption_of(some.scenes[target], rng) for target in targets])
        clean = torch.from_numpy(some.latents[targets].astype("float32"))
        noise = torch.randn(clean.shape, generator=generator)
        ortho, zeros = rng.choice(MODES)
        with mixed_precision(torch.device("cpu")):
            tokens = say(encoder, vectors * known[:, None], hidden * known[:, None, None, None])
        halves = Halves(tokens.float(), tokens.float())
        branch = RowsOfFaces(halves, attachment.layers, rng.uniform(0.8, 1.0), num_zero=zeros, ortho=ortho)

        def unlikeness(latents: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            each = judge.loss(latents, some.geometry[references], some.looks[references])
            return (each * weight * known).mean()

        if number % ALIGNMENT_EVERY == ALIGNMENT_EVERY - 1:
            loss = _fast_loss(frozen, noise, text, branch, unlikeness)
        else:
            time = noisy_times(BATCH, generator)
            signal, sigma = frozen.levels(time)
            noisy = signal * clean + sigma * noise
            velocity = frozen.velocity(noisy, time, text, [branch])
            loss = functional.mse_loss(velocity, signal * noise - sigma * clean)
            loss = loss + IDENTITY_WEIGHT * unlikeness(signal * noisy - sigma * velocity, signal.flatten().sqrt())
        seen = known.bool()
        faces = [references[row] for row in seen.nonzero().flatten().tolist()]
        loss = loss + TOLD_WEIGHT * told.loss(tokens[seen].flatten(1).float(), some.geometry[faces], some.looks[faces])
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    for module in (encoder, attachment):
        module.eval().requires_grad_(False)
    return encoder, attachment, complete


def _fast_loss(frozen: Frozen, noise, text, branch, unlikeness) -> torch.Tensor:
    """From noise in a few steps: who is seen at the end, and at the first step how the queries have moved."""
    times = [999 - 1000 * n // FAST_STEPS for n in range(FAST_STEPS)] + [-1]
    latents, aligned = noise, None
    for number, (now, then) in enumerate(pairwise(times)):
        time = torch.full((len(noise),), now)
        signal, sigma = frozen.levels(time)
        learns = number >= FAST_STEPS - 2
        with torch.set_grad_enabled(learns):
            if number == FAST_STEPS - 2:
                with torch.no_grad(), frozen.queries() as plain:
                    frozen.velocity(latents, time, text)
                with frozen.queries() as faced:
                    velocity = frozen.velocity(latents, time, text, [branch])
                aligned = alignment(frozen, plain, faced, text)
            else:
                velocity = frozen.velocity(latents, time, text, [branch])
            clean, noise_left = signal * latents - sigma * velocity, sigma * latents + signal * velocity
            if then < 0:
                latents = clean
            else:
                next_signal, next_sigma = frozen.levels(torch.full((len(noise),), then))
                latents = next_signal * clean + next_sigma * noise_left
    return unlikeness(latents, torch.ones(len(noise))) + ALIGNMENT_WEIGHT * aligned


def save(encoder: nn.Module, attachment: Attachment, file: Path) -> None:
    """The published layout, float16."""
    state = {pulid.ENCODER + name: tensor for name, tensor in encoder.state_dict().items()}
    state |= attachment.named(pulid.KEY, pulid.VALUE)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().half().contiguous() for name, tensor in state.items()}, file)
