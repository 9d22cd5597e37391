"""Pictures in a store that several homes share: a folder, and a bucket of a real S3 server on loopback."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from app.core import sweeping
from app.core.engine_options import EngineOptions
from app.core.jobs import JobStatus
from app.core.picture_store import PictureStore, open_picture_store
from app.core.service import Service
from app.core.storage import Storage, StoredImage
from app.errors import DependencyMissing, InvalidRequest, TransferFailed, UnknownImage
from tests.engine.capabilities import squares
from tests.engine.conftest import CATALOG, end_of, options, until
from tests.shared_stores import environment, folder_url, make_bucket, s3_server

MIB = 2**20


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with s3_server() as values, environment(values):
        yield


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty shared store of each kind."""
    if request.param == "folder":
        return folder_url(tmp_path / "shared")
    request.getfixturevalue("s3")
    name = f"pictures-{uuid.uuid4().hex}"
    make_bucket(name)
    return f"s3://{name}/eis/pictures"


def store_of(url: str, cache_bytes: int = 100 * MIB) -> PictureStore:
    store = open_picture_store(url, cache_bytes=cache_bytes)
    assert store is not None
    return store


@pytest.fixture
def homes(url: str, tmp_path: Path) -> tuple[Storage, Storage]:
    """Two homes that share the store."""
    return tuple(Storage(tmp_path / name, shared=store_of(url)) for name in ("one", "two"))


def save(storage: Storage, seed: int = 1, side: int = 64) -> StoredImage:
    return storage.save_result(
        squares(seed, side), recipe={"capability": "test/paint", "request": {"seed": seed}}, infotext=""
    )


def copies(storage_home: Path) -> set[str]:
    return {path.stem for path in (storage_home / "images").glob("*/*.png")}


def test_a_picture_of_one_home_is_read_in_the_other(homes: tuple[Storage, Storage]) -> None:
    one, two = homes
    stored = save(one)
    assert two.path(stored.id).read_bytes() == one.path(stored.id).read_bytes()
    assert two.open(stored.id).tobytes() == squares(1).tobytes()
    assert two.metadata(stored.id)["recipe"]["request"] == {"seed": 1}
    assert two.thumbnail(stored.id) == one.thumbnail(stored.id)


def test_an_upload_is_read_in_the_other_home(homes: tuple[Storage, Storage], tmp_path: Path) -> None:
    one, two = homes
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    stored = one.put((tmp_path / "red.png").read_bytes())
    assert two.size(stored.id) == (40, 30)


def test_a_fetched_copy_keeps_the_time_of_its_picture(homes: tuple[Storage, Storage]) -> None:
    one, two = homes
    stored = save(one)
    later = time.time()
    time.sleep(1.1)  # a bucket counts whole seconds
    assert two.path(stored.id).stat().st_mtime <= later


def test_a_deleted_picture_is_gone_for_all(homes: tuple[Storage, Storage], tmp_path: Path) -> None:
    one, two = homes
    stored = save(one)
    two.delete(stored.id)
    assert not store_of_home(two).holds(stored.id)
    one.remove_copy(stored.id)
    for storage in homes:
        with pytest.raises(UnknownImage):
            storage.path(stored.id)
        with pytest.raises(UnknownImage):
            storage.delete(stored.id)
    assert copies(tmp_path / "one") == copies(tmp_path / "two") == set()


def store_of_home(storage: Storage) -> PictureStore:
    assert storage.shared is not None
    return storage.shared


def test_copies_are_bounded_and_the_longest_unused_go(url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    storage = Storage(home, shared=store_of(url))
    pictures = [save(storage, seed).id for seed in range(4)]
    size = storage.path(pictures[0]).stat().st_size
    now = time.time()
    for age, reference in zip((400, 100, 300, 200), pictures, strict=True):
        os.utime(storage.path(reference), (now - age, now))
    small = store_of(url, cache_bytes=2 * size + size // 2)
    assert small.trim(home / "images") == 2
    assert copies(home) == {pictures[1], pictures[3]}
    assert storage.open(pictures[0]).tobytes() == squares(0).tobytes(), "it was fetched again"


def test_writing_and_reading_keep_the_copies_within_their_limit(url: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("app.core.picture_store.IN_USE_SECONDS", -1.0)
    probe = save(Storage(tmp_path / "probe"), side=128).bytes
    home = tmp_path / "home"
    storage = Storage(home, shared=store_of(url, cache_bytes=3 * probe))
    references = [save(storage, seed, side=128).id for seed in range(8)]
    assert 0 < len(copies(home)) <= 4
    other = tmp_path / "other"
    reader = Storage(other, shared=store_of(url, cache_bytes=3 * probe))
    for seed, reference in enumerate(references):
        assert reader.open(reference).tobytes() == squares(seed, 128).tobytes()
    assert 0 < len(copies(other)) <= 4


def test_what_the_store_does_not_hold_is_never_removed(url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    only_here = save(Storage(home))
    path = Storage(home).path(only_here.id)
    os.utime(path, (1.0, time.time()))
    assert store_of(url, cache_bytes=0).trim(home / "images") == 0
    assert path.is_file()


def test_a_copy_that_was_just_asked_for_stays(url: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    storage = Storage(home, shared=store_of(url))
    stored = save(storage)
    storage.path(stored.id)
    assert store_of(url, cache_bytes=0).trim(home / "images") == 0


def test_half_a_picture_is_refused(homes: tuple[Storage, Storage]) -> None:
    one, two = homes
    stored = save(one)
    half = one.path(stored.id).read_bytes()[:200]
    broken = one.path(stored.id).with_name("half")
    broken.write_bytes(half)
    store_of_home(one).keep(stored.id, broken)
    with pytest.raises(TransferFailed, match="part of a picture"):
        two.path(stored.id)
    assert not list(two._folder.glob("*/*")), "a part of it was left"


def test_a_part_that_is_swept_while_the_store_is_slow_costs_nothing(url: str, tmp_path: Path, monkeypatch) -> None:
    storage = Storage(tmp_path / "home", shared=store_of(url))
    keep = PictureStore.keep

    def keep_slowly(store: PictureStore, reference: str, path: Path) -> None:
        keep(store, reference, path)
        assert storage.sweep(-1.0) == 1

    monkeypatch.setattr(PictureStore, "keep", keep_slowly)
    stored = save(storage)
    assert copies(tmp_path / "home") == set()
    assert storage.open(stored.id).tobytes() == squares(1).tobytes()


def test_a_store_that_fails_stores_nothing_and_says_so(s3, tmp_path: Path) -> None:
    storage = Storage(tmp_path, shared=store_of("s3://no-such-bucket/prefix"))
    with pytest.raises(TransferFailed):
        save(storage)
    assert not list((tmp_path / "images").glob("*/*"))


# The service over a shared store


def shared_service(tmp_path: Path, url: str, home: str = "home", **changes: object) -> Service:
    return Service(options(tmp_path / home, pictures_url=url, **changes))


@pytest.fixture
def start(tmp_path: Path, url: str) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def make(**changes: object) -> Service:
        service = shared_service(tmp_path, url, **changes)
        service.start()
        started.append(service)
        return service

    yield make
    for service in started:
        service.stop(0.0)


def test_a_job_of_a_worker_process_ends_in_the_shared_store(start: Callable[..., Service], url: str) -> None:
    service = start(devices=("cpu",))
    done = end_of(service, service.submit("test/paint", {"seed": 7}).id)
    (image,) = done.result["images"]
    assert store_of(url).holds(image["id"])
    again = end_of(service, service.submit("test/copy", {"image": image["id"]}).id)
    assert again.status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("url", ["folder"], indirect=True)
def test_an_upload_that_fails_is_tried_again_and_loses_nothing(tmp_path: Path, start: Callable[..., Service]) -> None:
    service = start(retry_seconds=0.2)
    place = tmp_path / "shared" / "images"
    place.parent.mkdir(exist_ok=True)
    place.write_text("in the way of the folder")
    job = service.submit("test/paint", {"seed": 3})
    until(lambda: service.get(job.id).attempt == 2)
    place.unlink()
    done = end_of(service, job.id)
    assert (done.status, len(done.result["images"])) == (JobStatus.SUCCEEDED, 1)
    assert service.storage.open(done.result["images"][0]["id"]).tobytes() == squares(3).tobytes()


def test_a_service_does_not_start_on_a_store_that_cannot_be_used(s3, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="EIS_PICTURES_URL: the store cannot be used"):
        shared_service(tmp_path, "s3://no-such-bucket/prefix")


@pytest.mark.parametrize(
    "wrong", ["/a/folder", "file://host/folder", "file:///", "s3:///prefix", "s3://key:secret@bucket", "ftp://host/a"]
)
def test_a_url_of_another_kind_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="EIS_PICTURES_URL: write file:///a/shared/folder or s3://bucket/prefix"):
        open_picture_store(wrong, cache_bytes=1)


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from app.core.picture_store import open_picture_store\n"
        "open_picture_store('s3://bucket/prefix', cache_bytes=1)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert DependencyMissing.__name__ in run.stderr
    assert "pip install 'edit-image-service[ray]'" in run.stderr


# Pictures that belong to nobody


@pytest.fixture
def short_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "SHARED_CLOCK_SECONDS", 0.0)


SWEEPING = {"orphan_seconds": 1.5, "sweep_seconds": 1.0}


def test_a_shared_picture_without_a_row_goes_and_one_with_a_row_stays(
    start: Callable[..., Service], url: str, tmp_path: Path, short_clocks: None
) -> None:
    service = start(**SWEEPING)
    kept = end_of(service, service.submit("test/paint", {"seed": 1}).id).result["images"][0]["id"]
    nobody = save(Storage(tmp_path / "lost node", shared=store_of(url))).id
    until(lambda: not store_of(url).holds(nobody))
    assert store_of(url).holds(kept)
    assert service.storage.open(kept).tobytes() == squares(1).tobytes()


def test_two_job_stores_that_share_pictures_remove_none_of_each_other(
    start: Callable[..., Service], url: str, tmp_path: Path, short_clocks: None
) -> None:
    one, two = start(home="one", **SWEEPING), start(home="two", **SWEEPING)
    first = end_of(one, one.submit("test/paint", {"seed": 1}).id).result["images"][0]["id"]
    second = end_of(two, two.submit("test/paint", {"seed": 2}).id).result["images"][0]["id"]
    nobody = save(Storage(tmp_path / "lost node", shared=store_of(url))).id
    copy = save(Storage(tmp_path / "one", shared=store_of(url))).id  # without a row, under a home that sweeps
    until(lambda: copy not in copies(tmp_path / "one"))
    time.sleep(2 * SWEEPING["orphan_seconds"])
    assert all(store_of(url).holds(reference) for reference in (first, second, nobody, copy))


def test_pictures_from_before_the_shared_store_are_brought_there(
    start: Callable[..., Service], url: str, tmp_path: Path
) -> None:
    before = Service(EngineOptions(home=tmp_path / "home", catalog=CATALOG, devices=("inline",), min_free_bytes=0))
    before.start()
    old = end_of(before, before.submit("test/paint", {"seed": 9}).id).result["images"][0]["id"]
    before.stop(0.0)
    start()
    until(lambda: store_of(url).holds(old))


def test_what_a_command_left_in_trust_is_shared_with_its_row(
    start: Callable[..., Service], url: str, tmp_path: Path
) -> None:
    storage = Storage(tmp_path / "home")
    left = save(storage)
    storage.leave_in_trust(left, "image")
    service = start(**SWEEPING)
    until(lambda: store_of(url).holds(left.id))
    until(lambda: left.id in {record.id for record in service.search_images(kind="image")[0]})
