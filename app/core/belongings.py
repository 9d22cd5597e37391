"""What a long job keeps under the home between its attempts: a folder of its own, gone when it is needed no more."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

from app.errors import InvalidRequest

SECONDS_PER_DAY = 24 * 3600


class Belongings:
    """The folders of the jobs of one home; those that nobody touched for `keep_days` go when a new one is made."""

    def __init__(self, home: Path, keep_days: float) -> None:
        self._folder = home / "training"
        self._keep_seconds = keep_days * SECONDS_PER_DAY

    def of(self, job: str, *, make: bool) -> Path:
        """This job's folder; `InvalidRequest` where it is to be there and is not."""
        folder = self._folder / job
        if not make:
            if not job.isalnum() or not folder.is_dir():
                raise InvalidRequest("That job left nothing to go on from.")
            return folder
        if not folder.is_dir():
            self.tidy()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def tidy(self) -> None:
        """Remove what nobody touched for so long."""
        now = time.time()
        for folder in self._folder.glob("*"):
            with suppress(OSError):
                times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
                if now - max(times) > self._keep_seconds:
                    shutil.rmtree(folder, ignore_errors=True)
