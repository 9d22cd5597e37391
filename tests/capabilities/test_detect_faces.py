"""Detecting faces: a real pack of networks whose answers are known, from the door to the drawn picture."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from app.core import detect_faces
from app.core.attachments import FaceReference
from app.core.catalog import find
from app.core.submission import Submission
from app.errors import FaceNotChosen, InvalidRequest, WeightsMissing
from app.imaging.face_boxes import FRAME
from app.models.catalog import CATALOG
from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from app.models.runtime import Runtime
from tests.capabilities.studio import Studio
from tests.models.face_networks import KEYPOINTS, make_pack, picture_of_squares
from tests.parity.shelf import Shelf

WHITE = (255, 255, 255)
SPECS = {spec.id: spec for spec in CATALOG}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A pack, and an identity model that has it as its part."""
    shelf = Shelf(tmp_path_factory.mktemp("packs"))
    pack = make_pack(shelf.folder / "pack")
    shelf.put("pack", pack, kind="faces", task="faces", family="other")
    for name, parts in (("pulid", ("pack",)), ("faceless", ())):
        shelf.put(name, pack, kind="identity", task="pulid", parts=parts)
    return shelf


@pytest.fixture(scope="module")
def opened(shelf):
    runtime = Runtime(TorchDevice("cpu", "float32"), shelf, model_memory_bytes=None, parked_memory_bytes=None)
    yield runtime
    runtime.close()


@pytest.fixture
def studio(tmp_path, opened):
    return Studio(tmp_path, opened)


def squares(*found, size=(640, 640)):
    """A picture with such squares on black; the pack sees each as a face."""
    return Image.fromarray(picture_of_squares(size, *found))


def look(studio, picture, **more):
    request = detect_faces.DetectFacesRequest(image=studio.put(picture), **{"faces_model": "pack", **more})
    return detect_faces.run(request, studio)


def test_faces_are_listed_with_all_that_is_known_of_them(studio):
    picture = squares((128, 128, 32, WHITE), (448, 320, 32, (200, 200, 200)))
    result = look(studio, picture)
    assert result.data["size"] == [640, 640] and len(result.data["faces"]) == 2
    at = {tuple(face["box"]): face for face in result.data["faces"]}
    face = at[(80, 80, 176, 176)]
    assert face["size"] == [96, 96] and 0.9 < face["score"] <= 1
    assert np.abs(np.array(face["keypoints"]) - (np.array(KEYPOINTS) * 32 + 128)).max() <= 0.1
    assert (400, 272, 496, 368) in at
    (drawn,) = result.images
    assert drawn.size == picture.size
    changed = np.abs(np.asarray(drawn).astype(int) - np.asarray(picture)).max(-1) > 0
    for left, top, right, bottom in at:
        assert drawn.getpixel((right, (top + bottom) // 2)) == FRAME
        changed[top - 4 : bottom + 5, left - 4 : right + 5] = False
    assert not changed.any(), "something is drawn where no face is"


def test_the_number_of_a_face_is_the_one_that_a_wish_about_it_takes(studio, opened):
    picture = squares((128, 128, 32, WHITE), (448, 320, 32, WHITE))
    listed = look(studio, picture).data["faces"]
    with opened.face_reader("pulid") as reader:
        for number, face in enumerate(listed):
            meant = reader.find(FaceReference(picture, number))
            assert [round(edge) for edge in meant.box] == face["box"]


def test_an_empty_picture_is_an_answer(studio):
    result = look(studio, Image.new("RGB", (320, 200)))
    assert result.data == {"size": [320, 200], "faces": []} and result.images == []


def test_the_drawing_may_be_left_out(studio):
    result = look(studio, squares((128, 128, 32, WHITE)), draw=False)
    assert len(result.data["faces"]) == 1 and result.images == []


def test_a_model_finds_with_the_pack_that_is_its_part_and_one_without_cannot(studio):
    picture = squares((128, 128, 32, WHITE))
    own, through = look(studio, picture), look(studio, picture, faces_model="pulid")
    assert own.data == through.data and len(own.data["faces"]) == 1
    with pytest.raises(InvalidRequest, match="no face models"):
        look(studio, picture, faces_model="faceless")


def test_the_account_of_the_memory_names_the_pack(studio, opened):
    look(studio, squares((128, 128, 32, WHITE)))
    (account,) = [entry for entry in opened.memory()["models"] if entry["model"] == "pack"]
    assert account["state"] == "placed" and account["strategy"] is None and account["bytes"] > 0
    assert "pack" in opened.resident()


def test_a_refusal_names_the_field_whose_picture_it_is_about(opened):
    picture = squares((128, 128, 32, WHITE), (448, 320, 32, WHITE))
    with opened.face_reader("pack") as reader:
        with pytest.raises(FaceNotChosen) as refusal:
            reader.find(FaceReference(picture, field="image"))
        assert refusal.value.details["field"] == "image" and len(refusal.value.details["faces"]) == 2
        with pytest.raises(FaceNotChosen) as refusal:
            reader.find(FaceReference(picture))
        assert "field" not in refusal.value.details


class Installed(ModelLibrary):
    """A library in which these models of the catalog are installed, and no other."""

    def __init__(self, home, *ids):
        super().__init__(home, catalog=tuple(dataclasses.replace(spec, embedded=None) for spec in CATALOG))
        self.ids = ids

    def _row(self, spec):
        return dataclasses.replace(super()._row(spec), installed=spec.id in self.ids, path=self.folder)


def asked(tmp_path, wished, *ids):
    """What the door makes of a wish where these models are installed."""
    library = Installed(tmp_path, *ids)
    studio = Studio(tmp_path, None, library)
    door = Submission(studio.storage, library, SimpleNamespace(get=lambda reference: None))
    capability = find("detect-faces")
    wish = {"image": studio.put(Image.new("RGB", (64, 64))), "faces_model": wished}
    return door.prepare(capability, door.read(capability, wish), "")


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (("pocket-faces",), "pocket-faces"),
        (("pocket-faces", "buffalo_l", "facexlib"), "buffalo_l"),
        (("pocket-faces", "buffalo_l", "antelopev2", "facexlib", "pulid"), "antelopev2"),
    ],
)
def test_auto_is_the_best_installed_pack_and_a_published_one_before_the_embedded(tmp_path, installed, chosen):
    prepared = asked(tmp_path, "auto", *installed)
    assert prepared.request["faces_model"] == prepared.model == chosen


def test_a_model_is_asked_for_by_its_own_id_and_one_without_faces_is_refused_at_the_door(tmp_path):
    for id in ("pulid", "ecomid", "instantid", "ip-adapter-faceid-sd15", "antelopev2"):
        assert asked(tmp_path, id, id).request["faces_model"] == id
    for id in ("sdxl", "eva02-clip-l-336", "ip-adapter-plus-sdxl"):
        assert id in SPECS
        with pytest.raises(InvalidRequest, match="does not serve faces"):
            asked(tmp_path, id, id)


def test_what_lacks_is_named_with_the_line_that_fetches_it(tmp_path):
    with pytest.raises(WeightsMissing, match="eis models pull antelopev2"):
        asked(tmp_path, "auto")
