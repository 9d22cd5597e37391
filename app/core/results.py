"""What a run made becomes files: each picture with its recipe and infotext inside, and the facts that its row holds."""

import hashlib
from collections.abc import Iterable
from typing import Any

from app import __version__
from app.core.capability import Capability, Result, image_fields
from app.core.storage import Storage
from app.errors import NotFound
from app.imaging.infotext import build_infotext
from app.models.library import ModelLibrary

SOFTWARE = "Edit Image Service"


def save_pictures(
    storage: Storage,
    models: ModelLibrary,
    capability: Capability,
    request: dict[str, Any],
    model: str | None,
    result: Result,
) -> list[dict[str, Any]]:
    """Save a result's pictures; answers one JSON-able row of facts for each, in order."""
    recipe: dict[str, Any] = {"capability": capability.name, "request": request, "model": model}
    digest = _model_digest(models, model)
    if digest:
        recipe["model_sha256"] = digest
    inputs = _inputs(storage, capability, request)
    if inputs:
        recipe["inputs"] = inputs
    loras = _digests(models, [lora["model"] for lora in request.get("loras") or ()])
    additions = loras | _digests(models, request.get("textual_inversions") or ())
    if additions:
        recipe["addition_sha256"] = additions
    rows = []
    for position, image in enumerate(result.images):
        seed = result.seeds[position] if position < len(result.seeds) else None
        infotext = build_infotext(
            request,
            seed=seed,
            size=image.size,
            model=model,
            model_sha256=digest,
            addition_sha256=additions,
            version=__version__,
        )
        whole = {**recipe, "position": position, "version": __version__, "software": SOFTWARE}
        stored = storage.save_result(image, recipe=whole, infotext=infotext)
        rows.append(
            {
                "id": stored.id,
                "width": stored.width,
                "height": stored.height,
                "bytes": stored.bytes,
                "sha256": stored.sha256,
                "media_type": stored.media_type,
                "seed": seed,
            }
        )
    return rows


def _digests(models: ModelLibrary, names: Iterable[str]) -> dict[str, str]:
    return {name: found for name in names if (found := _model_digest(models, name))}


def _model_digest(models: ModelLibrary, model: str | None) -> str | None:
    if model is None:
        return None
    try:
        return models.get(model).sha256
    except NotFound:
        return None


def _inputs(storage: Storage, capability: Capability, request: dict[str, Any]) -> dict[str, Any]:
    """Field -> id and SHA-256 of the picture (or pictures) that it names."""
    found: dict[str, Any] = {}
    for name in image_fields(capability.request):
        value = request.get(name)
        if isinstance(value, str):
            found[name] = _input(storage, value)
        elif value:
            found[name] = [_input(storage, reference) for reference in value]
    return found


def _input(storage: Storage, reference: str) -> dict[str, str]:
    with storage.path(reference).open("rb") as file:
        return {"id": reference, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
