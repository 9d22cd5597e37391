"""Train InstantID for pocket: face tokens, the layers that look at them, and IdentityNet, which sees five keypoints.

Wang et al. 2024 (arXiv 2401.07519): IdentityNet is a ControlNet in which the face's tokens stand in the text's place.
Its middle block is plain here, so that the whole stays under fifteen megabytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from app.imaging import keypoints
from app.models import instantid
from app.models.perceiver import Resampler
from app.models.row_attention import Halves
from app.pocket import captions, face_networks, spec, train_pulid, world
from app.pocket.checkpoints import Stage, generator_of, rng_of
from app.pocket.face_features import FaceFeatures
from app.pocket.latent_judge import LatentJudge
from app.pocket.networks import save_network
from app.pocket.people import People
from app.pocket.shards import mixed_precision
from app.pocket.train_pulid import BATCH, HEAD_DIM, NOBODY, Attachment, Frozen, RowsOfFaces

RATE = 8e-4
TOKENS = 8
POSE_UNSAID = 0.7  # of the captions leave to the keypoints which way the face looks
NAME = "instantid"


def build_projection() -> Resampler:
    """InstantID's `image_proj` at pocket's widths."""
    return Resampler(128, 2, HEAD_DIM, 128 // HEAD_DIM, TOKENS, face_networks.EMBEDDING, train_pulid.WIDTHS["context"])


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


def caption_of(scene: world.Scene, rng) -> str:
    """Words for a target, as PuLID's, mostly without the pose."""
    if rng.random() < POSE_UNSAID:
        facts = captions.mention(scene, rng)
        person = replace(facts.person, pose=None)
        return captions.word(replace(facts, person=person), rng)
    return train_pulid.caption_of(scene, rng)


def train(
    pipeline: StableDiffusionXLPipeline,
    some: People,
    features: FaceFeatures,
    judge: LatentJudge,
    folder: Path,
    seed: object,
    steps: int,
    name: str = NAME,
    begin: Path | None = None,
    seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Resampler, Attachment, ControlNetModel, bool]:
    """(projection, attachment, IdentityNet, whether it is complete); `begin`: a PuLID checkpoint to take layers of."""
    torch.manual_seed(rng_of(seed, name).getrandbits(31))
    frozen = Frozen(pipeline)
    projection, attachment, network = build_projection(), Attachment(pipeline.unet), build_network(pipeline.unet)
    network.set_attn_processor(AttnProcessor())
    if begin is not None and begin.exists():
        attachment.load_state_dict(torch.load(begin, weights_only=True)["modules"][1])
    judge.eval().requires_grad_(False)
    stage = Stage(name, folder, [projection, attachment, network], RATE, steps, horizon=150)
    five = some.five_points

    def step(number: int) -> float:
        rng, references, targets = train_pulid.pairs_of(some, seed, name, number)
        generator = generator_of(seed, name, number)
        vectors, _ = features.of(references)
        known = (torch.rand(BATCH, generator=generator) >= NOBODY).float()
        known = known * torch.from_numpy(features.found[references].astype("float32"))
        text = frozen.text([caption_of(some.scenes[target], rng) for target in targets])
        clean = torch.from_numpy(some.latents[targets].astype("float32"))
        noise = torch.randn(clean.shape, generator=generator)
        time = train_pulid.noisy_times(BATCH, generator)
        signal, sigma = frozen.levels(time)
        noisy = signal * clean + sigma * noise
        with mixed_precision(torch.device("cpu")):
            tokens = projection((vectors[:, : face_networks.EMBEDDING] * known[:, None])[:, None]).float()
            conditions = {"text_embeds": text[1], "time_ids": frozen.time_ids.expand(BATCH, -1)}
            down, middle = network(
                noisy, time, tokens, drawing_of(five[targets]), rng.uniform(0.8, 1.0), added_cond_kwargs=conditions,
                return_dict=False,
            )  # fmt: skip
        branch = RowsOfFaces(Halves(tokens, tokens), attachment.layers, rng.uniform(0.8, 1.0))
        velocity = frozen.velocity(
            noisy, time, text, [branch], down_block_additional_residuals=down, mid_block_additional_residual=middle
        )
        loss = functional.mse_loss(velocity, signal * noise - sigma * clean)
        each = judge.loss(signal * noisy - sigma * velocity, some.geometry[references], some.looks[references])
        loss = loss + train_pulid.IDENTITY_WEIGHT * (each * signal.flatten().sqrt() * known).mean()
        loss.backward()
        return loss.item()

    complete = stage.run(step, seconds=seconds, report=report)
    stage.averages.copy_to_parameters()
    for module in (projection, attachment, network):
        module.eval().requires_grad_(False)
    return projection, attachment, network, complete


def save(projection: nn.Module, attachment: Attachment, network: ControlNetModel, folder: Path) -> None:
    """The published layout, float16: the adapter's file and IdentityNet's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {instantid.PROJECTION + key: tensor for key, tensor in projection.state_dict().items()}
    for number, (key, value) in attachment.layers.items():
        state |= {instantid.KEY.format(number): key, instantid.VALUE.format(number): value}
    save_file({key: t.detach().half().contiguous() for key, t in state.items()}, folder / instantid.ADAPTER)
    save_network(network, folder / instantid.NETWORK)
