"""EcomID for pocket: PuLID v1's tokens beside the text, and an IdentityNet of its own that looks at InstantID's.

Source: alimama-creative/SDXL-EcomID. Only its network is new: it begins as InstantID's, and learns on
(`train_identity_net`) beside PuLID's tokens, in every mode that EcomID's methods have.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

from diffusers import ControlNetModel

from app.models import instantid, pulid
from app.models.device import TorchDevice
from app.pocket import train_instantid, train_pulid
from app.pocket.train_identity_net import Identity

NAME = "ecomid"
MODES = {
    "fidelity": {"num_zero": 8, "ortho": "ortho_v2"},
    "style": {"num_zero": 16, "ortho": "ortho"},
    "neutral": {"num_zero": 0, "ortho": "off"},
}
"""What EcomID's methods mean for PuLID's tokens; those of `app.core.ecomid_settings`."""


def open_parts(pulid_file: Path, instantid_folder: Path) -> tuple[Identity, ControlNetModel]:
    """What it stands on, opened as the product opens it, and the network that it begins with, which is InstantID's."""
    device = TorchDevice("cpu")
    opened = pulid.load(SimpleNamespace(id=pulid_file.stem, options={}), pulid_file, device)
    row = SimpleNamespace(id=instantid_folder.name, options={})
    adapter = instantid.open_adapter(row, instantid_folder, device)
    return (
        Identity(
            partial(train_pulid.say, opened.encoder),
            opened.layers,
            partial(train_instantid.say, adapter.projection),
            list(MODES.values()),
        ),
        ControlNetModel.from_pretrained(instantid_folder / instantid.NETWORK),
    )
