"""EVA02-CLIP's visual tower: a face's crop in, its pooled embedding and five hidden states out.

The network is timm's Eva, built to the shapes that the file has; the keys are those of the published checkpoint
(`visual.*`). It stays in float32 whatever the device computes in: PuLID's encoder was trained on that.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.eva import Eva, checkpoint_filter_fn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from app.errors import InvalidRequest
from app.models.spec import ModelSpec

PREFIX = "visual."
HIDDEN_STATES = 5
TRAINED_GRID = (16, 16)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipFeatures(NamedTuple):
    """What the tower says of B pictures.

    `pooled` [B, embedding] is not yet L2-normalised; `hidden` are five tensors [B, N + 1, width], class token first.
    """

    pooled: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


class EvaClip(torch.nn.Module):
    """The tower and its own way of preparing pictures; `size` is the side of its input in pixels."""

    def __init__(self, tower: Eva) -> None:
        super().__init__()
        self.tower = tower
        self.size: int = tower.patch_embed.img_size[0]
        depth = len(tower.blocks)
        # After the 4th, 8th, ... 20th of 24 blocks; a smaller tower gives them at the same shares of its depth.
        self.depths = [depth * share // (HIDDEN_STATES + 1) - 1 for share in range(1, HIDDEN_STATES + 1)]

    def preprocess(self, crop: torch.Tensor) -> torch.Tensor:
        """A crop [B, 3, H, W] in 0..1 as the tower takes it: its size, CLIP's mean and deviation."""
        # Antialiasing is pinned: torchvision's own default for tensors has changed between versions.
        scaled = resize(crop, [self.size, self.size], InterpolationMode.BICUBIC, antialias=True)
        mean, std = (torch.tensor(values, device=crop.device).view(3, 1, 1) for values in (MEAN, STD))
        return (scaled - mean) / std

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> ClipFeatures:
        """Features of normalised pixels [B, 3, size, size]."""
        last, between = self.tower.forward_intermediates(
            pixels, indices=self.depths, return_prefix_tokens=True, norm=False, output_fmt="NLC"
        )
        hidden = tuple(torch.cat([prefix, patches], dim=1) for patches, prefix in between)
        return ClipFeatures(self.tower.forward_head(last), hidden)


def tower_of(weights: Mapping[str, Any], head_dim: int) -> Eva:
    """An empty tower (on the current default device) of the shapes of these weights; `KeyError` where some lack."""
    shapes = {key.removeprefix(PREFIX): tuple(value.shape) for key, value in weights.items() if key.startswith(PREFIX)}
    width, patch = shapes["cls_token"][-1], shapes["patch_embed.proj.weight"][-1]
    grid = math.isqrt(shapes["pos_embed"][1] - 1)
    depth = 1 + max(int(found[1]) for key in shapes if (found := re.match(r"blocks\.(\d+)\.", key)))
    return Eva(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // head_dim,
        # Eva takes the whole part of width * ratio.
        mlp_ratio=(shapes["blocks.0.mlp.w1.weight"][0] + 0.5) / width,
        num_classes=shapes["head.weight"][0],
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=TRAINED_GRID,
        global_pool="token",
    )


def fill(weights: Mapping[str, torch.Tensor], head_dim: int) -> EvaClip:
    """A tower that holds exactly these weights; `KeyError`, `RuntimeError` or `ValueError` where they are not one's."""
    tower = tower_of(weights, head_dim)
    tower.load_state_dict(checkpoint_filter_fn(dict(weights), tower))
    return EvaClip(tower).eval().requires_grad_(False)


def open_file(file: Path, head_dim: int = 64) -> EvaClip:
    """The tower of a `.safetensors` file; `InvalidRequest` where it is not one."""
    try:
        return fill({key: value.float() for key, value in load_file(file).items()}, head_dim)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise InvalidRequest("The image encoder cannot be opened: its file is not a whole EVA02-CLIP tower.") from error


def load(spec: ModelSpec, path: Path, device: Any, parts: Sequence[Any] = ()) -> EvaClip:
    """Open the tower of a row: a file, or a folder with one file in it."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidRequest(f"The model {spec.id!r} cannot be opened: its folder must hold one .safetensors file.")
    return open_file(files[0], int(spec.options.get("head_dim", "64"))).to(device.torch_device)
