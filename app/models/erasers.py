"""What fills the holes that a removal leaves: LaMa, through spandrel.

LaMa (Suvorov et al., 2022) is convolutional: it takes any size, reads pixels in 0..1 with the hole blackened, and
computes in 32-bit numbers, because its Fourier layers overflow in 16. Spandrel pads to what it needs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from spandrel import MaskedImageModelDescriptor, ModelLoader, UnsupportedModelError

from app.errors import InvalidRequest
from app.models.device import TorchDevice
from app.models.spec import ModelSpec
from app.models.weights import Weights

Turn = Callable[[], AbstractContextManager[None]]


class Lama(Weights):
    """A masked image model of spandrel."""

    def __init__(self, model: MaskedImageModelDescriptor[Any], device: TorchDevice) -> None:
        super().__init__(device, [model.model.eval().requires_grad_(False)])
        self._model = model

    def at_work(self, turn: Turn, check: Callable[[], None]) -> Callable[[Image.Image, Image.Image], Image.Image]:
        """What a run is handed: every pass waits for its `turn` at the device."""

        def erase(image: Image.Image, hole: Image.Image) -> Image.Image:
            check()
            with turn():
                return self.fill(image, hole)

        return erase

    @torch.inference_mode()
    def fill(self, image: Image.Image, hole: Image.Image) -> Image.Image:
        """A picture (PIL RGB) with what is white in `hole` (PIL L) painted by the network."""
        pixels = self._moved(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]) / 255
        white = self._moved(torch.from_numpy(np.array(hole))[None, None] >= 128)
        filled = self._model(pixels, white)[0].clamp(0, 1).mul(255).round().byte()
        return Image.fromarray(filled.permute(1, 2, 0).cpu().numpy())


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[Any] = ()) -> Lama:
    """Open a `.safetensors` file of LaMa, whichever prefix its names have; `InvalidRequest` where it is something
    else."""
    tensors = load_file(path)
    if any(name.startswith("model.1.") for name in tensors):
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    # A training checkpoint also holds the network that judged the pictures.
    wanted = {name: tensor for name, tensor in tensors.items() if name.startswith(("generator.model.", "model.model."))}
    try:
        model = ModelLoader(device="cpu").load_from_state_dict(wanted or tensors)
    except UnsupportedModelError:
        model = None
    if not isinstance(model, MaskedImageModelDescriptor):
        raise InvalidRequest(f"The model {spec.id!r} is not one that fills holes.", model=spec.id)
    return Lama(model, device)
