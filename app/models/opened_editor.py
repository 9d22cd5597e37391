"""An instruction editor, opened: its network, language model and autoencoder, placed and parked as one, and dressed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from app.models import quantisation
from app.models.adapters import Wardrobe
from app.models.device import TorchDevice
from app.models.offloading import Placed, Placement
from app.models.transformer_loras import lora_layers

PLACED = ("text_encoder", "transformer", "vae")


class OpenedEditor(Placed, ABC):
    """Everything of one editor, in RAM until `place`; see `app.core.model_offload.Model`.

    `components` are those of its pipeline by name; `in_fewer_bits` are the parts that a precision of few bits reaches,
    under the names that `app.models.quantisation` has for them.
    """

    def __init__(
        self,
        components: Mapping[str, Any],
        *,
        scheduler_config: Mapping[str, Any],
        in_fewer_bits: Mapping[str, torch.nn.Module],
        device: TorchDevice,
    ) -> None:
        self.components = dict(components)
        self.scheduler_config = dict(scheduler_config)
        self.device = device
        modules = {name: self.components[name] for name in PLACED}
        self.text_encoder, self.transformer, self.vae = self.modules = list(modules.values())
        for module in self.modules:
            module.eval().requires_grad_(False)
        quantisation.quantise(in_fewer_bits, device)
        self.placement = Placement(modules, device.torch_device, device.offload, denoiser="transformer")
        self.wardrobe = Wardrobe(building=self.placement.building, layers=lora_layers)

    def place(self) -> None:
        """Move the weights to the device, or let them visit it."""
        self.placement.put()
        self.set_tiling()

    def set_tiling(self) -> None:
        """Decode in tiles where the strategy says so, and only there."""
        self.vae.use_tiling = self.placement.strategy.decodes_in_tiles

    def park(self) -> None:
        """Move the weights to RAM."""
        self.wardrobe.wear(None)
        self.wardrobe.clear()
        self.placement.take()

    @abstractmethod
    def dressing_room(self) -> Any:
        """A stock pipeline of the family whose `transformer` is what LoRAs are put on."""
