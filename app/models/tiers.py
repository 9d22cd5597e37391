"""How much device memory a model needs at each number format, and the tiers that devices and needs are told in.

A tier is what a card is sold as: one that reports a little less, because its driver keeps something back, still counts.
A need is computed from the row's bytes: the weights of everything that lies on the device together, in the format that
they are computed in, not the one that they are stored in. The work itself takes its share of a device besides.
"""

from collections.abc import Sequence
from enum import StrEnum

from app.models.library import ModelLibrary
from app.models.spec import Kind, ModelSpec

GIB = 2**30
SLACK = 0.03
"""How much less than its nominal memory a device may report."""
SHARE_FOR_WORK = 0.15
"""Share of a device's memory that models leave to activations."""
BYTES_OF = {"float16": 2, "bfloat16": 2, "float32": 4}
SPARED_BYTES = {"float8": ("all", 1.0), "int8": ("linear", 1.0), "int4": ("grouped", 2 - 4.25 / 8)}
"""What a format that stores denoisers in fewer bits spares beside float16: of which weights, and bytes for each."""
STANDS_ALONE: frozenset[Kind] = frozenset({"checkpoint", "other"})
"""The kinds that are run by themselves; an addition needs what the model under it does."""
PARAMETERS = {"sd15": 1.07e9, "sdxl": 3.47e9}
UNET_PARAMETERS = {"sd15": 0.86e9, "sdxl": 2.57e9}
UNET_SHARES = {
    "sd15": {"all": 1.0, "linear": 0.3142, "grouped": 0.3054},
    "sdxl": {"all": 1.0, "linear": 0.8696, "grouped": 0.8694},
}
"""Which part of a denoiser's weights a format reaches: linear layers, and those whose width is a multiple of 128."""
AUTOENCODER_PARAMETERS = 0.084e9


class Tier(StrEnum):
    """A class of devices by memory."""

    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"
    MINIMAL = "MINIMAL"
    CPU = "CPU"


FLOORS = {Tier.HIGH: 12 * GIB, Tier.MEDIUM: 8 * GIB, Tier.LOW: 6 * GIB}
SMALLEST = 4 * GIB
"""What a device of the tier MINIMAL is taken to have when a need is matched to a tier."""


def tier_of(total_bytes: int) -> Tier:
    """The tier of a GPU with so much memory."""
    return next((tier for tier, floor in FLOORS.items() if total_bytes >= int(floor * (1 - SLACK))), Tier.MINIMAL)


def tier_for(needed_bytes: int) -> Tier:
    """The lowest tier whose smallest device holds weights of this size; HIGH also for what asks for more than 12 GB."""
    for tier, memory in ((Tier.MINIMAL, SMALLEST), (Tier.LOW, FLOORS[Tier.LOW]), (Tier.MEDIUM, FLOORS[Tier.MEDIUM])):
        if needed_bytes <= memory * (1 - SHARE_FOR_WORK):
            return tier
    return Tier.HIGH


def needed_bytes(spec: ModelSpec, parts: Sequence[ModelSpec]) -> dict[str, int]:
    """Bytes of weights on a device by number format; empty for what does not stand alone.

    Of a row that is one component, the base's own component of that name is not loaded: together they are as large as
    the base.
    """
    if spec.kind not in STANDS_ALONE:
        return {}
    base = [part for part in parts if part.kind == "checkpoint"]
    own = base if base and spec.options.get("layout") == "component" else [spec, *base]
    together = [*own, *(part for part in parts if part.kind not in {"checkpoint", "lora"})]
    needs = {name: sum(row.bytes * width // stored_width(row) for row in together) for name, width in BYTES_OF.items()}
    if told := spec.options.get("denoiser_parameters"):
        for name, (_, spared) in SPARED_BYTES.items():
            needs[name] = int(needs["float16"] - float(told) * spared)
    if spec.family in PARAMETERS:
        denoiser = needs["float16"] / 2 * UNET_PARAMETERS[spec.family] / PARAMETERS[spec.family]
        for name, (which, spared) in SPARED_BYTES.items():
            needs[name] = int(needs["float16"] - denoiser * UNET_SHARES[spec.family][which] * spared)
    return needs


def stored_width(spec: ModelSpec) -> int:
    """Bytes of one parameter in the row's files: as its variant says, else by what its family's parameters come to."""
    if spec.options.get("variant") == "fp16":
        return 2
    if spec.kind == "vae":
        parameters = AUTOENCODER_PARAMETERS
    elif spec.options.get("layout") == "component":
        parameters = UNET_PARAMETERS.get(spec.family, 0)
    else:
        parameters = PARAMETERS.get(spec.family, 0)
    return 4 if parameters and spec.bytes > 3 * parameters else 2


def needs_of(library: ModelLibrary, id: str) -> dict[str, int]:
    """`needed_bytes` of a known model."""
    spec = library.get(id).spec
    return needed_bytes(spec, [library.get(part).spec for part in spec.parts])


def tiers_of(needs: dict[str, int]) -> dict[str, str]:
    """The tier that a model asks for at each number format."""
    return {name: tier_for(count).value for name, count in needs.items()}
