"""Restoring faces: GFPGAN at random weights of the published shapes, on people of pocket's world."""

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from app.core.attachments import FaceReference
from app.core.catalog import find
from app.errors import InvalidRequest, NoFaceFound, WeightsMissing
from app.imaging.face_restore import crop_mask, lay_back, shows_face
from app.models import restorers
from app.models.catalog import CATALOG
from app.models.device import TorchDevice
from app.models.inspect_networks import recognise
from app.models.inspection import read_header
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from app.pocket import world
from tests.api.serving import serving
from tests.capabilities.studio import pixels
from tests.models.restoring_networks import write_gfpgan, write_restoreformer

RESTORE = find("restore-face")
SPEC = next(spec for spec in CATALOG if spec.id == "gfpgan-v1.4")
SIDE = 256


def portrait(number=3):
    """A person of pocket's world who looks at us."""
    scene = world.random_portrait(random.Random(number))
    scene = replace(scene, person=replace(scene.person, pose="front", glasses="none"))
    return world.draw(scene, SIDE).convert("RGB")


def two_people():
    """One beside the other, the second one smaller."""
    sheet = Image.new("RGB", (2 * SIDE, SIDE), (120, 160, 120))
    sheet.paste(portrait(3), (0, 0))
    sheet.paste(portrait(4).resize((200, 200), Image.Resampling.LANCZOS), (SIDE + 28, 28))
    return sheet


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restorers")
    return {
        "gfpgan": write_gfpgan(folder / "gfpgan.safetensors"),
        "restoreformer": write_restoreformer(folder / "restoreformer.safetensors"),
    }


@pytest.fixture(scope="module")
def library(files, tmp_path_factory):
    library = ModelLibrary(tmp_path_factory.mktemp("home"))
    for name, file in files.items():
        library.add(file, id=f"my-{name}")
    return library


@pytest.fixture(scope="module")
def runtime(library, one_thread):
    opened = open_runtime(device="cpu", library=library, precision="float32")
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["gfpgan", "restoreformer"])
def test_files_of_ones_own_are_recognised_by_their_names(files, library, name):
    assert recognise(read_header(files[name]), "any").kind == "restorer"
    assert library.get(f"my-{name}").spec.tasks == ("restore-face",)


def test_gfpgan_is_shown_minus_one_to_one_and_a_seed_means_one_face(files):
    """Against the network called by hand (spandrel's own call would show it 0..1); the same seed, the same bytes."""
    restorer = restorers.load(SPEC, files["gfpgan"], TorchDevice("cpu", "float32"))
    face = portrait().resize((512, 512), Image.Resampling.LANCZOS)
    first = restorer.restore(face, 5)
    with torch.inference_mode():
        seen = torch.from_numpy(np.array(face)).permute(2, 0, 1)[None].float() / 127.5 - 1
        answer = restorer._model.model(seen, return_rgb=False, randomize_noise=False)[0].clamp(-1, 1)
    expected = ((answer[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.abs(pixels(first) - expected).max() <= 1
    assert first.size == (512, 512) and pixels(first).std() > 1
    torch.manual_seed(99)
    other, again = restorer.restore(face, 6), restorer.restore(face, 5)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_a_restored_face_lies_where_it_was_cut_out_and_all_else_keeps_its_bytes(run_capability, studio, runtime):
    """What the parts do by hand, byte for byte; beyond the upright crop nothing has changed."""
    picture = portrait()
    result = run_capability(RESTORE, image=picture, restorer="my-restoreformer", seed=7)
    assert studio.steps_reported()[-1] == (1, 1) and len(result.data["faces"]) == 1
    (image,) = result.images
    with runtime.face_reader("pocket-faces") as reader:
        crop, matrix = reader.upright(FaceReference(picture, 0))
    with runtime.alone("my-restoreformer", task="restore-face") as restore:
        drawn = restore(crop, 7)
    with runtime.face_reader("pocket-faces") as reader:
        parts = reader.parts_of(drawn) if shows_face(reader.parts_of(drawn)) else reader.parts_of(crop)
    assert image.tobytes() == lay_back(picture, drawn, crop_mask(parts), matrix, 1.0).tobytes()
    y, x = np.mgrid[:SIDE, :SIDE]
    inside = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T
    changed = (pixels(image) != pixels(picture)).any(-1)
    outside = ((inside < 0) | (inside > 511)).any(-1)
    assert changed.any() and outside.any() and not changed[outside].any()


def test_blend_zero_is_the_picture_and_half_lies_between(run_capability):
    picture = portrait()
    none, half, whole = (
        run_capability(RESTORE, image=picture, restorer="my-restoreformer", seed=7, blend=blend).images[0]
        for blend in (0.0, 0.5, 1.0)
    )
    assert (pixels(whole) != pixels(picture)).any()
    assert none.tobytes() == picture.tobytes()
    between = (pixels(picture) + pixels(whole)) / 2
    assert np.abs(pixels(half) - between).max() <= 2


def test_all_faces_or_the_chosen_ones(run_capability):
    picture = two_people()
    both = run_capability(RESTORE, image=picture, restorer="my-restoreformer", seed=7)
    assert both.data["face_index"] == [0, 1] and len(both.data["faces"]) == 2
    small = run_capability(RESTORE, image=picture, restorer="my-restoreformer", seed=7, face_index=[1])
    changed = (pixels(small.images[0]) != pixels(picture)).any(-1)
    box = small.data["faces"][0]["box"]
    other = SIDE * 2 - 1 if box[0] < SIDE else 0
    columns = changed.any(0)
    own = columns[SIDE:] if box[0] >= SIDE else columns[:SIDE]
    assert own.any() and not (columns[:SIDE] if box[0] >= SIDE else columns[SIDE:]).any(), other
    with pytest.raises(InvalidRequest, match="no face number 2"):
        run_capability(RESTORE, image=picture, restorer="my-restoreformer", face_index=[2])


def test_what_is_no_face_is_the_upscalers(run_capability):
    picture = portrait()
    result = run_capability(RESTORE, image=picture, restorer="my-restoreformer", seed=7, scale=2, upscaler="lanczos")
    smooth = picture.resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS)
    (image,) = result.images
    assert image.size == smooth.size and any("Lanczos" in note for note in result.notes)
    same = (pixels(image) == pixels(smooth)).all(-1)
    assert same[:24].mean() > 0.5 and 0.1 < same.mean() < 0.97


def test_what_is_transparent_stays_so(run_capability):
    picture = portrait().convert("RGBA")
    alpha = Image.linear_gradient("L").resize(picture.size).point(lambda grey: max(grey, 200))
    picture.putalpha(alpha)
    (image,) = run_capability(RESTORE, image=picture, restorer="my-restoreformer", seed=7).images
    assert image.getchannel("A").tobytes() == alpha.tobytes()


def test_a_licence_that_allows_no_commercial_use_is_told(studio, library, monkeypatch):
    row = library.get("my-restoreformer")
    bound = replace(row, spec=replace(row.spec, licence=SPEC.licence))
    monkeypatch.setattr(library, "get", lambda id: bound)
    with studio.face_restorer("my-restoreformer"):
        pass
    assert "no commercial use" in studio.notes[0] and SPEC.licence.name in studio.notes[0]


def test_without_a_face_it_says_so(run_capability):
    with pytest.raises(NoFaceFound):
        run_capability(RESTORE, image=Image.new("RGB", (200, 200), (90, 120, 160)), restorer="my-gfpgan")


def test_what_could_only_fail_is_refused_at_the_door(run_capability):
    with pytest.raises(InvalidRequest, match="16000x12000"):
        run_capability(RESTORE, image=Image.new("RGB", (4000, 3000)), restorer="my-gfpgan", scale=4)
    for wish in ({"blend": 2}, {"scale": 9}, {"face_index": [-1]}, {"restorer": "lanczos"}, {"upscaler": "my-gfpgan"}):
        with pytest.raises(InvalidRequest):
            run_capability(RESTORE, **{"image": portrait(), "restorer": "my-gfpgan", **wish})


def test_an_upscaler_is_no_restorer_and_the_other_way_round(files, tmp_path):
    from app.models import upscalers
    from tests.models.upscaling_networks import write_compact

    with pytest.raises(InvalidRequest, match="not one that makes pictures larger"):
        upscalers.load(SPEC, files["gfpgan"], TorchDevice("cpu", "float32"))
    with pytest.raises(InvalidRequest, match="restores no faces"):
        restorers.load(SPEC, write_compact(tmp_path / "c.safetensors"), TorchDevice("cpu", "float32"))


def test_on_a_fresh_machine_the_line_that_fetches_one_is_named(tmp_path):
    with pytest.raises(WeightsMissing, match=r"eis models pull gfpgan-v1\.4"):
        ModelLibrary(tmp_path).choose(("restore-face",))


def test_over_rest_a_missing_model_is_a_409_with_its_line(tmp_path):
    buffer = io.BytesIO()
    portrait().save(buffer, "PNG")
    with serving(tmp_path, engine={"runtime": "app.models.runtime:open_runtime"}, ready_seconds=300) as server:
        files = {"image": ("image.png", buffer.getvalue(), "image/png")}
        answer = server.client.post("/api/v1/restore-face?wait=60", files=files, timeout=90)
        assert answer.status_code == 409 and "eis models pull gfpgan-v1.4" in answer.json()["error"]["message"]
