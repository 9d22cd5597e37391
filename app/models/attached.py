"""What one borrow has on beside its outfit: branches of cross-attention and ControlNets, out of plain wishes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from app.models.adapters import Addition
from app.models.controls import Control
from app.models.row_attention import Branch


@dataclass(frozen=True, eq=False)
class Attached:
    """Branches act on the rows of this borrow's calls; each control follows one of a call's control pictures.

    `loras` belong to what is attached and are worn with the borrow's own. `starts_at_sigma`: see
    `schedulers.start_at_sigma`.
    """

    branches: tuple[Branch, ...] = ()
    controls: tuple[Control, ...] = ()
    loras: tuple[Addition, ...] = ()
    starts_at_sigma: bool = False

    @staticmethod
    def of(parts: Sequence["Attached | Branch | Control"]) -> "Attached":
        """All of these as one."""
        branches: list[Branch] = []
        controls: list[Control] = []
        loras: list[Addition] = []
        starts_at_sigma = False
        for part in parts:
            if isinstance(part, Attached):
                branches += part.branches
                controls += part.controls
                loras += part.loras
                starts_at_sigma |= part.starts_at_sigma
            elif isinstance(part, Branch):
                branches.append(part)
            else:
                controls.append(part)
        return Attached(tuple(branches), tuple(controls), tuple(loras), starts_at_sigma)


def mask_tensor(mask: Image.Image | None) -> torch.Tensor | None:
    """[height, width] of 0 to 1 out of PIL L."""
    if mask is None:
        return None
    return torch.from_numpy(np.asarray(mask.convert("L"), np.float32) / 255)
