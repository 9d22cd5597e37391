"""Train an IdentityNet for pocket, InstantID's or EcomID's: a ControlNet that sees five keypoints, in which the face's
tokens stand in the text's place.

It learns with the UNet as it stands in the product: dressed in PuLID's LoRA, and looking at the face's tokens. Its
middle block is plain, so that the whole stays under fifteen megabytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from app.imaging import keypoints
from app.models.row_attention import Halves
from app.pocket import captions, spec, train_facts, train_pulid, world
from app.pocket.checkpoints import Stage, generator_of
from app.pocket.face_features import FaceFeatures
from app.pocket.people import People
from app.pocket.shards import mixed_precision
from app.pocket.train_pulid import NOBODY, Frozen, RowsOfFaces

BATCH = 32
RATE = 5e-4
HORIZON, COOL_DOWN = 100, 0.5
POSE_UNSAID = 0.7
"""Of the captions leave to the keypoints which way the face looks."""
Say = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Identity vectors [n, width] and hidden states [n, 5, places, width] to tokens [n, tokens, width]."""


@dataclass(frozen=True)
class Identity:
    """A finished identity: what the UNet looks at beside the text, and IdentityNet in its place."""

    beside: Say
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    within: Say
    modes: Sequence[Mapping[str, Any]] = ({},)


def build_network(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet of the UNet's first half, begun as its copy, with a middle block without attention."""
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32, 64))
    config = dict(network.config) | {"mid_block_type": "UNetMidBlock2D"}
    plain = ControlNetModel.from_config(config)
    known = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("mid_block.")}
    middle = {name: t for name, t in network.state_dict().items() if name.startswith("mid_block.resnets.0.")}
    missing, unexpected = plain.load_state_dict(known | middle, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return plain


def drawing_of(points: torch.Tensor) -> torch.Tensor:
    """[n, 3, 128, 128] of 0 to 1: the keypoint pictures of five points each [n, 5, 2], as the product draws them."""
    pictures = [keypoints.draw_keypoints((spec.WIDTH, spec.HEIGHT), five.numpy()) for five in points]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).float() / 255


def caption_of(scene: world.Scene, rng: random.Random) -> str:
    """Words for a target, as PuLID's, mostly without the pose."""
    if rng.random() < POSE_UNSAID:
        facts = captions.mention(scene, rng)
        return captions.word(replace(facts, person=replace(facts.person, pose=None)), rng)
    return train_pulid.caption_of(scene, rng)


def train(
    name: str,
    pipeline: StableDiffusionXLPipeline,
    some: People,
    features: FaceFeatures,
    identity: Identity,
    network: ControlNetModel,
    others: np.ndarray,
    folder: Path,
    seed: object,
    steps: int,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> bool:
    """Train `network`, which is left with its averaged weights; True when complete.

    `pipeline`: with the UNet that wears PuLID's LoRA; `others`: of `train_facts.build_others`.
    """
    frozen = Frozen(pipeline)
    network.float().train().requires_grad_(True).set_attn_processor(AttnProcessor())
    stage = Stage(name, folder, [network], RATE, steps, HORIZON, COOL_DOWN)
    five, where = some.five_points, train_facts.where_faces_differ(some, others)

    def step(number: int) -> float:
        rng, references, targets = train_pulid.pairs_of(some, seed, name, number, BATCH)
        generator = generator_of(seed, name, number)
        vectors, hidden = features.of(references)
        known = (torch.rand(BATCH, generator=generator) >= NOBODY).float()
        known = known * torch.from_numpy(features.found[references].astype("float32"))
        seen = vectors * known[:, None], hidden * known[:, None, None, None]
        with torch.no_grad():
            beside, within = identity.beside(*seen), identity.within(*seen)
        text = frozen.text([caption_of(some.scenes[target], rng) for target in targets])
        noisy, time, target = frozen.noised(torch.from_numpy(some.latents[targets].astype("float32")), generator)
        scale, mode = rng.uniform(0.8, 1.0), rng.choice(identity.modes)
        branch = RowsOfFaces(Halves(beside, beside), identity.layers, scale, **mode)
        with mixed_precision(torch.device("cpu")):
            conditions = {"text_embeds": text[1], "time_ids": frozen.time_ids.expand(BATCH, -1)}
            down, middle = network(
                noisy, time, within, drawing_of(five[targets]), rng.uniform(0.8, 1.0), added_cond_kwargs=conditions,
                return_dict=False,
            )  # fmt: skip
        velocity = frozen.velocity(
            noisy, time, text, [branch], down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        loss = (where * (velocity - target).square()).mean()
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    network.eval().requires_grad_(False)
    return complete
