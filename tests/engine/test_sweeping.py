"""What the sweep removes and, above all, what it never touches."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from app.core.engine_options import EngineOptions
from app.core.service import Service
from app.core.storage import Storage, StoredImage
from tests.engine.conftest import end_of, options, until
from tests.engine.ledger import audit, files_of

EAGER = {"orphan_seconds": 0.1}


def orphan(home: Path) -> StoredImage:
    """A finished picture without a row, as a crash between the rename and the row leaves it."""
    image = Image.new("RGB", (8, 8), "red")
    return Storage(home).save_result(image, recipe={"capability": "test/paint", "request": {}}, infotext="")


def passes(seconds: float = 0.6) -> None:
    """Give an eager sweep time for several passes."""
    time.sleep(seconds)


def test_a_file_that_a_crash_left_goes_and_what_has_a_row_stays(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = make_service(**EAGER)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    upload, job = service.upload(buffer.getvalue()), end_of(service, service.submit("test/paint", {}).id)
    left = orphan(tmp_path)
    until(lambda: left.id not in files_of(tmp_path))
    service.delete_image(upload.id)
    passes()
    service.stop(5.0)
    assert audit(tmp_path, [job.id])["files"] == 1


def test_a_young_file_stays(make_service: Callable[..., Service], tmp_path: Path) -> None:
    make_service(orphan_seconds=60.0)
    young = orphan(tmp_path)
    passes()
    assert young.id in files_of(tmp_path)


def test_what_a_running_attempt_has_written_stays(
    make_service: Callable[..., Service], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row may come late: a full disk holds up the end of a finished job."""
    service = make_service(**EAGER)
    succeed = service._store.succeed

    def late(*arguments: object, **facts: object) -> object:
        passes(1.5)
        return succeed(*arguments, **facts)

    monkeypatch.setattr(service._store, "succeed", late)
    done = end_of(service, service.submit("test/paint", {}).id)
    assert service.storage.path(done.result["images"][0]["id"]).is_file()


def test_a_process_that_works_in_the_home_is_left_alone(make_service: Callable[..., Service], tmp_path: Path) -> None:
    make_service(**EAGER)
    with Storage(tmp_path).working_unrecorded():
        result = orphan(tmp_path)
        passes()
        assert result.id in files_of(tmp_path)
    until(lambda: result.id not in files_of(tmp_path))


def test_pictures_from_before_the_store_and_of_another_store_stay(tmp_path: Path) -> None:
    older = orphan(tmp_path)
    path = Storage(tmp_path).path(older.id)
    os.utime(path, (path.stat().st_mtime - 100,) * 2)
    own, other = options(tmp_path, **EAGER), options(tmp_path, **EAGER, database_url=f"sqlite:///{tmp_path}/b.sqlite")
    serve(own)
    serve(other)
    theirs = orphan(tmp_path)
    serve(own)
    assert files_of(tmp_path) == {older.id, theirs.id}


def test_a_wrong_clock_makes_no_file_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as old as the clock that dates them says: on a shared folder it is another machine's."""
    engine = options(tmp_path, orphan_seconds=60.0)
    serve(engine)
    young = orphan(tmp_path)
    part = Storage(tmp_path).path(young.id).with_name("x.part")
    part.touch()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    serve(engine)
    assert young.id in files_of(tmp_path) and part.exists()


def serve(engine: EngineOptions) -> None:
    """A service's whole life, long enough for several passes."""
    service = Service(engine)
    service.start()
    passes()
    service.stop(0.0)


def test_a_picture_left_in_trust_gets_its_row(make_service: Callable[..., Service], tmp_path: Path) -> None:
    left = orphan(tmp_path)
    Storage(tmp_path).leave_in_trust(left, "mask")
    service = make_service(**EAGER)
    until(lambda: service.search_images(kind="mask")[1] == 1)
    passes()
    assert service.get_image(left.id).sha256 == left.sha256
    service.delete_image(left.id)
    assert not files_of(tmp_path) and not list(tmp_path.glob("images/*/*"))
