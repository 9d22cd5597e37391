"""What the face models say of every picture of the people, kept on disk: the identity modules learn from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.models.eva import Eva

from app.pocket import crops, face_networks
from app.pocket.checkpoints import generator_of
from app.pocket.people import People
from app.pocket.train_faces import ImageEncoderTask, RecognitionTask

SCALES = 5  # depths of the image encoder that are looked at
PLACES = (face_networks.IMAGE_SIZE // face_networks.PATCH) ** 2 + 1
BATCH = 64


@dataclass(frozen=True)
class FaceFeatures:
    """First axis: pictures as drawn and as decoded; second axis: entries."""

    vectors: np.ndarray  # [2, n, 512 + 768] raw identity vector, pooled vector of unit length
    hidden: np.ndarray  # [2, n, SCALES, PLACES, width]

    def of(self, kinds: list[int], indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """([n, 1280], [n, SCALES, PLACES, width]) of these entries."""
        vectors, hidden = (array[kinds, indices].astype(np.float32) for array in (self.vectors, self.hidden))
        return torch.from_numpy(vectors), torch.from_numpy(hidden)


def hidden_states(encoder: Eva, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(pooled [n, 768] of unit length, [n, SCALES, PLACES, width]) of pictures as the encoder takes them."""
    depth = len(encoder.blocks)
    after = [depth * share // (SCALES + 1) - 1 for share in range(1, SCALES + 1)]
    last, between = encoder.forward_intermediates(
        pictures, indices=after, return_prefix_tokens=True, norm=False, output_fmt="NLC"
    )
    hidden = torch.stack([torch.cat([prefix, patches], 1) for patches, prefix in between], 1)
    return torch.nn.functional.normalize(encoder.forward_head(last), dim=-1), hidden


@torch.no_grad()
def build(
    folder: Path,
    some: People,
    recognition: RecognitionTask,
    encoder: ImageEncoderTask,
    report: Callable[[str], None] = print,
) -> FaceFeatures:
    """Compute what the folder lacks, then open it. Delete the files when a network has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    count, width = len(some), encoder.network.embed_dim
    shapes = {
        "vectors": (2, count, face_networks.EMBEDDING + face_networks.POOLED),
        "hidden": (2, count, SCALES, PLACES, width),
    }
    paths = {name: folder / f"{name}-{some.seed}-{count}.bin" for name in shapes}
    done = folder / f"features-{some.seed}-{count}.done"
    if not done.exists():
        arrays = {name: np.memmap(paths[name], np.float16, "w+", shape=shapes[name]) for name in shapes}
        reported = time.monotonic()
        for kind, source in enumerate((some.pictures, some.decoded)):
            for first in range(0, count, BATCH):
                indices = list(range(first, min(first + BATCH, count)))
                pictures = crops.to_unit(source[indices])
                generator = generator_of(some.seed, "features", kind, first)
                identity = recognition.network(recognition.crop(some, indices, pictures, generator) * 2 - 1)
                pooled, hidden = hidden_states(encoder.network, encoder.crop(some, indices, pictures, generator))
                arrays["vectors"][kind, indices] = torch.cat([identity, pooled], -1).half().numpy()
                arrays["hidden"][kind, indices] = hidden.half().numpy()
                if time.monotonic() - reported > 20:
                    reported = time.monotonic()
                    report(f"features: {kind * count + first} of {2 * count}")
        for array in arrays.values():
            array.flush()
        done.touch()
    return FaceFeatures(**{name: np.memmap(paths[name], np.float16, "r", shape=shapes[name]) for name in shapes})
