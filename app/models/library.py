"""The models that are known and the ones that are installed, under one door: list, choose, pull, add, remove.

State lives under `home/models/<id>/` (see `app.models.installed`); every question reads it fresh, so a worker process
sees what the front process pulled a moment ago. Nothing here touches the network except `pull`.
"""

import dataclasses
import functools
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from app.errors import Conflict, InvalidRequest, UnknownModel, WeightsMissing
from app.guarded_http import GuardedClient
from app.models import adding, choosing, conversion
from app.models.catalog import CATALOG
from app.models.checksums import sha256_of, sha256_of_texts
from app.models.choosing import FACES, ModelRow
from app.models.conversion import write_all
from app.models.download import Hub, Patience, RemoteFile, Stop
from app.models.embedded import embedded_facts, is_folder, is_left_out
from app.models.installed import FILES, Installed, InstalledModels
from app.models.installing import (
    Incoming,
    Workshop,
    bring_in,
    bytes_to_copy,
    check_stated,
    fetch_all,
    full_disk_said,
    is_slug,
    missing_bytes,
    write_record,
)
from app.models.licences import licence_unaccepted
from app.models.spec import NO_FILES, Licence, ModelSpec

PACKAGE_PARENT = Path(__file__).resolve().parents[2]
Progress = Callable[[int, int], None]


class ModelLibrary:
    """All models of one home folder; cheap to make, safe to use from several threads and processes."""

    def __init__(
        self,
        home: Path,
        *,
        hub_url: str = "https://huggingface.co",
        hub_token: str | None = None,
        trusted_hosts: tuple[str, ...] = (),
        catalog: tuple[ModelSpec, ...] = CATALOG,
        patience: Patience | None = None,
    ) -> None:
        self.folder = home / "models"
        self._hub = Hub(hub_url, hub_token, GuardedClient(trusted_hosts), patience or Patience())
        self._catalog = {spec.id: spec for spec in catalog}
        self._installed = InstalledModels(self.folder)
        self._workshop = Workshop(self.folder)

    def rows(self) -> list[ModelRow]:
        """Every model that can be had: the catalog in its order, then the added ones by id."""
        added = [model for model in self._installed.ids() if model not in self._catalog]
        rows = [self._row(spec) for spec in self._catalog.values() if not is_left_out(spec, PACKAGE_PARENT)]
        rows += [self._row(record.spec) for model in added if (record := self._installed.get(model))]
        return rows

    def get(self, id: str) -> ModelRow:
        """The model of this id; `UnknownModel` if there is none."""
        spec = self._catalog.get(id)
        if spec is None:
            record = self._installed.get(id) if is_slug(id) else None
            if record is None:
                raise UnknownModel("There is no model of this name; `eis models list` prints the known ones.")
            spec = record.spec
        return self._row(spec)

    def require(self, id: str, *, task: str | None = None) -> ModelRow:
        """The installed model of this id; `WeightsMissing` names the line that fetches it."""
        row = self.get(id)
        if task is not None and not self._serves(row.spec, task):
            raise InvalidRequest(f"The model {id!r} does not serve {task}.", model=id, task=task)
        if not row.installed and row.spec.comes_along:
            raise WeightsMissing(f"The model {id!r} is not part of this copy of the service.", model=id)
        if not row.installed:
            raise WeightsMissing(
                f"The model {id!r} is not installed; `eis models pull {id}` fetches it.",
                model=id,
                command=f"eis models pull {id}",
            )
        return row

    def choose(self, tasks: Sequence[str], additions: Sequence[str] = (), named: Sequence[ModelSpec] = ()) -> ModelRow:
        """What `auto` means: the installed checkpoint of the highest rank that serves one of these tasks.

        `additions` are tasks of other models that go on it (`pulid`): only a checkpoint for which each is installed is
        taken; of those, one that the `named` models fit goes first. `WeightsMissing` names what fetches what lacks.
        """
        return choosing.choose(self.rows(), tasks, additions, named)

    def choose_addition(self, task: str, base: ModelRow) -> ModelRow:
        """The best installed identity model or IP-Adapter for this task that fits the base; else `WeightsMissing`."""
        return choosing.choose_addition(self.rows(), task, base.spec)

    @staticmethod
    def new_stop() -> Stop:
        """What a pull is handed so that another thread can end it."""
        return Stop()

    def pull(
        self,
        id: str,
        *,
        accept_licence: bool = False,
        progress: Progress | None = None,
        update: bool = False,
        stop: Stop | None = None,
    ) -> ModelRow:
        """Fetch a model and the parts it lacks; an installed model is left as it is.

        `Conflict` names the licence where it limits use and `accept_licence` is not given. A model that was pulled
        before comes at the same commit again; `update` asks the hub for the newest. `progress` hears (bytes done,
        bytes in all), and what it raises stops the pull, as `stop` does also where nothing arrives; what has arrived is
        kept for the next one.
        """
        stop = stop or Stop()
        row = self.get(id)
        if row.installed:
            self._keep(id)
            return row
        wanted = self._lacking(id)
        if not wanted or not all(spec.is_pullable for spec in wanted):
            raise InvalidRequest(f"The model {id!r} is not on a hub; it cannot be pulled.", model=id)
        if not accept_licence:
            self.check_licences(id)
        plan = [(spec, *self._listed(spec, update, stop)) for spec in wanted]
        total = sum(file.size for _, _, files, _ in plan for file in files)
        needed = 0
        for spec, commit, files, _ in plan:
            with self._workshop.changing(spec.id, stop=stop):
                needed += missing_bytes(spec, self._workshop.staging(spec.id, commit), files)
        needed += max(conversion.room_to_convert(spec, files) for spec, _, files, _ in plan)
        self._workshop.check_room(needed)
        done = 0
        for spec, commit, files, known in plan:
            report = functools.partial(_report, progress, done, total)
            with self._workshop.changing(spec.id, stop=stop):
                if self._installed.get(spec.id) is None:
                    with full_disk_said():
                        self._install_pulled(spec, commit, files, known, report, stop, as_part=spec.id != id)
                else:  # another process brought it in while this one waited
                    self._workshop.discard_staging(spec.id)
            done += sum(file.size for file in files)
        return self.require(id)

    def licences_to_accept(self, id: str) -> list[Licence]:
        """The licences that limit use and that a pull of this model would need accepted now, its parts' among them."""
        return list(dict.fromkeys(spec.licence for spec in self._lacking(id) if spec.licence.ask and spec.is_pullable))

    def is_pullable(self, id: str) -> bool:
        """Whether something lacks of this model, itself or a part of it, and all of that can be fetched."""
        lacking = self._lacking(id)
        return bool(lacking) and all(spec.is_pullable for spec in lacking)

    def check_licences(self, id: str) -> None:
        """`Conflict` where a pull of this model needs a licence accepted."""
        if asked := self.licences_to_accept(id):
            raise licence_unaccepted(id, asked)

    def add(
        self,
        file: Path,
        *,
        id: str | None = None,
        title: str | None = None,
        kind: str | None = None,
        licence: str | None = None,
        accept_licence: bool = False,
        progress: Progress | None = None,
    ) -> ModelRow:
        """Take in a user's file or folder, recognised by its names and shapes.

        The original stays where it is and may be deleted afterwards: on the same disk the model is a hard link to it
        (no second copy of the bytes), from another disk a copy. A pickle is refused. The same file added again
        answers the row that stands. A textual inversion that names no token is called by its id, or by the file's name
        where none is given. A face stack or an image encoder takes the catalog's row of it, whose terms and known bytes
        hold for it as they do at a pull.
        """
        added = adding.described(file, self._catalog, id=id, title=title, kind=kind, licence=licence)
        model, spec = added.spec.id, added.spec
        if added.takes_a_row and self._installed.get(model) is not None:
            return self.get(model)
        if spec.licence.ask and not accept_licence:
            raise licence_unaccepted(model, [spec.licence])
        total = sum(source.stat().st_size for source in added.sources.values())
        self._workshop.check_room(total if added.renamed else bytes_to_copy(added.sources, self.folder))
        with self._workshop.changing(model):
            staged = self._workshop.staging(model, f"add-{secrets.token_hex(4)}")
            try:
                with full_disk_said():
                    report = functools.partial(_report, progress, 0, total)
                    files = bring_in(added.sources, staged, report, added.renamed)
                    if not added.takes_a_row:
                        files |= write_all(spec.written, staged)
                if added.takes_a_row:
                    adding.check_published(spec, files)
                standing = self._installed.get(model)
                if standing is not None and standing.files == files:
                    return self._row(standing.spec)
                if standing is not None:
                    raise Conflict(f"Another model is installed as {model!r}; choose another id.", model=model)
                accepted = spec.licence.ask
                self._workshop.install(
                    staged,
                    Installed(spec, "added", added.path, files, licence_accepted=accepted, installed=time.time()),
                )
            finally:
                self._workshop.discard_staging(model)
        return self._row(spec)

    def licences_of_file(self, file: Path, **given: str) -> list[Licence]:
        """The licences that limit use and that adding this file, described so, would need accepted."""
        told = {name: given.get(name) for name in ("id", "title", "kind", "licence")}
        added = adding.described(file, self._catalog, **told)
        is_new = not (added.takes_a_row and self._installed.get(added.spec.id))
        return [added.spec.licence] if added.spec.licence.ask and is_new else []

    def incoming(self) -> AbstractContextManager[Incoming]:
        """A place on the models' disk for a file that is being sent in, for `add` to link; it goes with the block."""
        return self._workshop.incoming()

    def check_room(self, needed: int) -> None:
        """`StorageFull` unless a model of so many bytes fits on the disk."""
        self._workshop.check_room(needed)

    def remove(self, id: str) -> ModelRow:
        """Delete a model and what was pulled only as its part, or what an unfinished pull left; the bytes come back.

        A worker that has the files open reads them to their end. `Conflict` where another installed model needs it.
        """
        row = self.get(id)
        if row.spec.comes_along:
            raise InvalidRequest(f"The model {id!r} comes with the service and cannot be removed.", model=id)
        with self._workshop.changing(id, wait=False):
            record = self._installed.get(id)
            users = self._users(id)
            if users and record is not None:
                raise Conflict(f"The model {id!r} is a part of {', '.join(users)}; remove that first.", model=id)
            left = self._workshop.discard_staging(id)
            if record is None and not left:
                raise Conflict(f"The model {id!r} is not installed.", model=id)
            self._workshop.discard(self.folder / id)
        for part in self._with_parts(row.spec):
            record = self._installed.get(part.id)
            if part.id != id and record is not None and record.as_part and not self._users(part.id):
                self.remove(part.id)
        return dataclasses.replace(row, installed=False, path=None, bytes_on_disk=0, sha256=None)

    def verify(self, id: str, *, progress: Progress | None = None) -> list[str]:
        """Read an installed model's files again; the names of those that are gone or no longer what was installed."""
        self.require(id)
        record = self._installed.get(id)
        if record is None:
            return []
        damaged, done = [], 0
        for name, expected in record.files.items():
            path = self.folder / id / FILES / name
            report = functools.partial(_report, progress, done, record.bytes)
            if (
                not path.is_file()
                or path.stat().st_size != expected.bytes
                or sha256_of(path, report) != expected.sha256
            ):
                damaged.append(name)
            done += expected.bytes
        return damaged

    def _serves(self, spec: ModelSpec, task: str) -> bool:
        """Whether a model is for this task; whoever has a face pack among its parts finds faces."""
        inherited = task == FACES and any(self._serves(self.get(part).spec, task) for part in spec.parts)
        return task in spec.tasks or inherited

    def _row(self, spec: ModelSpec) -> ModelRow:
        parts = [self._catalog.get(part) for part in spec.parts]
        if spec.embedded == NO_FILES:
            return ModelRow(spec, True, None, 0)
        whole = all(part is not None and self._row(part).installed for part in parts)
        if spec.embedded:
            facts = embedded_facts(PACKAGE_PARENT / spec.embedded)
            if facts is None:
                return ModelRow(spec, False, None, 0)
            path = facts.folder if is_folder(spec) else facts.largest
            embedded = dataclasses.replace(spec, bytes=facts.bytes)
            return ModelRow(embedded, whole, path if whole else None, facts.bytes, facts.sha256)
        record = self._installed.get(spec.id)
        if record is None:
            return ModelRow(spec, False, None, 0)
        path = self.folder / spec.id / record.path if whole else None
        return ModelRow(spec, whole, path, record.bytes, record.sha256)

    def _with_parts(self, spec: ModelSpec) -> list[ModelSpec]:
        """The parts, theirs before them, and the model itself last; each once."""
        found: dict[str, ModelSpec] = {}
        for part in spec.parts:
            if part in self._catalog:  # a row of an earlier version may name what is known no more
                found |= {other.id: other for other in self._with_parts(self._catalog[part])}
        return [*found.values(), spec]

    def _lacking(self, id: str) -> list[ModelSpec]:
        """What of this model and its parts is not on the disk."""
        return [spec for spec in self._with_parts(self.get(id).spec) if self._installed.get(spec.id) is None]

    def _users(self, id: str) -> list[str]:
        """The installed models that have this one as a part."""
        return [
            row.spec.id for row in self.rows() if id in row.spec.parts and self._installed.get(row.spec.id) is not None
        ]

    def _keep(self, id: str) -> None:
        """A part that is pulled by its own name stays when its user goes."""
        record = self._installed.get(id)
        if record is not None and record.as_part:
            with self._workshop.changing(id):
                write_record(self.folder / id, dataclasses.replace(record, as_part=False))

    def _listed(self, spec: ModelSpec, update: bool, stop: Stop) -> tuple[str, tuple[RemoteFile, ...], dict[str, str]]:
        """The commit to pull, its files, and what is known of their SHA-256, against which they are checked."""
        pin = None if update else self._workshop.pin(spec.id)
        files = tuple(RemoteFile(source.path, source.bytes, source.sha256, None, source.url) for source in spec.sources)
        if spec.repo is None:
            return sha256_of_texts(file.sha256 or "" for file in files)[:40], files, {}
        fixed = re.fullmatch(r"[0-9a-f]{40}", spec.revision) is not None
        listing = self._hub.listing(spec.repo, pin[0] if pin and not fixed else spec.revision, stop)
        files += listing.select(spec.files)
        known = (pin[1] if pin and pin[0] == listing.commit else {}) | spec.sha256
        check_stated(files, known, spec.id)
        return listing.commit, files, known

    def _install_pulled(
        self,
        spec: ModelSpec,
        commit: str,
        files: tuple[RemoteFile, ...],
        known: dict[str, str],
        on_bytes: Callable[[int], None],
        stop: Stop,
        *,
        as_part: bool,
    ) -> None:
        staged = self._workshop.staging(spec.id, commit)
        fetched = fetch_all(self._hub, spec, commit, files, staged, on_bytes, stop, known)
        try:
            stored = conversion.store_all(spec, staged, fetched, stop)
        except InvalidRequest:
            self._workshop.discard_staging(spec.id)
            raise
        if is_folder(spec):
            path = "/".join(filter(None, (FILES, spec.options.get("folder", ""))))
        else:
            path = f"{FILES}/{max(stored, key=lambda name: stored[name].bytes)}"
        facts = {"fetched": {name: asdict(file) for name, file in fetched.items() if name not in stored}}
        installed = Installed(
            spec,
            "catalog",
            path,
            stored,
            commit,
            as_part,
            licence_accepted=spec.licence.ask,
            installed=time.time(),
            facts=facts if facts["fetched"] else {},
        )
        self._workshop.install(staged, installed)
        conversion.tidy(self.folder / spec.id)
        self._workshop.write_pin(spec.id, commit, fetched)


def _report(progress: Progress | None, before: int, total: int, count: int) -> None:
    if progress is not None:
        progress(before + count, total)
