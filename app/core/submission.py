"""What happens to a wish before it becomes a Job: checked whole, then every null that a run would ask about is filled.

A resolved request repeats its picture: the model is named, the seed drawn, steps, guidance, scheduler and size stand in
it. A wish that could only fail is refused here: the additions are of the right kind and family, and the capability's
own `check` has passed. Nothing of what the caller wrote is echoed in a refusal.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import BaseModel, ValidationError

from app.core.capability import Capability, image_fields
from app.core.chains import PICTURE, PICTURE_TO_COME, link
from app.core.fields import SEED_LIMIT
from app.core.image_index import ImageIndex
from app.core.jobs import Job
from app.core.storage import Storage
from app.errors import (
    Conflict,
    InvalidRequest,
    MaskMismatch,
    UnknownImage,
    UnknownJob,
    WeightsMissing,
)
from app.models.library import ModelLibrary, ModelRow

RECOMMENDED = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "scheduler")
ADDITIONS = {
    "loras": ("lora", "LoRA"),
    "textual_inversions": ("embedding", "textual inversion"),
    "controlnets": ("controlnet", "ControlNet"),
    "softedge_model": ("controlnet", "ControlNet"),
    "tile_controlnet": ("controlnet", "ControlNet"),
}
"""Field -> the kind of model that may stand in it, and what a person calls it."""

SIZE_MULTIPLE = {"sd15": 8, "sdxl": 8}
"""Model family -> what its autoencoder makes widths and heights multiples of."""


FindJob = Callable[[str], Job]
"""The job of this id; `UnknownJob`."""


def no_job(job_id: str) -> Job:
    """Where no jobs are kept there is none."""
    raise UnknownJob("There is no such job.")


@dataclass(frozen=True)
class Prepared:
    """A resolved request as JSON, and the model that serves it."""

    request: dict[str, Any]
    model: str | None


class PictureToCome(Exception):
    """A check asked for the picture of a follow-up, which is not there yet: it is made again when the job runs."""


@dataclass(frozen=True)
class DoorView:
    """The `Door` of one wish."""

    storage: Storage
    row: ModelRow | None
    owner: str
    find_job: FindJob
    devices: Collection[str] | None = None

    def ended_request(self, job: str) -> Mapping[str, Any]:
        """See `Door`."""
        found = self.find_job(job)
        if found.owner != self.owner:
            raise UnknownJob("There is no such job.")
        if not found.status.is_terminal:
            raise Conflict("That job has not ended yet.")
        return {**found.request, "capability": found.capability}

    @property
    def size_multiple(self) -> int | None:
        """See `Door`."""
        return SIZE_MULTIPLE.get(self.row.spec.family) if self.row else None

    def serves(self, task: str) -> bool:
        """See `Door`."""
        return self.row is not None and task in self.row.spec.tasks

    def size(self, reference: str) -> tuple[int, int]:
        """See `Door`."""
        if reference == PICTURE_TO_COME:
            raise PictureToCome
        return self.storage.size(reference)

    def mask(self, reference: str) -> Image.Image:
        """See `Door`."""
        return self.storage.open_mask(reference)


class Submission:
    """The checks of the door."""

    def __init__(
        self,
        storage: Storage,
        models: ModelLibrary,
        images: ImageIndex,
        find_job: FindJob = no_job,
        devices: Callable[[], Collection[str] | None] = lambda: None,
    ) -> None:
        self._find_job = find_job
        self._devices = devices
        self._storage = storage
        self._models = models
        self._images = images

    def read(self, capability: Capability, payload: Mapping[str, Any]) -> BaseModel:
        """The wish as it was asked, its fields valid; nothing is looked up."""
        return _validate(capability.request, payload)

    def fingerprint(self, capability: Capability, wish: BaseModel, owner: str) -> str:
        """The same wish gives the same fingerprint, also when its pictures were stored anew: their bytes count.

        Nothing that it names need be there any more: an idempotency key is answered before the wish is resolved.
        """
        told = wish.model_dump(mode="json")
        for name in image_fields(capability.request):
            told[name] = [self._digest(reference, owner) for reference in _references(told[name])]
        text = json.dumps([capability.name, told], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def read_chain(self, chain: Sequence[tuple[Capability, Mapping[str, Any]]]) -> list[tuple[Capability, BaseModel]]:
        """The follow-ups of a job as they were asked, their fields valid; nothing is looked up."""
        read = []
        for index, (capability, payload) in enumerate(chain):
            with link(index):
                read.append((capability, self.read(capability, payload)))
        return read

    def chain_fingerprint(self, chain: Sequence[tuple[Capability, BaseModel]], owner: str) -> str:
        """What an idempotency key knows follow-ups by; empty where there are none."""
        return "".join(f":{self.fingerprint(capability, wish, owner)}" for capability, wish in chain)

    def prepare_chain(
        self, chain: Sequence[tuple[Capability, BaseModel]], owner: str, attempts: int
    ) -> list[dict[str, Any]] | None:
        """The follow-ups as a job's row keeps them: resolved, but for the picture that is still to come."""
        kept = []
        for index, (capability, wish) in enumerate(chain):
            with link(index):
                prepared = self.prepare(capability, wish, owner, to_come=True)
            request = {name: value for name, value in prepared.request.items() if name != PICTURE}
            named = {"capability": capability.name, "model": prepared.model, "max_attempts": attempts}
            kept.append({**named, "request": request})
        return kept or None

    def prepare(self, capability: Capability, wish: BaseModel, owner: str, *, to_come: bool = False) -> Prepared:
        """Look up and resolve; raises what the caller is to be told. The picture may be one that is still `to_come`."""
        self._check_pictures(capability, wish, owner, to_come)
        values = wish.model_dump(mode="json")
        row = self._resolve(capability, values)
        resolved = _validate(capability.request, values)
        door = DoorView(self._storage, row, owner, self._find_job, self._devices())
        _refuse_unserved(capability, values, door.devices)
        if capability.check is not None:
            with suppress(PictureToCome):
                capability.check(resolved, door)
        return Prepared(resolved.model_dump(mode="json"), row and row.spec.id)

    def owner_of(self, reference: str) -> str:
        """Whose picture this is; one that nobody recorded belongs to the keyless owner. `UnknownImage`."""
        record = self._images.get(reference)
        if record is not None:
            return record.owner
        self._storage.path(reference)
        return ""

    def digest_of(self, reference: str, owner: str) -> str:
        """The SHA-256 of the owner's picture, also of one that was deleted; `UnknownImage`."""
        known = self._images.digest(reference)
        if (known[0] if known else "") != owner:
            raise UnknownImage("There is no picture with this id.")
        if known:
            return known[1]
        with self._storage.path(reference).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _check_pictures(self, capability: Capability, wish: BaseModel, owner: str, to_come: bool) -> None:
        kinds = image_fields(capability.request)
        for name in kinds:
            for reference in _references(getattr(wish, name)):
                if to_come and name == PICTURE:
                    continue
                if self.owner_of(reference) != owner:
                    raise UnknownImage("There is no picture with this id.", field=name)
                self._storage.path(reference)
        if not to_come:
            require_fitting_masks(self._storage, capability, wish)

    def _resolve(self, capability: Capability, values: dict[str, Any]) -> ModelRow | None:
        """Fill what is null, in place; answers the model."""
        if "seed" in values and values["seed"] is None:
            values["seed"] = secrets.randbelow(SEED_LIMIT)
        if not capability.needs or "model" not in values:
            alone = {name: self._alone(values[name], task) for name, task in capability.additions.items()}
            values.update({name: found.spec.id for name, found in alone.items()})
            return next(iter(alone.values()), None)
        wanted = capability.wanted_additions(values)
        row = self._model(capability, values, tuple(wanted.values()))
        values["model"] = row.spec.id
        put_on = {name: self._put_on(values[name], name, task, row) for name, task in wanted.items()}
        values.update({name: found.spec.id for name, found in put_on.items()})
        for name, wishes in listed(capability, values).items():
            values[name] = [self._put_on(wished, name, task, row).spec.id for wished, task in wishes]
        for name, task in capability.additions_if_installed.items():
            values[name] = self._if_installed(values[name], name, task, row)
        if capability.advise is not None:
            specs = {name: found.spec for name, found in put_on.items()}
            advised = capability.advise(values, row.spec, specs)
            values.update({name: value for name, value in advised.items() if values.get(name) is None})
        additions = [self._addition(lora["model"], "loras", row) for lora in values.get("loras") or ()]
        for name in values.get("textual_inversions") or ():
            self._addition(name, "textual_inversions", row)
        for net in values.get("controlnets") or ():
            self._addition(net["model"], "controlnets", row)
        # A distillation LoRA knows better than the base how many steps it needs.
        advice = [found.spec.recommended for found in (*additions, row) if found.spec.recommended]
        if advice:
            for name in RECOMMENDED:
                if name in values and values[name] is None:
                    values[name] = getattr(advice[0], name)
        base = row.spec.recommended
        if base and "image" not in values:
            for name in ("width", "height"):
                if name in values and values[name] is None:
                    values[name] = getattr(base, name)
        return row

    def _addition(self, wished: str, field: str, base: ModelRow) -> ModelRow:
        """An installed addition that can be put on this model."""
        found = self._models.require(wished)
        kind, title = ADDITIONS[field]
        if found.spec.kind != kind:
            raise InvalidRequest(f"The model {found.spec.id!r} is no {title}.", field=field, model=found.spec.id)
        if found.spec.family not in {base.spec.family, "other"}:
            raise InvalidRequest(
                f"{found.spec.id!r} was made for {found.spec.family}; the model {base.spec.id!r} is "
                f"{base.spec.family}.",
                field=field,
                model=found.spec.id,
            )
        return found

    def _put_on(self, wished: str, field: str, task: str, base: ModelRow) -> ModelRow:
        """The model that serves this task on the base: the one that is wished for, or the best installed."""
        if wished == "auto":
            return self._models.choose_addition(task, base)
        known = self._models.get(wished).spec
        # Nothing in a user's own ControlNet tells what it follows: its owner may say so.
        says_nothing = known.kind == "controlnet" and not known.tasks and task.startswith("controlnet-")
        found = self._models.require(wished, task=None if says_nothing else task)
        if not found.spec.fits(base.spec):
            told = (
                ""
                if found.spec.family == base.spec.family
                else f": it is for {found.spec.family}, not for {base.spec.family}"
            )
            raise InvalidRequest(
                f"{found.spec.id!r} was not made for the model {base.spec.id!r}{told}.",
                field=field,
                model=found.spec.id,
            )
        return found

    def _if_installed(self, wished: str | None, field: str, task: str, base: ModelRow) -> str | None:
        """As `_put_on`, but None where nothing that is installed serves the task; what is named must be there."""
        if wished is None:
            return None
        if wished != "auto":
            return self._addition(wished, field, base).spec.id
        try:
            return self._models.choose_addition(task, base).spec.id
        except WeightsMissing:
            return None

    def _alone(self, wished: str, task: str) -> ModelRow:
        """The model that serves this task by itself: the one that is wished for, or the best installed."""
        return self._models.choose((task,)) if wished == "auto" else self._models.require(wished, task=task)

    def _model(self, capability: Capability, values: Mapping[str, Any], additions: tuple[str, ...]) -> ModelRow:
        wished = values["model"]
        if wished == "auto":
            wishes = [wish for found in listed(capability, values).values() for wish in found]
            named = [self._models.get(id).spec for id, _ in wishes if id != "auto"]
            tasks = [*additions, *(task for id, task in wishes if id == "auto")]
            return self._models.choose(capability.needs, tuple(tasks), tuple(named))
        served = self._models.get(wished).spec.tasks
        task = next((task for task in capability.needs if task in served), capability.needs[0])
        return self._models.require(wished, task=task)

    def _digest(self, reference: str, owner: str) -> str:
        """What tells this picture from another: its SHA-256, or its id where it is gone or not the caller's."""
        try:
            return self.digest_of(reference, owner)
        except UnknownImage:
            return reference


def require_fitting_masks(storage: Storage, capability: Capability, wish: BaseModel) -> None:
    """`MaskMismatch` where a mask is not of its picture's size."""
    kinds = image_fields(capability.request)
    image = getattr(wish, PICTURE, None) if kinds.get(PICTURE) == "image" else None
    for name in [name for name, kind in kinds.items() if kind == "mask"]:
        mask = getattr(wish, name)
        if not (mask and image):
            continue
        size, mask_size = storage.size(image), storage.size(mask)
        if size != mask_size:
            raise MaskMismatch(
                f"The mask is {mask_size[0]}x{mask_size[1]} pixels and the picture {size[0]}x{size[1]}; "
                "they must be equal.",
                field=name,
                image=list(size),
                mask=list(mask_size),
            )


def check_with_picture(
    storage: Storage, models: ModelLibrary, capability: Capability, request: BaseModel, model: str | None
) -> None:
    """What the door could not ask of a follow-up, asked once its picture is there."""
    require_fitting_masks(storage, capability, request)
    if capability.check is not None:
        row = None if model is None else models.get(model)
        capability.check(request, DoorView(storage, row, "", no_job))


def _refuse_unserved(capability: Capability, values: Mapping[str, Any], devices: Collection[str] | None) -> None:
    for name, words in capability.unserved(devices).items():
        if values.get(name) in words:
            raise InvalidRequest(f"{values[name]} {words[values[name]]}.", field=name)


def listed(capability: Capability, values: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Field that holds a list of additions -> each entry's id and the task that it must serve."""
    return {
        name: [(id, start + what) for id, what in zip(values[name], values[of], strict=True)]
        for name, (of, start) in capability.listed_additions.items()
    }


def _validate(request: type[BaseModel], payload: Mapping[str, Any]) -> BaseModel:
    try:
        wish = request.model_validate(dict(payload))
        # A lone surrogate is a legal Python string and no legal UTF-8: it could be neither stored nor answered.
        wish.model_dump_json()
    except ValidationError as error:
        raise _refusal(error) from None
    except ValueError:
        raise InvalidRequest("The request holds text that is not valid Unicode.") from None
    return wish


def _refusal(error: ValidationError) -> InvalidRequest:
    found = [
        {
            "field": ".".join(str(part) for part in entry["loc"])[:200],
            "message": entry["msg"].removeprefix("Value error, "),
        }
        for entry in error.errors(include_url=False, include_input=False, include_context=False)[:20]
    ]
    first = found[0]
    message = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return InvalidRequest(message, errors=found)


def _references(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
