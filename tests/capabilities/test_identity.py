"""Wishes about people: whose face, where, how alike; what a swap and an edit leave as it was; what null fields mean.

The base, the adapters and the networks are real and tiny; what face models would find is drawn, so that every box and
point is known.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from app.core import ecomid, ecommerce, further_controls, instantid, ip_adapter, pulid
from app.core.attachments import FaceReference
from app.core.catalog import find
from app.core.drawing import draw_each
from app.core.identity import Placement, likeness
from app.core.submission import Submission
from app.errors import InvalidRequest, NoFaceFound, WeightsMissing
from app.imaging.detected_faces import Face, choose_face
from app.imaging.soft_edges import soft_edges
from app.models.catalog import CATALOG
from app.models.face_stack import FaceFeatures
from app.models.library import ModelLibrary
from app.models.spec import Recommended
from tests.capabilities.studio import Studio, block, noise, pixels
from tests.models.test_identity_combining import write_companions
from tests.models.test_identity_sharing import write_models
from tests.parity.shelf import GivenRuntime, Shelf

COMMON = {"model": "base", "num_inference_steps": 2, "guidance_scale": 3.0, "scheduler": "DDIM", "seed": 5}
PULID = {"pulid_model": "pulid", "mode": "standard", "id_scale": 1.0, "num_zero": 2, "ortho": "ortho_v2"}
SPECS = {spec.id: spec for spec in CATALOG}


def drawn_face(size):
    """The face that every picture shows: in the middle, half as wide as the picture."""
    width, height = size
    box = (width * 0.25, height * 0.2, width * 0.75, height * 0.8)
    points = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.5], [0.42, 0.65], [0.58, 0.65]]) * size
    return Face(box, 0.9, points.astype(np.float32))


class DrawnFaces:
    """Face models whose every answer is known; a picture of one colour shows nobody, and each picture is somebody."""

    thresholds = (0.5, 0.3)

    def all(self, image):
        return [drawn_face(image.size)] if len(set(image.convert("L").tobytes())) > 1 else []

    def find(self, wish):
        return choose_face(self.all(wish.image), index=wish.index, box=wish.box, smallest=8)

    def points(self, wish):
        self.find(wish)
        turn = np.linspace(0, 2 * np.pi, 68, endpoint=False)
        points = np.stack([np.cos(turn) * 20 + 40, np.sin(turn) * 20 + 40, np.zeros(68)], axis=1)
        points[36:42, :2], points[42:48, :2], points[30] = (30, 35), (50, 35), (40, 45, 12)
        points[48, :2], points[54, :2] = (33, 55), (47, 55)
        points[0], points[16] = (20, 40, -15), (60, 40, -15)
        return points

    def vector(self, wish):
        self.find(wish)
        return np.asarray(wish.image.convert("L").resize((32, 16)), np.float32).reshape(-1) - 128

    def parts(self, wish):
        face = self.find(wish)
        left, top, right, bottom = face.box
        rows, columns = np.mgrid[0:512, 0:512]
        inside = ((columns - 256) / 180) ** 2 + ((rows - 256) / 220) ** 2 < 1
        across, down = 512 / (right - left), 512 / (bottom - top)
        return np.where(inside, 1, 0).astype(np.uint8), np.array([[across, 0, -left * across], [0, down, -top * down]])

    def arcface(self, wish):
        return torch.from_numpy(self.vector(wish) / 64)

    def identify(self, wish):
        seed = int(np.abs(self.vector(wish)).sum())
        source = torch.Generator().manual_seed(seed)
        pooled = torch.nn.functional.normalize(torch.randn(768, generator=source), dim=-1)
        hidden = tuple(torch.randn(17, 1024, generator=source) for _ in range(5))
        return FaceFeatures(self.arcface(wish), pooled, hidden)


class DrawnRuntime(GivenRuntime):
    """The real runtime over tiny models with such faces; `drawings` are the keypoint pictures of its calls."""

    @contextmanager
    def face_reader(self, model, **more):
        yield self.given


@pytest.fixture(scope="module")
def drawn_runtime(tmp_path_factory, one_thread):
    from app.models.device import TorchDevice

    shelf = Shelf(tmp_path_factory.mktemp("people"))
    write_models(shelf)
    write_companions(shelf)
    runtime = DrawnRuntime(TorchDevice("cpu", "float32"), shelf, model_memory_bytes=None, parked_memory_bytes=None)
    runtime.given = DrawnFaces()
    yield runtime
    runtime.close()


@pytest.fixture
def people(drawn_runtime, tmp_path):
    """A run's context over these models."""
    return Studio(tmp_path, drawn_runtime)


def test_pulid_draws_each_picture_as_alone_and_says_how_alike(people):
    face, other = people.put(noise((64, 64), 1)), people.put(noise((64, 64), 2))
    wish = {**COMMON, **PULID, "prompt": "a red car", "width": 64, "height": 64}
    both = pulid.generate(pulid.PulidGenerateRequest(**wish, face_image=face, num_images_per_prompt=2), people)
    alone = pulid.generate(pulid.PulidGenerateRequest(**wish | {"seed": 6}, face_image=face), people)
    somebody = pulid.generate(pulid.PulidGenerateRequest(**wish, face_image=other), people)
    assert both.seeds == [5, 6]
    assert np.abs(pixels(both.images[1]) - pixels(alone.images[0])).max() <= 1
    assert np.abs(pixels(both.images[0]) - pixels(somebody.images[0])).max() > 2
    alike = both.data["identity_similarity"]
    assert len(alike) == 2 and all(-1 <= value <= 1 for value in alike)
    assert people.steps_reported()[-1][0] > 0


def test_a_picture_in_which_the_face_cannot_be_known_is_kept():
    """Nobody, or somebody too small: likeness is not told, and nothing is lost."""
    reader = DrawnFaces()
    somebody, nobody, tiny = noise((64, 64), 1), Image.new("RGB", (64, 64), "gray"), noise((12, 12), 1)
    told = likeness(reader, FaceReference(somebody), [somebody, nobody, tiny])
    assert told == {"identity_similarity": [1.0, None, None], "identity_thresholds": [0.5, 0.3]}


def test_several_pictures_of_one_person_act_together(people):
    one, two = people.put(noise((64, 64), 1)), people.put(noise((64, 64), 2))
    wish = {**COMMON, **PULID, "prompt": "a red car", "width": 64, "height": 64, "face_image": one}
    first = pulid.generate(pulid.PulidGenerateRequest(**wish), people)
    both = pulid.generate(pulid.PulidGenerateRequest(**wish, face_images=(two,)), people)
    assert np.abs(pixels(first.images[0]) - pixels(both.images[0])).max() > 2


FACES_WITH_CONTROLS = {
    "pulid": (pulid.PulidGenerateRequest, pulid.generate, PULID),
    "instantid": (instantid.InstantIdGenerateRequest, instantid.generate, {"instantid_model": "instantid"}),
    "ecomid": (ecomid.EcomIdGenerateRequest, ecomid.generate, {"ecomid_model": "ecomid", "id_scale": 0.5}),
}


@pytest.mark.parametrize("kind", FACES_WITH_CONTROLS)
def test_further_controlnets_act_beside_the_face_by_weight_and_time(people, kind):
    """Each picture has its own network, weight and window; a network without weight leaves the face's picture."""
    request, run, more = FACES_WITH_CONTROLS[kind]
    face, edges, depth = (people.put(noise((64, 64), seed)) for seed in (1, 8, 9))
    wish = {**COMMON, **more, "prompt": "a red car", "width": 64, "height": 64, "face_image": face}

    def made(*nets, **times):
        pictures = (edges, depth)[: len(nets)]
        listed = [{"model": "edges", "weight": weight} for weight in nets]
        return pixels(run(request(**wish, control_images=pictures, controlnets=listed, **times), people).images[0])

    alone = made()
    assert np.abs(made(0.0) - alone).max() <= 1
    one, both = made(0.8), made(0.8, 0.8)
    assert np.abs(one - alone).max() > 2 and np.abs(both - one).max() > 2
    assert np.abs(made(0.8, 0.8, control_guidance_start=(0, 0.9), control_guidance_end=(1, 1)) - one).max() <= 1


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"controlnets": ()}, "1 control pictures need as many ControlNets, not 0"),
        ({"control_images": ()}, "0 control pictures need as many ControlNets, not 1"),
        ({"control_guidance_end": (0.5, 0.6)}, "1 control pictures need as many of control_guidance_end, not 2"),
        ({"control_guidance_start": (0.5,), "control_guidance_end": (0.5,)}, r"would end \(0.5\) before it starts"),
    ],
)
def test_control_pictures_and_their_networks_belong_together(fields, told):
    wish = {"control_images": ("b" * 26,), "controlnets": ({"model": "edges"},)} | fields
    request = instantid.InstantIdGenerateRequest(prompt="a car", face_image="a" * 26, **wish)
    with pytest.raises(InvalidRequest, match=told):
        further_controls.require_controls(request)
    for name in ("pulid/generate", "instantid/generate", "ecomid/generate", "ecomid/multi-pose"):
        assert find(name).check is further_controls.require_controls


@pytest.mark.parametrize("way", ["generate", "edit", "masked edit"])
def test_pictures_serve_as_a_prompt_beside_a_face(people, way):
    person, style = people.put(noise((64, 64), 1)), people.put(noise((64, 48), 7))
    wish = {**COMMON, **PULID, "prompt": "a red car", "face_image": person}
    if way == "generate":
        request, run = pulid.PulidGenerateRequest, pulid.generate
        wish |= {"width": 64, "height": 64}
    else:
        request, run = pulid.PulidEditRequest, pulid.edit
        wish |= {"image": people.put(noise((64, 64), 3)), "strength": 1.0}
        if way == "masked edit":
            wish["mask_image"] = people.put(block((64, 64), (8, 8, 56, 56)), "mask")
    alone = pixels(run(request(**wish), people).images[0])
    prompted = {"ip_adapter_images": (style,), "ip_adapter_model": "ip-adapter"}
    made = {scale: run(request(**wish, **prompted, ip_adapter_scale=scale), people).images[0] for scale in (0.0, 1.0)}
    assert np.abs(pixels(made[0.0]) - alone).max() <= 1
    assert np.abs(pixels(made[1.0]) - alone).max() > 2


def test_an_addition_counts_only_where_its_pictures_are_there(tmp_path, runtime):
    """The embedded PuLID serves; where it comes without an IP-Adapter, that matters to who wants one alone."""
    library = ModelLibrary(tmp_path / "home", catalog=tuple(row for row in CATALOG if row.id != "pocket-ip-adapter"))
    studio = Studio(tmp_path, runtime, library)
    door = Submission(studio.storage, library, SimpleNamespace(get=lambda reference: None))
    capability = find("pulid/generate")
    wish = {"prompt": "a car", "face_image": studio.put(noise((64, 64)))}
    prepared = door.prepare(capability, door.read(capability, wish), "")
    assert (prepared.model, prepared.request["ip_adapter_model"]) == ("pocket", "auto")
    assert prepared.request["pulid_model"] == "pocket-pulid"
    wanting = door.read(capability, wish | {"ip_adapter_images": [studio.put(noise((64, 64), 7))]})
    with pytest.raises(WeightsMissing, match="ip-adapter"):
        door.prepare(capability, wanting, "")
    whole = Submission(studio.storage, ModelLibrary(tmp_path / "home"), SimpleNamespace(get=lambda reference: None))
    assert whole.prepare(capability, wanting, "").request["ip_adapter_model"] == "pocket-ip-adapter"


@pytest.mark.parametrize("kind", ["pulid", "instantid"])
def test_a_swap_keeps_every_byte_outside_the_faces_parts(people, kind):
    """A picture that the model cannot take as it is: odd sides, larger than the model's own."""
    picture = noise((203, 151), 3).resize((203, 151))
    target, face = people.put(picture), people.put(noise((64, 64), 1))
    if kind == "pulid":
        request = pulid.PulidSwapRequest(**COMMON, **PULID, image=target, face_image=face, strength=1.0)
        result = pulid.swap_face(request, people)
    else:
        request = instantid.InstantIdSwapRequest(
            **COMMON, instantid_model="instantid", image=target, face_image=face, strength=1.0
        )
        result = instantid.swap_face(request, people)
    left, top, right, bottom = drawn_face(picture.size).box
    rows, columns = np.mgrid[0:151, 0:203]
    middle, size = ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
    inside = ((columns + 0.5 - middle[0]) / (size[0] * 180 / 256)) ** 2 + (
        (rows + 0.5 - middle[1]) / (size[1] * 220 / 256)
    ) ** 2 < 1.1
    change = np.abs(pixels(result.images[0]) - pixels(picture)).max(-1)
    assert result.images[0].size == picture.size
    assert change[~inside].max() == 0
    assert (change[inside] > 4).mean() > 0.5
    assert result.data["face"] == [round(edge) for edge in drawn_face(picture.size).box]
    assert result.data["identity_similarity"][0] is not None


def test_an_edit_changes_the_picture_and_keeps_its_own_face_as_the_reference(people):
    picture = noise((64, 64), 3)
    request = pulid.PulidEditRequest(**COMMON, **PULID, prompt="a red car", image=people.put(picture), strength=0.9)
    result = pulid.edit(request, people)
    assert result.images[0].size == picture.size
    assert np.abs(pixels(result.images[0]) - pixels(picture)).max() > 8


def test_an_edit_with_a_mask_keeps_every_byte_outside_it(people):
    picture, mask = noise((96, 96), 3), block((96, 96), (20, 20, 70, 70))
    request = pulid.PulidEditRequest(
        **COMMON, **PULID, prompt="a red car", image=people.put(picture), mask_image=people.put(mask, "mask"),
        strength=1.0,
    )  # fmt: skip
    change = np.abs(pixels(pulid.edit(request, people).images[0]) - pixels(picture)).max(-1)
    white = np.asarray(mask) > 0
    assert change[~white].max() == 0 and change[white].max() > 8


def test_a_mask_that_misses_the_face_is_refused(people):
    picture, mask = noise((96, 96), 3), block((96, 96), (0, 0, 12, 12))
    request = pulid.PulidEditRequest(
        **COMMON, **PULID, prompt="a red car", image=people.put(picture), mask_image=people.put(mask, "mask")
    )
    with pytest.raises(InvalidRequest, match="mask misses the face"):
        pulid.edit(request, people)


def test_a_picture_without_a_face_is_refused(people):
    request = pulid.PulidGenerateRequest(
        **COMMON, **PULID, prompt="a car", face_image=people.put(Image.new("RGB", (64, 64), "gray"))
    )
    with pytest.raises(NoFaceFound):
        pulid.generate(request, people)


@pytest.fixture
def drawings(monkeypatch):
    """The keypoint pictures that EcomID's network was handed."""
    seen = []

    def spy(*arguments, **more):
        seen.extend(more["control_image"])
        return draw_each(*arguments, **more)

    monkeypatch.setattr(ecomid, "draw_each", spy)
    return seen


def nose_in(drawing):
    """The middle of the blue point."""
    rows, columns = np.nonzero((np.asarray(drawing) == (0, 0, 255)).all(-1))
    return columns.mean(), rows.mean()


def test_multi_pose_draws_each_pose_and_a_sheet_of_them(people, drawings):
    request = ecomid.EcomIdMultiPoseRequest(
        **COMMON, ecomid_model="ecomid", id_scale=0.5, prompt="a red car", face_image=people.put(noise((64, 64), 1)),
        poses=("front", "left", "up"), num_images_per_prompt=2, width=192, height=192,
    )  # fmt: skip
    result = ecomid.multi_pose(request, people)
    assert result.data["poses"] == ["front", "front", "left", "left", "up", "up"]
    assert len(result.images) == 7 and result.data["grid"] == 6 and len(result.seeds) == 7
    assert len(result.data["identity_similarity"]) == 6
    front, left, up = map(nose_in, drawings)
    assert left[0] < front[0] - 4 and up[1] < front[1] - 4
    assert np.abs(pixels(result.images[0]) - pixels(result.images[2])).max() > 0
    assert result.images[6].width > 3 * 192 - 1
    assert people.steps_reported()[-1] == (12, 12)


def test_given_keypoints_stand_where_they_were_given(people, drawings):
    """The drawing that the network reads has its nose point there."""
    points = "30,30 90,30 60,60 36,96 84,96"
    wish = {**COMMON, "ecomid_model": "ecomid", "id_scale": 0.5, "prompt": "a car", "width": 192, "height": 192}
    face = people.put(noise((64, 64), 1))
    given = ecomid.generate(ecomid.EcomIdGenerateRequest(**wish, face_image=face, keypoints=points), people)
    own = ecomid.generate(ecomid.EcomIdGenerateRequest(**wish, face_image=face), people)
    assert np.abs(np.subtract(nose_in(drawings[0]), (60, 60))).max() < 2
    assert np.abs(np.subtract(nose_in(drawings[1]), (96, 96))).max() < 2
    assert np.abs(pixels(given.images[0]) - pixels(own.images[0])).max() > 0
    with pytest.raises(InvalidRequest, match="outside the result"):
        request = ecomid.EcomIdGenerateRequest(**wish, face_image=face, keypoints=points.replace("90,30", "200,30"))
        ecomid.generate(request, people)


def product():
    """A red ring on white, and its mask."""
    image, mask = Image.new("RGB", (80, 60), "white"), Image.new("L", (80, 60))
    for canvas, fill in ((image, (200, 20, 30)), (mask, 255)):
        ImageDraw.Draw(canvas).ellipse((20, 10, 60, 50), fill=fill)
    return image, mask


def test_a_product_keeps_its_outline_by_a_network_where_one_is_installed(people):
    """With nobody and with a person; where none is installed the answer says so and names the line that fetches it."""
    image, mask = product()
    wish = {
        **COMMON, "ecomid_model": "ecomid", "id_scale": 0.5, "prompt": "a car", "shop": "pinterest",
        "product_image": people.put(image), "product_mask": people.put(mask, "mask"),
    }  # fmt: skip
    made = {}
    for name, more in {
        "without": {"softedge_model": None},
        "with": {"softedge_model": "edges"},
        "off": {"softedge_model": "edges", "softedge_scale": 0},
        "person": {"softedge_model": None, "face_image": people.put(noise((64, 64), 1))},
        "person with": {"softedge_model": "edges", "face_image": people.put(noise((64, 64), 1))},
    }.items():
        made[name] = ecommerce.run(ecommerce.EcommerceRequest(**wish | more), people)
    pull = "eis models pull controlnet-softedge-sdxl"
    assert {name for name, result in made.items() if any(pull in note for note in result.notes)} == {
        "without", "person",
    }  # fmt: skip
    seen = {name: pixels(result.images[0]) for name, result in made.items()}
    assert np.abs(seen["off"] - seen["without"]).max() == 0
    assert np.abs(seen["with"] - seen["without"]).max() > 2
    assert np.abs(seen["person with"] - seen["person"]).max() > 2
    assert SPECS["controlnet-softedge-sdxl"].tasks == ("controlnet-softedge",)
    assert find("ecomid/ecommerce").additions_if_installed == {"softedge_model": "controlnet-softedge"}


def test_soft_edges_show_the_things_outline_and_inner_edges_and_nothing_of_the_ground():
    """A square with a stripe on a ground of stripes."""
    ground = Image.fromarray(np.tile(np.array([[0, 0, 0, 255, 255, 255]], np.uint8), (120, 20))).convert("RGB")
    mask = Image.new("L", ground.size)
    mask.paste(255, (30, 30, 90, 90))
    ground.paste((200, 200, 200), (30, 30, 90, 90))
    ground.paste((60, 60, 60), (55, 30, 60, 90))
    drawn = np.asarray(soft_edges(ground, mask)).astype(int)
    assert drawn[:20].max() == drawn[:, 100:].max() == 0
    assert drawn[60, 29:32].max() > 150 and drawn[60, 54:62].max() > 100
    assert drawn[40:80, 40:46].max() < 30
    # The outline of a black thing on black is one all the same.
    assert np.asarray(soft_edges(Image.new("RGB", ground.size), mask))[60, 29:32].max() > 150


@pytest.mark.parametrize("with_person", [False, True])
def test_a_product_keeps_its_own_pixels_on_a_new_scene(people, with_person):
    """At the shop's size, whether or not somebody is shown with it; the mask is found by itself."""
    image, _ = product()
    more = {"face_image": people.put(noise((64, 64), 1))} if with_person else {}
    request = ecommerce.EcommerceRequest(
        **COMMON, ecomid_model="ecomid", id_scale=0.5, prompt="a car", product_image=people.put(image),
        shop="pinterest", product_scale=0.5, product_y=0.7, softedge_model=None, **more,
    )  # fmt: skip
    result = ecommerce.run(request, people)
    assert result.images[0].size == (1000, 1500) and result.data["size"] == [1000, 1500]
    left, top, right, bottom = result.data["product_box"]
    assert max(right - left, bottom - top) == 500 and abs((top + bottom) / 2 - 1050) < 2
    seen = pixels(result.images[0])
    inner = seen[top + 60 : bottom - 60, left + 150 : right - 150]
    assert np.abs(inner - (200, 20, 30)).max() == 0
    assert seen[:top].std() > 2
    assert "even background" in result.notes[0]
    assert ("identity_similarity" in result.data) is with_person


def test_a_mask_that_shows_no_product_is_refused(people):
    image, _ = product()
    door = SimpleNamespace(mask=lambda reference: Image.new("L", image.size, 255))
    request = ecommerce.EcommerceRequest(
        **COMMON, prompt="a car", product_image="a" * 26, product_mask="b" * 26, ecomid_model="ecomid"
    )
    with pytest.raises(InvalidRequest, match="white on the product alone"):
        ecommerce.check(request, door)


def test_a_placement_fits_whole_into_another_size():
    placement = Placement(np.array([[0.0, 0.0], [100.0, 50.0]]), (10, 10, 90, 40), (100, 50))
    moved = placement.on((200, 200))
    assert moved.points.tolist() == [[0, 50], [200, 150]]
    assert moved.box == (20, 70, 180, 130)
    assert moved.region().getpixel((100, 100)) == 255 and moved.region().getpixel((100, 60)) == 0


def test_instantid_follows_a_pose_picture_and_may_act_around_the_face_only(people):
    wish = {**COMMON, "instantid_model": "instantid", "prompt": "a car", "width": 64, "height": 64}
    face, pose = people.put(noise((64, 64), 1)), people.put(noise((64, 128), 2))
    made = [
        instantid.generate(instantid.InstantIdGenerateRequest(**wish, face_image=face, **more), people).images[0]
        for more in ({}, {"pose_image": pose}, {"enhance_non_face_region": False})
    ]
    assert np.abs(pixels(made[0]) - pixels(made[1])).max() > 2
    assert np.abs(pixels(made[0]) - pixels(made[2])).max() > 2


def base(steps, *, embedded=None):
    return SimpleNamespace(recommended=Recommended(steps, 2.0, "DDIM", 128, 128), embedded=embedded)


@pytest.mark.parametrize(
    ("mode", "steps", "expected"),
    [
        (None, 30, {"mode": "standard", "num_inference_steps": 30, "guidance_scale": 7.0, "num_zero": 20}),
        (None, 4, {"mode": "lightning", "num_inference_steps": 4, "guidance_scale": 1.2, "num_zero": 8}),
        ("fidelity", 30, {"num_inference_steps": 50, "guidance_scale": 5.0, "id_scale": 1.0, "num_zero": 8}),
    ],
)
def test_pulids_modes_say_what_null_means(mode, steps, expected):
    advised = pulid.advise({"mode": mode}, base(steps), {"pulid_model": SPECS["pulid"]})
    assert expected.items() <= advised.items()
    assert advised["ortho"] == "ortho_v2"


def test_an_embedded_base_keeps_its_own_scheduler_and_guidance():
    advised = pulid.advise({"mode": "fidelity"}, base(16, embedded="x"), {"pulid_model": SPECS["pulid"]})
    assert (advised["scheduler"], advised["guidance_scale"], advised["num_inference_steps"]) == ("DDIM", 2.0, 50)


def test_weights_that_state_their_own_settings_keep_them():
    added = {"pulid_model": SPECS["pocket-pulid"]}
    advised = pulid.advise({"mode": None}, base(16, embedded="x"), added)
    assert (advised["id_scale"], advised["num_zero"], advised["ortho"]) == (1.0, 0, "off")


def test_what_lacks_is_named_with_the_line_that_fetches_it(tmp_path, library, runtime):
    """A base of the user's own and no PuLID: the wish is refused at the door."""
    studio = Studio(tmp_path, runtime, library)
    door = Submission(studio.storage, library, SimpleNamespace(get=lambda reference: None))
    capability = find("pulid/generate")
    wish = {"prompt": "a car", "model": "tiny-sdxl", "face_image": studio.put(noise((64, 64)))}
    with pytest.raises(WeightsMissing, match="eis models pull pulid"):
        door.prepare(capability, door.read(capability, wish), "")


def test_weights_and_masks_are_as_many_as_pictures():
    with pytest.raises(ValueError, match="2 pictures need as many weights, not 1"):
        ip_adapter.IpAdapterRequest(prompt="a car", ip_adapter_images=("a" * 26, "b" * 26), weights=(0.5,))
