"""Image encoders for pictures as prompts: CLIP's vision tower, or EVA02-CLIP's, under one set of questions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from app.models import eva_clip
from app.models.catalog_faces import EVA_LOADER
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.spec import ModelSpec


class PictureEncoder(Protocol):
    """What an adapter asks an encoder. Pixels are [n, 3, side, side] as `preprocess` makes them."""

    id: str
    network: torch.nn.Module
    embedding_width: int
    state_width: int

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """A square picture as the network reads it: [1, 3, side, side]."""

    def embedding(self, pixels: torch.Tensor) -> torch.Tensor:
        """One vector for each picture [n, width]."""

    def states(self, pixels: torch.Tensor) -> torch.Tensor:
        """Vectors of the class token and of every patch [n, 1 + patches, width], before the last layer."""


class Clip:
    """transformers' CLIPVisionModelWithProjection, in the folder layout of the hub."""

    def __init__(self, id: str, path: Path, device: TorchDevice) -> None:
        self.id = id
        self.network = CLIPVisionModelWithProjection.from_pretrained(
            path, dtype=device.dtype, use_safetensors=True, local_files_only=True
        )
        self.network.eval().requires_grad_(False)
        config = self.network.config
        self.embedding_width, self.state_width = config.projection_dim, config.hidden_size
        self._processor = CLIPImageProcessor(size=config.image_size, crop_size=config.image_size)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """See `PictureEncoder`."""
        return self._processor(image, return_tensors="pt").pixel_values

    def embedding(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PictureEncoder`."""
        return self.network(pixels.to(self.network.dtype)).image_embeds

    def states(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PictureEncoder`."""
        return self.network(pixels.to(self.network.dtype), output_hidden_states=True).hidden_states[-2]


class Eva:
    """EVA02-CLIP's visual tower; its states are the deepest that it hands out."""

    def __init__(self, row: ModelRow, device: TorchDevice) -> None:
        self.id = row.spec.id
        self.network = eva_clip.load(row.spec, row.path, device)
        tower: Any = self.network.tower
        self.embedding_width, self.state_width = tower.num_classes, tower.embed_dim

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """See `PictureEncoder`."""
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255).permute(2, 0, 1)
        return self.network.preprocess(pixels[None])

    def embedding(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PictureEncoder`."""
        return self.network.encode(pixels).pooled

    def states(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PictureEncoder`."""
        return self.network.encode(pixels).hidden[-1]


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> Clip:
    """Open CLIP's vision tower: the folder that holds its config.json."""
    return Clip(spec.id, path, device)


def open_encoder(row: ModelRow, device: TorchDevice) -> PictureEncoder:
    """The encoder of a row, by the loader that it names."""
    if row.spec.loader == EVA_LOADER:
        return Eva(row, device)
    return load(row.spec, row.path, device)
