"""The engine inside a command: the server's own service on a device of this process, its jobs in a store that goes
with the command.

So do its pictures: what it made lies in the files that were asked for, and nothing else could find it again. One kind
stays in the home: the inputs of a job that succeeded, where a file, a URL or the job before gave them, because the
recipe inside the picture that was written names them and `eis run --recipe` looks for them there. They are left in
trust: the next service on this home gives them rows, so that they are listed and can be deleted like uploads.
"""

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

from app.cli_progress import ProgressLine
from app.cli_settings import read_settings
from app.core.capability import Capability, image_fields
from app.core.jobs import Job, JobStatus
from app.core.storage import StoredImage
from app.errors import InvalidRequest, UnknownImage, error_class
from app.guarded_http import GuardedClient
from app.main import build_service

REFERENCE = re.compile(r"[0-9a-z]{26}")
PRIVATE = {"share", "owner", "idempotency_key", "callback_url", "cancel_requested", "not_before"}
EVERY = 2**31
FORMATS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


class Inline:
    """Context manager around a started service."""

    def __init__(self) -> None:
        self.settings = read_settings()
        self.folder = tempfile.TemporaryDirectory(prefix="eis-")
        url = f"sqlite:///{Path(self.folder.name) / 'jobs.sqlite'}"
        # What a command makes stays under the home; a server that serves it brings uploads to the shared store.
        here = {"devices": ("inline",), "executor": "local", "pictures_url": None}
        self.service = build_service(self.settings, **here, database_url=url, orphan_seconds=None)
        self.client = GuardedClient(self.settings.trusted_hosts)
        self._stored: dict[str, tuple[StoredImage, str]] = {}
        self._in_recipes: set[str] = set()
        self._working = self.service.storage.working_unrecorded()

    def __enter__(self) -> Self:
        self._working.__enter__()
        self.service.start()
        return self

    def __exit__(self, *exception: object) -> None:
        made, _ = self.service.search_images(limit=EVERY)
        self.service.stop(0)
        self.folder.cleanup()
        storage = self.service.storage
        for reference, (image, kind) in self._stored.items():
            if reference in self._in_recipes:
                storage.leave_in_trust(image, kind)
        for image in made:
            if image.id in self._in_recipes:
                stored = {name.name: getattr(image, name.name) for name in fields(StoredImage)}
                storage.leave_in_trust(StoredImage(**stored), "image")
        for reference in {*(image.id for image in made), *self._stored} - self._in_recipes:
            with suppress(UnknownImage):
                storage.delete(reference)
        self._working.__exit__(None, None, None)

    def submit(self, capability: Capability, payload: dict[str, Any], then: Sequence[dict[str, Any]] = ()) -> Job:
        """Queue a wish, and what is to follow it, whose pictures may be files, URLs or references."""
        chain = self.service.follow_ups(capability, then)
        for (known, _), wish in zip(chain, then, strict=True):
            wish.update({**self.given(known, wish), "capability": known.name})
        return self.service.submit(capability.name, self.given(capability, payload), then=then)

    def given(self, capability: Capability, payload: dict[str, Any]) -> dict[str, Any]:
        """The payload with a reference for each of its pictures."""
        given = dict(payload)

        def reference(named: Any, kind: str) -> Any:
            if not isinstance(named, str) or REFERENCE.fullmatch(named):
                return named
            return self.store(self.bytes_of(named), "mask" if kind == "mask" else "image")

        for name, kind in image_fields(capability.request).items():
            value = payload.get(name)
            if value is not None:
                many = isinstance(value, list)
                given[name] = [reference(one, kind) for one in value] if many else reference(value, kind)
        return given

    def store(self, data: bytes, kind: str = "image") -> str:
        """The reference of a picture, which goes with the command unless a recipe comes to name it."""
        image = self.service.upload(data, kind=kind)
        self._stored[image.id] = (image, kind)
        return image.id

    def bytes_of(self, named: str) -> bytes:
        """What lies behind a file's name or a URL."""
        if named.startswith(("http://", "https://")):
            return self.client.get_bytes(named, limit=self.settings.max_body_bytes)
        try:
            return Path(named).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is no name of a file"
            raise InvalidRequest(f"{named[:200]}: {reason}.") from None

    def run(self, capability: Capability, payload: dict[str, Any], *, quiet: bool = False, title: str = "") -> Job:
        """Run a wish to its end; a failure is raised as the error that it is."""
        return self.run_chain(capability, payload, (), quiet=quiet, title=title)[0][0]

    def run_chain(
        self,
        capability: Capability,
        payload: dict[str, Any],
        then: Sequence[dict[str, Any]],
        *,
        quiet: bool = False,
        title: str = "",
    ) -> list[list[Job]]:
        """Run a wish and what follows it to the end; answers the jobs link by link."""
        links = [[self.follow(self.submit(capability, payload, then), quiet, title or capability.name)]]
        while ids := [id for job in links[-1] for id in job.followed_by or ()]:
            jobs = [self.service.get(id) for id in ids]
            names = [
                f"{job.capability} {place}/{len(ids)}" if len(ids) > 1 else job.capability
                for place, job in enumerate(jobs, 1)
            ]
            links.append([self.follow(job, quiet, name) for job, name in zip(jobs, names, strict=True)])
        return links

    def follow(self, job: Job, quiet: bool, title: str) -> Job:
        """The job at its end, with a progress line until then."""
        line = ProgressLine(title, quiet=quiet)
        try:
            for event in self.service.watch_blocking(job.id):
                line.show(event)
        except KeyboardInterrupt:
            (self.service.cancel_batch if job.batch_id else self.service.cancel)(job.batch_id or job.id)
            raise
        finally:
            line.close()
        job = self.service.get(job.id)
        if job.status is not JobStatus.SUCCEEDED:
            error = job.error or {"code": "service_error", "message": f"The job ended as {job.status.value}."}
            raise error_class(error["code"])(error["message"])
        makes_pictures = bool((job.result or {}).get("images"))
        request = self.service.handler(job.capability).request
        for name in image_fields(request) if makes_pictures else ():
            value = job.request.get(name) or ()
            self._in_recipes.update((value,) if isinstance(value, str) else value)
        return job

    def write(self, images: list[dict[str, Any]], out: Path | None, name: str) -> list[Path]:
        """The pictures as files, in the format that the name asks for."""
        written = []
        for index, image in enumerate(images):
            path = target(out, name, image.get("seed"), index, len(images))
            path.write_bytes(self.service.storage.encode(image["id"], FORMATS[path.suffix.lower()]))
            written.append(path)
        return written


def target(out: Path | None, name: str, seed: int | None, index: int, count: int) -> Path:
    """Where picture n goes; without --out, into the working folder, never over another file."""
    if out is not None:
        return out if count == 1 else out.with_stem(f"{out.stem}-{index + 1}")
    stem = f"{name.replace('/', '-')}-{seed if seed is not None else index + 1}"
    path = Path(f"{stem}.png")
    copy = 2
    while path.exists():
        path = Path(f"{stem}-{copy}.png")
        copy += 1
    return path


def report(job: Job, written: list[Path], *, as_json: bool) -> None:
    """What served, on stderr; the files (or the job) on stdout."""
    seconds = (job.finished or 0) - (job.started or 0)
    images = (job.result or {}).get("images", [])
    seeds = ", ".join(str(image["seed"]) for image in images if image.get("seed") is not None)
    served = f"served by {job.model or 'no model'} on {job.device} in {seconds:.1f} s" + (
        f", seed {seeds}" if seeds else ""
    )
    print(served, file=sys.stderr)
    for note in (job.result or {}).get("notes", []):
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        told = {name: value for name, value in asdict(job).items() if name not in PRIVATE}
        print(json.dumps({**told, "files": [str(path) for path in written]}))
        return
    for path in written:
        print(path)
    if not images:
        print(json.dumps((job.result or {}).get("data", {})))
