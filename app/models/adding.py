"""What a user's file becomes in the library: its row, the files that are taken, and where the model's path points."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

from app.errors import Conflict, InvalidRequest, NotFound
from app.models import inspect_file, inspect_identity
from app.models.embedded import is_folder
from app.models.inspection import Inspection
from app.models.installed import FILES, InstalledFile
from app.models.installing import is_slug, single_file, slug, sources_of
from app.models.spec import Family, Kind, Licence, ModelSpec

ADDED_RANK: dict[tuple[Family, bool], int] = {
    ("sd15", False): 15,
    ("sd15", True): 25,
    ("sdxl", False): 35,
    ("sdxl", True): 55,
}
"""Rank of an added checkpoint by family and whether it is made for inpainting: just above the published base."""

ADAPTER_RANK = {"plus": 31, "plain": 21}
"""Rank of an added IP-Adapter by its projection; the others are for faces, and never what a null field means."""
CONTROL_RANK = 25
"""Rank of an added ControlNet: above the published ones."""
TAGGER_RANK = 70
"""Rank of an added tagger: whoever adds one wants it."""
LONGEST_TEXT = 200
CONTROLNET_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Described:
    """A file on its way in: its row, what is taken under which name, and the path that the model is opened by.

    `renamed` is how its tensors are called from now on; `takes_a_row` says that the row is the catalog's own.
    """

    spec: ModelSpec
    sources: dict[str, Path]
    path: str
    renamed: Mapping[str, str] | None
    takes_a_row: bool


def described(
    file: Path,
    catalog: Mapping[str, ModelSpec],
    *,
    id: str | None,
    title: str | None,
    kind: str | None,
    licence: str | None,
) -> Described:
    """Recognise a file or folder; `InvalidRequest`, `NotFound` or `Conflict` say why it is not taken."""
    if kind is not None and kind not in get_args(Kind):
        raise InvalidRequest(f"A model's kind is one of {', '.join(get_args(Kind))}.", field="kind")
    for field, text in (("title", title), ("licence", licence)):
        if len(text or "") > LONGEST_TEXT:
            raise InvalidRequest(f"A model's {field} has at most {LONGEST_TEXT} characters.", field=field)
    if not file.exists():
        raise NotFound("There is no such file or folder.")
    found = inspect_file.inspect(file)
    if kind == "identity" and found.kind == "controlnet":
        found = inspect_identity.as_ecomid(found)
    if kind is not None and kind != found.kind:
        raise InvalidRequest(f"The file is a {found.kind}, not a {kind}.", found=found.kind, expected=kind)
    sources = _sources(file, found)
    if found.stands_for is not None and found.stands_for in catalog:
        if id not in (None, found.stands_for):
            raise InvalidRequest(
                f"The file is {found.stands_for!r}, which others name as their part; it is added under that id.",
                model=found.stands_for,
            )
        spec = catalog[found.stands_for]
        return Described(spec, sources, FILES if is_folder(spec) else f"{FILES}/{single_file(file)}", None, True)
    model = id if id is not None else slug(file.stem if file.is_file() else file.name)
    if not is_slug(model) or model == "auto":
        raise InvalidRequest("A model needs an id of lower-case letters, digits, dots, dashes and underscores.")
    if model in catalog:
        raise Conflict(f"The id {model!r} belongs to a model of the catalog; choose another.", model=model)
    options = dict(found.options)
    if found.kind == "embedding":
        options.setdefault("token", file.stem if id is None else id)
    spec = ModelSpec(
        id=model,
        title=title or (file.stem if file.is_file() else file.name)[:LONGEST_TEXT],
        kind=found.kind,
        family=found.family,
        licence=found.licence or Licence(licence or "not stated", "", commercial=False),
        bytes=sum(source.stat().st_size for source in sources.values()),
        loader=found.loader or ModelSpec.loader,
        tasks=found.tasks,
        recommended=found.recommended,
        parts=found.parts,
        rank=_rank(found),
        options=options,
        written={} if file.is_dir() else found.written,
    )
    whole = file.is_dir() or is_folder(spec)
    return Described(spec, sources, FILES if whole else f"{FILES}/{single_file(file)}", found.renamed, False)


def check_published(spec: ModelSpec, files: Mapping[str, InstalledFile]) -> None:
    """`InvalidRequest` unless the files that the catalog knows the bytes of have those bytes."""
    known = {PurePosixPath(name).name: digest for name, digest in spec.sha256.items()}
    for name, file in files.items():
        if known.get(PurePosixPath(name).name, file.sha256) != file.sha256:
            raise InvalidRequest(f"{name!r} has other bytes than the {spec.id!r} that is published.", file=name)


def _sources(file: Path, found: Inspection) -> dict[str, Path]:
    if found.files is not None:
        # A pack may lie in a folder of its own name within the one that was given.
        names = {PurePosixPath(name).name if found.kind == "faces" else name: name for name in found.files}
        return {name: file / source for name, source in names.items()}
    if file.is_file() and found.written:
        return {CONTROLNET_FILE: file}
    return sources_of(file)


def _rank(found: Inspection) -> int:
    if found.kind == "ip-adapter":
        return ADAPTER_RANK.get(found.options["projection"], 1)
    if found.kind == "controlnet":
        return CONTROL_RANK
    if found.kind == "tagger":
        return TAGGER_RANK
    return ADDED_RANK.get((found.family, found.tasks == ("inpaint",)), 0) if found.tasks else 0
