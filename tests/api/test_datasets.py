"""Datasets over REST: archives and the operator's folders become pictures with captions, whole or not at all."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.api.conftest import picture
from tests.api.serving import serving
from tests.imaging.test_archives import tar_of_a_million, tarred, zip_of_a_million, zipped

URL = "/api/v1/datasets"
PICTURE = picture()


def drawn(seed: int, size: tuple[int, int] = (64, 48), quality: int | None = None) -> bytes:
    """A smooth picture of its own for each seed."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=quality) if quality else image.save(buffer, "PNG")
    return buffer.getvalue()


def post(server, data, kind="application/zip"):
    return server.client.post(URL, content=data, headers={"content-type": kind})


def test_an_archive_becomes_pictures_with_their_captions(server):
    files = {
        "set/b.png": drawn(1),
        "set/b.txt": b"\xef\xbb\xbfa cat\n on a mat ",
        "set/a.jpg": drawn(2, quality=90),
        "again.jpg": drawn(1, (96, 72), quality=70),
        "readme.md": b"who took these",
        "__MACOSX/set/._b.png": b"not a picture",
    }
    answer = post(server, zipped(files))
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert [(image["name"], image["caption"]) for image in told["images"]] == [
        ("again.jpg", ""),
        ("a.jpg", ""),
        ("b.png", "a cat on a mat"),
    ]
    assert told["duplicates"] == [[0, 2]]
    assert told["ignored"] == ["readme.md"]
    for image in told["images"]:
        assert server.client.get(image["url"]).status_code == 200


def test_a_form_and_a_tar_do_too(server):
    packed = tarred({"a.png": drawn(3)}, "w:gz")
    answer = server.client.post(URL, files={"archive": ("set.tgz", packed)})
    assert answer.status_code == 201 and len(answer.json()["images"]) == 1


def linked() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("b.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO(PICTURE))
        archive.addfile(info)
    return buffer.getvalue()


BAD = {
    "a name that climbs": zipped({"a.png": PICTURE, "../b.png": PICTURE}),
    "an absolute name": tarred({"a.png": PICTURE, "/tmp/b.png": PICTURE}),
    "a link": linked(),
    "too many entries": zipped({f"{number}.png": b"" for number in range(3001)}),
    "a hundredfold": zipped({"a.png": PICTURE, "b.png": bytes(4 << 20)}),
    "a broken picture after a good one": zipped({"a.png": PICTURE, "b.png": b"no picture"}),
    "a caption that is no text": zipped({"a.png": PICTURE, "a.txt": b"\xff\xfe\xff"}),
    "no picture": zipped({"a.txt": b"a caption of nothing"}),
    "nothing": b"",
    "no archive": b"hello",
}


@pytest.mark.parametrize("what", BAD)
def test_bad_archives_are_refused_and_leave_nothing(server, what):
    before = server.stored()
    answer = post(server, BAD[what])
    assert answer.status_code == 422, answer.text
    assert server.stored() == before


@pytest.mark.parametrize("what", ["a zip", "a packed tar"])
def test_a_million_entries_are_refused_and_leave_nothing(server, what):
    data = zip_of_a_million() if what == "a zip" else gzip.compress(tar_of_a_million(), 1)
    before = server.stored()
    answer = post(server, data)
    assert answer.status_code == 422, answer.text
    assert server.stored() == before


def test_other_bodies_are_refused(server):
    assert post(server, b"x", "text/plain").status_code == 415
    assert server.client.post(URL, json={"folder": 3}).status_code == 422
    assert server.client.post(URL, json={"folder": "cats"}).status_code == 403


def test_a_folder_of_the_operators(tmp_path):
    shelf, secret = tmp_path / "sets", tmp_path / "secret"
    (shelf / "cats").mkdir(parents=True)
    secret.mkdir()
    (secret / "a.png").write_bytes(PICTURE)
    (shelf / "cats" / "a.png").write_bytes(PICTURE)
    (shelf / "cats" / "a.txt").write_text("a cat")
    (shelf / "cats" / "linked.png").symlink_to(secret / "a.png")
    (shelf / "linked").symlink_to(secret)
    with serving(tmp_path / "home", dataset_folder=shelf) as server:
        told = server.client.post(URL, json={"folder": "cats"}).json()
        assert [(image["name"], image["caption"]) for image in told["images"]] == [("a.png", "a cat")]
        for name in ("linked", "dogs"):
            assert server.client.post(URL, json={"folder": name}).status_code == 404
        for name in ("../secret", str(secret), ".", "", "cats/../../secret"):
            assert server.client.post(URL, json={"folder": name}).status_code == 422
