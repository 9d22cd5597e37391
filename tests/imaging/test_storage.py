"""Results: whole or absent after a kill at any point, with their origin inside; thumbnails, sweep, threads."""

import hashlib
import io
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from app.core.storage import Storage
from app.errors import InvalidRequest, StorageFull, UnknownImage
from app.imaging.metadata import EXIF_LIMIT

RECIPE = {"capability": "inpaint", "request": {"prompt": "größe 猫 \u200d", "seed": 3}, "position": 0}
INFOTEXT = "größe 猫\nNegative prompt: x\nSteps: 2, Sampler: Euler, Seed: 3, Size: 64x48"


def noise(size=(64, 48), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path)


def test_a_result_comes_back_to_the_byte(storage):
    stored = storage.save_result(noise(), recipe=RECIPE, infotext=INFOTEXT)
    assert (np.asarray(storage.open(stored.id)) == np.asarray(noise())).all()
    data = storage.path(stored.id).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (stored.bytes, stored.sha256)
    assert storage.encode(stored.id, "image/png") == data
    found = storage.metadata(stored.id)
    assert (found["recipe"], found["infotext"], found["width"], found["height"]) == (RECIPE, INFOTEXT, 64, 48)
    assert storage.size(stored.id) == (64, 48)


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
def test_every_format_carries_the_origin_and_gives_it_back(storage, media_type):
    stored = storage.save_result(noise(), recipe=RECIPE, infotext=INFOTEXT)
    data = storage.encode(stored.id, media_type)
    assert Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]).get_format_mimetype() == media_type
    again = storage.metadata(storage.put(data).id)
    assert (again["recipe"], again["infotext"]) == (RECIPE, INFOTEXT)


def test_an_origin_too_long_for_exif_leaves_the_picture_readable(storage):
    long = {"capability": "inpaint", "request": {"prompt": "x" * EXIF_LIMIT}}
    stored = storage.save_result(noise(), recipe=long, infotext=INFOTEXT)
    again = storage.metadata(storage.put(storage.encode(stored.id, "image/jpeg")).id)
    assert (again["recipe"], again["infotext"]) == (None, INFOTEXT)
    assert storage.metadata(stored.id)["recipe"] == long


def test_another_media_type_is_refused(storage):
    stored = storage.save_result(noise(), recipe=RECIPE, infotext=INFOTEXT)
    with pytest.raises(InvalidRequest):
        storage.encode(stored.id, "image/gif")


def test_a_thumbnail_is_small_and_made_once(storage):
    stored = storage.save_result(noise((600, 300)), recipe=RECIPE, infotext=INFOTEXT)
    first = storage.thumbnail(stored.id, 200)
    assert Image.open(io.BytesIO(first), formats=["WEBP"]).size == (256, 128)
    began = storage.path(stored.id).parent.stat().st_mtime_ns
    assert storage.thumbnail(stored.id, 256) == first
    assert storage.path(stored.id).parent.stat().st_mtime_ns == began
    storage.delete(stored.id)
    for question in (storage.path, storage.thumbnail, storage.delete, storage.metadata, storage.open):
        with pytest.raises(UnknownImage):
            question(stored.id)
    assert list(storage._folder.glob("*/*")) == []


def test_the_sweep_takes_only_what_is_old_and_unfinished(storage):
    kept = storage.save_result(noise(), recipe=RECIPE, infotext=INFOTEXT)
    folder = storage.path(kept.id).parent
    old, young = folder / ("a" * 26 + ".part"), folder / ("b" * 26 + ".part")
    old.write_bytes(b"x"), young.write_bytes(b"x")
    os.utime(old, (time.time() - 500,) * 2)
    assert storage.sweep(400) == 1
    assert (old.exists(), young.exists(), storage.path(kept.id).exists()) == (False, True, True)


def test_no_room(tmp_path):
    storage = Storage(tmp_path, min_free_bytes=2**62)
    with pytest.raises(StorageFull, match="reserved"):
        storage.check_room()


def test_a_disk_that_fills_while_writing(tmp_path):
    """A file size limit of the system stands for the full disk: the write itself fails."""
    code = f"""
import errno, os
from pathlib import Path
from PIL import Image
from app.core.storage import Storage
from app.errors import StorageFull
def full(name):
    raise OSError(errno.ENOSPC, "No space left on device")
storage = Storage(Path({str(tmp_path)!r}), checkpoint=full)
try:
    storage.save_result(Image.new("RGB", (8, 8)), recipe={{}}, infotext="")
except StorageFull as error:
    print(error.message, len(list(Path({str(tmp_path)!r}).glob("images/*/*"))))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "The disk is full. 0\n", out.stderr


@pytest.mark.parametrize("point", ["temp_write", "fsync", "rename"])
def test_a_kill_at_any_point_leaves_a_whole_picture_or_none(tmp_path, point):
    code = f"""
import os
from pathlib import Path
from PIL import Image
from app.core.storage import Storage
storage = Storage(Path({str(tmp_path)!r}), checkpoint=lambda name: os._exit(137) if name == {point!r} else None)
storage.save_result(Image.new("RGB", (64, 64), "red"), recipe={{"capability": "x"}}, infotext="x")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 137
    storage = Storage(tmp_path)
    files = list(tmp_path.glob("images/*/*"))
    assert len(files) == 1
    if point == "rename":
        assert storage.open(files[0].stem).getpixel((5, 5)) == (255, 0, 0)
    else:
        assert files[0].suffix == ".part"
        assert storage.sweep(0) == 1 and list(tmp_path.glob("images/*/*")) == []


def test_many_threads_at_once(storage):
    data = io.BytesIO()
    noise((200, 100)).save(data, "PNG")
    stored, errors = [], []

    def work():
        try:
            stored.append(storage.put(data.getvalue()))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors and len({image.id for image in stored}) == 12
    assert len({image.sha256 for image in stored}) == 1
