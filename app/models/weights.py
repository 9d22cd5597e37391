"""Weights that stand beside a checkpoint and act on it: modules and layers that the ModelCache moves as one."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from app.models.device import TorchDevice


class Weights:
    """Modules and layers of one file or folder, in RAM until `place`; see `app.core.model_offload.Model`."""

    def __init__(
        self,
        device: TorchDevice,
        modules: Sequence[nn.Module] = (),
        layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        self.device = device
        self.modules = list(modules)
        self.layers = dict(layers or {})

    @property
    def bytes(self) -> int:
        """The size of all of it."""
        tensors = [tensor for module in self.modules for tensor in module.state_dict().values()]
        tensors += [tensor for pair in self.layers.values() for tensor in pair]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def plan(self, available: int) -> int:
        """It stands whole."""
        return self.bytes

    def place(self) -> None:
        """Move it to the device."""
        self._move(self.device.torch_device)

    def park(self) -> None:
        """Move it to RAM."""
        self._move(torch.device("cpu"))

    def _move(self, to: torch.device) -> None:
        for module in self.modules:
            module.to(to)
        self.layers = {number: (key.to(to), value.to(to)) for number, (key, value) in self.layers.items()}

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """An input as the modules take it: on their device, in float32."""
        return tensor.to(self.device.torch_device, torch.float32)
