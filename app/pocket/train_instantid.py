"""InstantID for pocket: face tokens out of the identity vector alone, the layers that look at them, and IdentityNet.

Wang et al. 2024 (arXiv 2401.07519). The projection learns to say what PuLID's fact tokens say, as far as the vector
tells it (`train_facts.tell`), so PuLID's layers read them, and the UNet listens as it does to PuLID, with its LoRA on.
What is left to learn is where the face is to be: `train_identity_net`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch import nn

from app.models import instantid
from app.models.perceiver import Resampler
from app.pocket import face_networks, train_facts, train_pulid
from app.pocket.checkpoints import rng_of
from app.pocket.face_features import FaceFeatures
from app.pocket.networks import save_network
from app.pocket.people import People
from app.pocket.train_facts import FactTokens
from app.pocket.train_identity_net import Identity
from app.pocket.train_pulid import HEAD_DIM, Attachment

NAME, TELL = "instantid", "tell-instantid"
TOKENS = train_pulid.TOKENS["v1.1"]
"""As many as the fact tokens that they are to be like."""


def build_projection() -> Resampler:
    """InstantID's `image_proj` at pocket's widths."""
    return Resampler(128, 2, HEAD_DIM, 128 // HEAD_DIM, TOKENS, face_networks.EMBEDDING, train_pulid.WIDTHS["context"])


def say(projection: nn.Module, vectors: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What it says of identity vectors [n, 512]; of the image encoder's states it sees nothing."""
    return projection(vectors[:, None, : face_networks.EMBEDDING])


def tell(
    tokens: FactTokens, some: People, features: FaceFeatures, folder: Path, seed: object, steps: int,
    seconds: float | None = None, report: Callable[[str], None] = print,
) -> tuple[Resampler, bool]:  # fmt: skip
    """(projection, whether it is complete)."""
    torch.manual_seed(rng_of(seed, TELL).getrandbits(31))
    projection = build_projection()
    with torch.no_grad():  # its last norm gives every token one length: begin with that of the wished ones
        wished = tokens(some.geometry[:512], some.looks[:512], torch.ones(len(some.looks[:512]))).flatten(0, 1)
        projection.norm_out.weight.copy_(wished.std(0))
        projection.norm_out.bias.copy_(wished.mean(0))
    complete = train_facts.tell(
        TELL, projection, partial(say, projection), tokens, some, features.of_recognition, folder, seed, steps,
        seconds, report,
    )  # fmt: skip
    return projection, complete


def identity_of(projection: nn.Module, attachment: Attachment) -> Identity:
    """Its tokens, beside the text and in IdentityNet alike."""
    both = partial(say, projection)
    return Identity(both, attachment.layers, both)


def save(projection: nn.Module, attachment: Attachment, network: ControlNetModel, folder: Path) -> None:
    """The published layout, float16: the adapter's file and IdentityNet's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {instantid.PROJECTION + key: tensor for key, tensor in projection.state_dict().items()}
    state |= attachment.named(instantid.KEY, instantid.VALUE)
    save_file({key: t.detach().half().contiguous() for key, t in state.items()}, folder / instantid.ADAPTER)
    save_network(network, folder / instantid.NETWORK)
