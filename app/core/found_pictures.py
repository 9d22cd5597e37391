"""Pictures of a search's results: a small one to look at, and the whole one as a reference that any capability takes.

Only what stands in a finished search of the caller's own is fetched, so this is no door to the web for anybody else;
and only from public hosts over https: what the operator trusts for other purposes, a search provider among it, is not
trusted as a result.
"""

import io
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from app.core.jobs import Job
from app.core.storage import StoredImage
from app.errors import NotFound, ServiceError
from app.guarded_http import GuardedClient
from app.imaging.decode import decode_to_png

THUMBNAIL_SIDE = 320
THUMBNAIL_LIMIT = 8 * 2**20
THUMBNAIL_PIXELS = 24_000_000
REMEMBERED = 128
SECONDS = 15.0


class FoundPictures:
    """What may be fetched of searches; `get` answers a job of an owner's, `upload` keeps a picture for one."""

    def __init__(
        self,
        get: Callable[[str, str], Job],
        upload: Callable[..., StoredImage],
        *,
        limit: int,
        client: GuardedClient | None = None,
    ) -> None:
        self._get, self._upload, self._limit = get, upload, limit
        self._client = client or GuardedClient()
        self._seen: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def result(self, job_id: str, number: int, owner: str) -> Mapping[str, Any]:
        """One result of a search; `NotFound` where the job has no such result."""
        job = self._get(job_id, owner)
        results = ((job.result or {}).get("data") or {}).get("results") if job.capability == "web-search" else None
        if not results or not 0 <= number < len(results):
            raise NotFound("This job has no such result.")
        return results[number]

    def thumbnail(self, job_id: str, number: int, owner: str) -> bytes:
        """A small WebP: of the provider's own small picture, else of the whole one."""
        found = self.result(job_id, number, owner)
        urls = list(dict.fromkeys(filter(None, (found.get("thumbnail_url"), found.get("image_url")))))
        if not urls:
            raise NotFound("This result has no picture.")
        for url in urls[:-1]:
            try:
                return self._small(url)
            except ServiceError:
                continue
        return self._small(urls[-1])

    def keep(self, job_id: str, number: int, owner: str) -> StoredImage:
        """The whole picture, stored as an upload of the owner's."""
        found = self.result(job_id, number, owner)
        if not found.get("image_url"):
            raise NotFound("This result has no picture.")
        data = self._client.get_bytes(found["image_url"], limit=self._limit)
        return self._upload(data, owner=owner)

    def _small(self, url: str) -> bytes:
        with self._lock:
            if url in self._seen:
                self._seen.move_to_end(url)
                return self._seen[url]
        data = self._client.get_bytes(url, limit=THUMBNAIL_LIMIT, seconds=SECONDS)
        with tempfile.TemporaryFile() as file:
            decode_to_png(data, file, kind="image", max_pixels=THUMBNAIL_PIXELS, seconds=SECONDS)
            file.seek(0)
            with Image.open(file, formats=("PNG",)) as image:
                small = image.convert("RGB")
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=82)
        with self._lock:
            self._seen[url] = buffer.getvalue()
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return buffer.getvalue()
