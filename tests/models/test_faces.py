"""The face stack: packs opened, faces found and embedded, and what is remembered; real runtimes, known networks."""

import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.errors import FaceNotChosen, InvalidRequest, NoFaceFound
from app.imaging.detected_faces import Face
from app.models import eva_clip, faces, faces_facexlib
from app.models.device import TorchDevice
from app.models.spec import Licence, ModelSpec
from tests.models import face_networks as networks
from tests.models.face_networks import picture_of_squares
from tests.parity.cases import DATA, ParityCase

CPU = TorchDevice("cpu")
WHITE = (255, 255, 255)


def image(*squares, size=(640, 640)):
    return Image.fromarray(picture_of_squares(size, *squares))


def small_tower(file):
    case = ParityCase("eva02_clip", DATA / "eva02_clip")
    save_file(case.tensors(case.config["keys"]), file)
    return eva_clip.open_file(file, 32)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return networks.make_pack(tmp_path_factory.mktemp("packs") / "antelopev2")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """facexlib's folder: a parser that sees hair where the crop is bright and background where it is dark."""
    folder = tmp_path_factory.mktemp("facexlib")
    networks.parsenet_by_lightness(folder / "parsing.safetensors", bright=1, dark=0)
    return folder


@pytest.fixture
def analyser(pack, parts, tmp_path):
    return faces.open_analyser([pack, parts], CPU, small_tower(tmp_path / "tower.safetensors"))


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_face_is_found_where_it_is_with_its_points(analyser):
    (found,) = analyser.detect(image((320, 192, 32, WHITE)))
    assert found.box == pytest.approx((320 - 48, 192 - 48, 320 + 48, 192 + 48), abs=0.01)
    wanted = np.array(networks.KEYPOINTS) * 32 + [320, 192]
    assert np.abs(found.keypoints - wanted).max() < 0.01
    assert found.score > 0.99
    assert analyser.calls == {"detector": 1}


def test_several_faces_are_a_choice_and_the_choice_reaches_every_part(analyser):
    picture = image((128, 128, 32, WHITE), (448, 320, 32, (0, 0, 255)))
    assert len(analyser.detect(picture)) == 2
    with pytest.raises(FaceNotChosen) as caught:
        analyser.find(picture)
    assert len(caught.value.details["faces"]) == 2
    blue = analyser.find(picture, box=(440, 310, 490, 360))
    assert blue.box[0] == pytest.approx(400, abs=0.1)
    white = analyser.find(picture, box=(120, 120, 170, 170))
    blue_vector, white_vector = (analyser.embed(picture, face) for face in (blue, white))
    assert blue_vector[2] > blue_vector[0] + 0.1 and abs(white_vector[2] - white_vector[0]) < 1e-3
    assert np.asarray(analyser.align(picture, blue).image)[..., 0].max() < 140
    assert np.asarray(analyser.align(picture, white).image)[..., 0].max() == 255


def test_a_face_that_fills_the_picture_is_found_on_a_smaller_copy(analyser):
    (found,) = analyser.detect(image((320, 320, 160, WHITE)))
    assert 1 < analyser.calls["detector"] < 9
    assert found.box == pytest.approx((320, 320, 480, 480), abs=60)


def test_no_face_says_what_was_tried(analyser):
    with pytest.raises(NoFaceFound, match="looked at sizes from 640 down to 128 pixels"):
        analyser.find(image())
    assert analyser.calls["detector"] == 9


@pytest.mark.parametrize("size", [(5000, 2), (2, 5000), (1, 1)])
def test_a_picture_that_is_all_edge_shows_nobody(analyser, size):
    assert analyser.detect(Image.new("RGB", size)) == []


def test_a_detector_of_one_size_looks_once(tmp_path):
    networks.make_recognition(tmp_path / "recognition.onnx")
    networks.make_detector(tmp_path / "det.onnx", size=640)
    analyser = faces.open_analyser([tmp_path], CPU)
    assert len(analyser.detect(image((320, 192, 32, WHITE)))) == 1
    with pytest.raises(NoFaceFound, match="looked at 640 pixels"):
        analyser.find(image())
    assert analyser.calls["detector"] == 2


def test_a_large_picture_is_looked_at_small_and_answered_in_its_own_pixels(analyser):
    picture = image((1280, 768, 128, WHITE), size=(2560, 2560))
    (found,) = analyser.detect(picture)
    assert found.box == pytest.approx((1280 - 192, 768 - 192, 1280 + 192, 768 + 192), abs=3)
    aligned = analyser.align(picture, found)
    assert faces.alignment_error(aligned) < 60
    moved = found.keypoints @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    assert 100 < moved.mean() < 400
    small = picture.resize((640, 640))
    (same,) = analyser.detect(small)
    assert np.abs(analyser.embed(picture, found) - analyser.embed(small, same)).max() < 0.15


def test_a_face_too_small_for_the_networks_is_refused_by_the_size_that_they_see(analyser):
    picture = image((1280, 768, 128, WHITE), size=(2560, 2560))
    analyser.find(picture)
    tiny = [Face((10.0, 10.0, 90.0, 90.0), 0.9, np.zeros((5, 2), dtype=np.float32))]
    analyser._remembered[faces.fingerprint(picture)]["detect"] = tiny
    with pytest.raises(InvalidRequest, match="80x80 pixels small; at least 100 are needed"):
        analyser.find(picture)


# --- vectors, points, crops -------------------------------------------------------------------------------------------


def test_the_vector_is_raw_and_read_from_red_green_blue(analyser):
    picture = image((320, 192, 32, (255, 0, 0)))
    analyser_face = Face((256, 128, 384, 256), 1.0, np.array(networks.KEYPOINTS, dtype=np.float32) * 4 + [336, 208])
    vector = analyser.embed(picture, analyser_face)
    # The crop lies wholly within the red square: red is 255, green and blue 0, brought to -1..1 and multiplied by 3.
    assert vector.shape == (512,)
    assert vector[:3] == pytest.approx([3, -3, -3], abs=0.05)
    assert np.linalg.norm(vector) > 10


def test_68_points_lie_where_the_network_says_in_the_pictures_pixels(analyser):
    picture = image((320, 192, 32, WHITE))
    found = analyser.find(picture)
    points = analyser.landmarks_68(picture, found)
    # insightface cuts out one and a half times the box around its middle.
    reach = 1.5 * 96 / 2
    wanted = networks.landmark_answer() * reach + [320, 192, 0]
    assert np.abs(points - wanted).max() < 0.05


def test_the_crop_follows_the_template(analyser):
    picture = image((320, 192, 32, WHITE))
    template = faces_facexlib.TEMPLATE
    turn = np.array([[0.3, -0.1], [0.1, 0.3]])
    face = Face((250, 120, 380, 280), 1.0, (template @ turn.T + [230, 60]).astype(np.float32))
    aligned = analyser.align(picture, face)
    assert aligned.image.size == (512, 512)
    assert faces.alignment_error(aligned) < 0.01
    assert np.abs(aligned.matrix[:, :2] @ turn - np.eye(2)).max() < 1e-3


def test_beyond_the_picture_stands_grey(analyser):
    face = Face((-40, -40, 60, 60), 1.0, np.array(networks.KEYPOINTS, dtype=np.float32) * 40)
    crop = np.asarray(analyser.align(image(), face).image)
    assert tuple(crop[0, 0]) == (132, 133, 135)


def test_what_is_no_face_is_white_and_the_rest_grey(analyser):
    crop = np.zeros((512, 512, 3), dtype=np.uint8)
    crop[:, 256:] = (200, 150, 240)
    picture = analyser.eva_input(Image.fromarray(crop))
    assert picture.shape == (1, 3, 512, 512)
    assert (picture[0, :, :, :200] == 1).all(), "background is painted white"
    grey = (0.299 * 200 + 0.587 * 150 + 0.114 * 240) / 255
    assert (picture[0, :, :, 312:] - grey).abs().max() < 1e-5


@pytest.mark.parametrize("part", range(19))
def test_which_parts_are_painted_white(tmp_path, pack, part):
    networks.parsenet_by_lightness(tmp_path / "parsing.safetensors", bright=part, dark=part)
    analyser = faces.open_analyser([pack, tmp_path], CPU)
    picture = analyser.eva_input(Image.new("RGB", (512, 512), (100, 100, 100)))
    is_white = bool((picture == 1).all())
    assert is_white == (part in {0, 16, 18, 7, 8, 9, 14, 15})
    assert is_white or (picture - 100 / 255).abs().max() < 1e-6


def test_identity_is_all_that_an_encoder_reads(analyser, tmp_path):
    picture = image((320, 192, 32, (255, 120, 120)))
    face = analyser.find(picture)
    identity = analyser.identify(picture, face)
    assert np.array_equal(identity.arcface, analyser.embed(picture, face))
    assert np.linalg.norm(identity.clip_pooled) == pytest.approx(1, abs=1e-5)
    assert [part.shape for part in identity.clip_hidden] == [(17, 64)] * 5
    # By hand: the crop, grey and white, through the tower.
    tower = small_tower(tmp_path / "again.safetensors")
    features = tower.encode(tower.preprocess(analyser.eva_input(analyser.align(picture, face).image)))
    assert np.abs(identity.clip_hidden[4] - features.hidden[4][0].numpy()).max() < 1e-5
    pooled = features.pooled[0].numpy()
    assert np.abs(identity.clip_pooled - pooled / np.linalg.norm(pooled)).max() < 1e-5


def test_nobody_can_change_what_is_remembered(analyser):
    picture = image((320, 192, 32, WHITE))
    face = analyser.find(picture)
    for array in (analyser.embed(picture, face), analyser.identify(picture, face).clip_hidden[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# --- what is remembered -----------------------------------------------------------------------------------------------


def everything(analyser, picture, **choice):
    face = analyser.find(picture, **choice)
    analyser.landmarks_68(picture, face)
    analyser.parse(analyser.align(picture, face).image)
    return analyser.identify(picture, face)


def test_the_second_request_with_a_face_runs_no_network(analyser):
    first = everything(analyser, image((320, 192, 32, WHITE)))
    calls = dict(analyser.calls)
    assert calls == {"detector": 1, "landmarks": 1, "recognition": 1, "parser": 1, "clip": 1}
    again = everything(analyser, image((320, 192, 32, WHITE)))
    assert dict(analyser.calls) == calls
    assert again is first
    everything(analyser, image((320, 192, 32, (255, 255, 254))))
    assert analyser.calls["clip"] == 2, "one pixel more or less is another picture"


def test_another_face_of_the_same_picture_is_worked_out_and_the_detector_is_not_run_again(analyser):
    picture = image((128, 128, 32, WHITE), (448, 320, 32, (0, 0, 255)))
    one, other = (everything(analyser, picture, index=index) for index in (0, 1))
    assert np.abs(one.arcface - other.arcface).max() > 0.1
    assert analyser.calls == {"detector": 1, "landmarks": 2, "recognition": 2, "parser": 2, "clip": 2}


def test_the_size_belongs_to_the_key():
    assert faces.fingerprint(Image.new("RGB", (4, 9))) != faces.fingerprint(Image.new("RGB", (9, 4)))


def test_the_oldest_picture_is_forgotten(analyser):
    def shown(number):
        return image((320, 192, 32, (255, 255, number)))

    for number in range(faces.REMEMBERED_PICTURES):
        analyser.detect(shown(number))
    analyser.detect(shown(0))
    analyser.detect(shown(200))
    assert analyser.calls["detector"] == faces.REMEMBERED_PICTURES + 1
    analyser.detect(shown(0))
    assert analyser.calls["detector"] == faces.REMEMBERED_PICTURES + 1, "what was asked for lately stays"
    analyser.detect(shown(1))
    assert analyser.calls["detector"] == faces.REMEMBERED_PICTURES + 2


def test_threads_that_ask_at_once_share_one_pass(analyser):
    picture, seen = image((320, 192, 32, WHITE)), []
    start = threading.Barrier(6)

    def ask():
        start.wait()
        seen.append(everything(analyser, picture))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 6 and all(one is seen[0] for one in seen)
    assert analyser.calls["clip"] == analyser.calls["detector"] == 1


# --- packs and files --------------------------------------------------------------------------------------------------


def spec(id="antelopev2", kind="other", **more):
    return ModelSpec(id, id, kind, "other", Licence("MIT", "https://example.org", commercial=True), 0, **more)


def test_a_nested_pack_is_opened(tmp_path):
    analyser = faces.load(spec(), networks.make_pack(tmp_path / "antelopev2", nested=True), CPU)
    assert len(analyser.detect(image((320, 192, 32, WHITE)))) == 1
    assert analyser.bytes == sum(
        (tmp_path / "antelopev2" / "antelopev2" / name).stat().st_size
        for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx", "1k3d68.onnx")
    )


@pytest.mark.parametrize("name", ["scrfd_10g_bnkps.onnx", "glintr100.onnx", "1k3d68.onnx"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_file_is_named(pack, tmp_path, name, damage):
    folder = tmp_path / "pack"
    shutil.copytree(pack, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"no model" * 99}[damage])
    with pytest.raises(InvalidRequest, match=name):
        faces.load(spec(), folder, CPU)


@pytest.mark.parametrize(
    ("name", "lacking"), [("scrfd_10g_bnkps.onnx", "detection"), ("glintr100.onnx", "recognition")]
)
def test_a_missing_file_is_named_by_what_it_is_for(pack, tmp_path, name, lacking):
    folder = tmp_path / "pack"
    shutil.copytree(pack, folder)
    (folder / name).unlink()
    with pytest.raises(InvalidRequest, match=f"lacks the model for {lacking}"):
        faces.load(spec(), folder, CPU)


def test_an_empty_folder_and_two_models_for_one_thing_are_refused(pack, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="no detector"):
        faces.load(spec(), tmp_path / "empty", CPU)
    folder = tmp_path / "pack"
    shutil.copytree(pack, folder)
    shutil.copy(folder / "glintr100.onnx", folder / "w600k_r50.onnx")
    with pytest.raises(InvalidRequest, match="two models for recognition"):
        faces.load(spec(), folder, CPU)


def test_what_a_pack_lacks_is_said_when_it_is_needed(tmp_path, pack):
    folder = tmp_path / "pack"
    shutil.copytree(pack, folder)
    (folder / "1k3d68.onnx").unlink()
    analyser = faces.load(spec(), folder, CPU)
    picture = image((320, 192, 32, WHITE))
    face = analyser.find(picture)
    for ask, purpose in (
        (lambda: analyser.landmarks_68(picture, face), "68 points"),
        (lambda: analyser.parse(Image.new("RGB", (512, 512))), "parts of a face"),
        (lambda: analyser.identify(picture, face), "image encoder"),
    ):
        with pytest.raises(InvalidRequest, match=purpose):
            ask()
    analyser.embed(picture, face)


# --- facexlib's networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobile0.25", "resnet50"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_retinaface_is_told_apart_by_its_keys(tmp_path, name, prefix):
    file = tmp_path / "retinaface.safetensors"
    networks.random_retinaface(file, name, prefix)
    detector = faces_facexlib.open_alignment(file)
    assert detector.network.cfg["name"] == {"mobile0.25": "mobilenet0.25", "resnet50": "Resnet50"}[name]
    assert detector.detect(np.zeros((64, 96, 3), dtype=np.uint8), lambda name: None) == []


def test_retinaface_of_the_published_size_has_the_published_number_of_weights():
    with torch.device("meta"):
        network = faces_facexlib.AlignmentNetwork("resnet50")
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(27.29e6, rel=0.01)
    keys = set(network.state_dict())
    assert {"body.layer4.2.conv3.weight", "ssh1.conv7x7_3.0.weight", "LandmarkHead.2.conv1x1.bias"} <= keys


def test_our_anchors_and_boxes_are_facexlibs(tmp_path):
    from facexlib.detection.retinaface import RetinaFace
    from facexlib.detection.retinaface_utils import PriorBox

    file = tmp_path / "retinaface.safetensors"
    networks.random_retinaface(file, blind=False)
    theirs = RetinaFace("mobile0.25", device="cpu")
    theirs.load_state_dict(load_file(file))
    ours = faces_facexlib.anchors(150, 203, "cpu")
    assert torch.allclose(ours, PriorBox(theirs.cfg, image_size=(150, 203)).forward(), atol=1e-6)
    picture = np.random.default_rng(0).integers(0, 256, (150, 203, 3), dtype=np.uint8)
    detector = faces_facexlib.open_alignment(file)
    with torch.no_grad():
        scores = theirs(torch.from_numpy(picture).permute(2, 0, 1)[None].float() - theirs.mean_tensor)[1][0, :, 1]
    threshold = scores.sort().values[-200].item()
    assert scores.max() > threshold
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(faces_facexlib, "SCORE", threshold)
        found = detector.detect(picture, lambda name: None)
        expected = theirs.detect_faces(picture, threshold)
    assert len(found) == len(expected) >= 2
    for face, row in zip(found, expected, strict=True):
        assert np.abs(np.array([*face.box, face.score]) - row[:5]).max() < 1e-3
        assert np.abs(face.keypoints.ravel() - row[5:]).max() < 1e-3


def test_the_face_that_was_chosen_is_lined_up_and_never_the_one_in_the_middle(analyser):
    class Alignment:
        tried = ""
        network = torch.nn.Identity()

        def __init__(self, *seen):
            self.seen = seen

        def detect(self, bgr, count):
            count("alignment")
            return list(self.seen)

    def seen(x, y):
        return Face(
            (x - 45, y - 45, x + 45, y + 45), 0.99, np.array(networks.KEYPOINTS, dtype=np.float32) * 30 + [x, y]
        )

    picture = image((320, 320, 32, WHITE), (64, 96, 32, (0, 0, 255)))
    aside = analyser.find(picture, box=(60, 90, 100, 130))
    both = faces.FaceAnalyser(analyser._pack, Alignment(seen(320, 320), seen(66, 97)))
    assert np.abs(both.align(picture, aside).keypoints.mean(axis=0) - [66, 97]).max() < 8
    assert both.calls == {"alignment": 1}
    middle_only = faces.FaceAnalyser(analyser._pack, Alignment(seen(320, 320)))
    with pytest.raises(NoFaceFound, match="cannot be lined up") as caught:
        middle_only.align(picture, aside)
    assert caught.value.details["faces"][0]["box"][0] == round(aside.box[0])
    with pytest.raises(NoFaceFound, match="cannot be lined up"):
        faces.FaceAnalyser(analyser._pack, Alignment()).align(picture, aside)


@pytest.mark.parametrize("part", [1, 10, 17])
def test_bisenet_is_told_apart_and_asked_at_512(tmp_path, part):
    networks.biased_bisenet(tmp_path / "parsing_bisenet.safetensors", part)
    parser = faces_facexlib.open_parser(tmp_path / "parsing_bisenet.safetensors")
    assert parser.size == 512
    parts = parser.parse(torch.rand(3, 512, 512))
    assert parts.shape == (512, 512) and parts.dtype == np.uint8
    assert set(np.unique(parts)) <= {0, part} and (parts == part).mean() > 0.3


def test_bisenet_gets_imagenets_mean_and_the_crop_is_red_green_blue(tmp_path):
    networks.biased_bisenet(tmp_path / "parsing_bisenet.safetensors", 1)
    parser = faces_facexlib.open_parser(tmp_path / "parsing_bisenet.safetensors")
    seen = []
    parser.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    parser.parse(torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1).expand(3, 512, 512))
    assert seen[0].abs().max() < 1e-6


def test_a_narrow_parsenet_is_built_from_its_shapes_and_sees_left_and_right(parts):
    parser = faces_facexlib.open_parser(parts / "parsing.safetensors")
    assert parser.size == 128 and sum(p.numel() for p in parser.network.parameters()) < 200_000
    crop = torch.zeros(3, 512, 512)
    crop[:, :, 256:] = 1
    seen = parser.parse(crop)
    assert (seen[:, :230] == 0).all() and (seen[:, 282:] == 1).all()


def test_the_published_parsenet_counts_otherwise_and_is_translated(tmp_path):
    networks.parsenet_by_lightness(tmp_path / "parsing_parsenet.safetensors", 13, 0, published=True)
    parser = faces_facexlib.open_parser(tmp_path / "parsing_parsenet.safetensors")
    assert parser.size == 512
    assert sum(parameter.numel() for parameter in parser.network.parameters()) == pytest.approx(21.32e6, rel=0.01)
    assert (parser.parse(torch.ones(3, 512, 512)) == 17).all()
    table = faces_facexlib.FROM_CELEBAMASK
    assert sorted(table) == list(range(19))
    pairs = {2: 10, 3: 6, 4: 4, 7: 3, 13: 17, 14: 18, 15: 9, 16: 15, 17: 14, 18: 16}
    assert {theirs: table[theirs] for theirs in pairs} == pairs


@pytest.mark.parametrize(
    "file", ["retinaface_resnet50.safetensors", "parsing_bisenet.safetensors", "parsing.safetensors"]
)
@pytest.mark.parametrize("damage", ["garbage", "another network", "a key less"])
def test_a_damaged_network_of_facexlib_is_named(pack, tmp_path, file, damage):
    if damage == "garbage":
        (tmp_path / file).write_bytes(b"no tensors")
    elif damage == "another network":
        save_file({"weight": torch.zeros(3)}, tmp_path / file)
    else:
        makers = {
            "retinaface_resnet50.safetensors": networks.random_retinaface,
            "parsing_bisenet.safetensors": lambda path: networks.biased_bisenet(path, 1),
            "parsing.safetensors": lambda path: networks.parsenet_by_lightness(path, 1, 0),
        }
        makers[file](tmp_path / file)
        weights = load_file(tmp_path / file)
        del weights[sorted(key for key in weights if "num_batches" not in key)[-1]]
        save_file(weights, tmp_path / file)
    with pytest.raises(InvalidRequest, match=file):
        faces.open_analyser([pack, tmp_path], CPU)


def test_opening_a_pack_downloads_nothing(pack, parts, monkeypatch):
    import socket

    def refuse(*arguments, **named):
        raise AssertionError("a face model asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    analyser = faces.open_analyser([pack, parts], CPU)
    picture = image((320, 192, 32, WHITE))
    analyser.embed(picture, analyser.find(picture))
