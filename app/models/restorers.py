"""Faces drawn anew from what is left of them: GFPGAN and RestoreFormer, through spandrel.

GFPGAN (Wang et al., 2021) works on pixels in -1..1, and its answer goes beyond them; spandrel's own call neither
brings a picture there nor back, so the network is called by itself. Its decoder adds noise at each layer: here the
noise is drawn from the request's seed, so that a seed means one face. RestoreFormer (Wang et al., 2022) draws none.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from spandrel import ImageModelDescriptor

from app.errors import InvalidRequest
from app.models.device import TorchDevice
from app.models.spec import ModelSpec
from app.models.upscalers import open_network
from app.models.weights import Weights

Turn = Callable[[], AbstractContextManager[None]]

SIDE = 512


class Restorer(Weights):
    """A face network of spandrel, in 32-bit numbers."""

    def __init__(self, model: ImageModelDescriptor[Any], device: TorchDevice) -> None:
        super().__init__(device, [model.model.eval().requires_grad_(False)])
        self._model = model
        self.takes_noise = model.architecture.id == "GFPGAN"

    def at_work(self, turn: Turn, check: Callable[[], None]) -> Callable[[Image.Image, int], Image.Image]:
        """What a run is handed: every face waits for its turn at the device."""

        def restore(face: Image.Image, seed: int) -> Image.Image:
            check()
            with turn():
                return self.restore(face, seed)

        return restore

    @torch.inference_mode()
    def restore(self, face: Image.Image, seed: int) -> Image.Image:
        """An upright face (PIL RGB, 512x512) restored, as large."""
        if face.size != (SIDE, SIDE):
            raise ValueError(f"a face of {SIDE}x{SIDE} is restored, not of {face.width}x{face.height}")
        pixels = self._moved(torch.from_numpy(np.array(face)).permute(2, 0, 1)[None]) / 255
        if self.takes_noise:
            self._lay_out_noise(seed)
            answer = self._model.model(pixels * 2 - 1, return_rgb=False, randomize_noise=False)[0].clamp(-1, 1)
            answer = (answer + 1) / 2
        else:
            answer = self._model(pixels)
        drawn = answer[0].mul(255).round().byte().permute(1, 2, 0)
        return Image.fromarray(drawn.cpu().numpy())

    def _lay_out_noise(self, seed: int) -> None:
        """The decoder's stored noise, each layer's drawn anew from the seed, the same on every device."""
        (source,) = self.device.generators(seed, 1)
        for _, noise in sorted(self._model.model.stylegan_decoder.noises.named_buffers()):
            noise.copy_(torch.randn(noise.shape, generator=source))


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[Any] = ()) -> Restorer:
    """Open a `.safetensors` file of a face network; `InvalidRequest` where it is something else."""
    model = open_network(spec, path)
    if model.purpose != "FaceSR":
        raise InvalidRequest(f"The model {spec.id!r} restores no faces.", model=spec.id)
    return Restorer(model, device)
