"""The names under which a batch may ask for a capability: its own, and a few short ones."""

from collections.abc import Sequence

from app.core.capability import Capability
from app.errors import NotFound, UnknownCapability, WeightsMissing
from app.models.library import ModelLibrary

ALIASES: dict[str, tuple[str, ...]] = {
    "generate": ("text-to-image",),
    "edit": ("qwen-edit", "step1x-edit", "instruct-pix2pix", "image-to-image"),
    "upscale": ("upscale",),
    "face_swap": ("pulid/swap",),
}
"""Short name -> capabilities, the best first; the first that the catalog holds and a model serves is meant."""


def resolve(name: str, catalog: Sequence[Capability], models: ModelLibrary) -> Capability:
    """The capability that a handler's name means; `UnknownCapability` says what there is."""
    by_name = {capability.name: capability for capability in catalog}
    if name in by_name:
        return by_name[name]
    if name not in ALIASES:
        raise UnknownCapability(f"There is no handler of this name; there are: {', '.join(names(catalog))}.")
    candidates = [by_name[wanted] for wanted in ALIASES[name] if wanted in by_name]
    if not candidates:
        raise UnknownCapability(
            f"The handler {name!r} stands for {' or '.join(ALIASES[name])}, which this service does not have."
        )
    # Where no model is installed for any, the last one's own refusal says what to install.
    return next((capability for capability in candidates if _served(capability, models)), candidates[-1])


def names(catalog: Sequence[Capability]) -> list[str]:
    """Every name that `resolve` knows: the capabilities, then the short names that mean one of them."""
    own = [capability.name for capability in catalog]
    return own + [alias for alias, wanted in ALIASES.items() if alias not in own and set(wanted) & set(own)]


def _served(capability: Capability, models: ModelLibrary) -> bool:
    if not capability.needs:
        return True
    try:
        return models.choose(capability.needs) is not None
    except (WeightsMissing, NotFound):
        return False
