"""Inpaint Anything from the door to the picture: without weights on a photo, through inpaint, and over REST."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from app.core.catalog import find
from app.errors import InvalidRequest, MaskMismatch, WeightsMissing
from app.imaging.segments import made_ready
from tests.api.serving import serving
from tests.capabilities.studio import noise, pixels

SIZE = (96, 64)
SEGMENT, REMOVE, FILL, BACKGROUND = (
    find(f"inpaint-anything/{name}") for name in ("segment", "remove", "fill", "replace-background")
)


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture
def scene():
    """A blue thing in front of a grey wall that grows lighter from left to right."""
    wall = np.tile(np.linspace(120, 200, SIZE[0]).astype(np.uint8)[None, :, None], (SIZE[1], 1, 3))
    picture = Image.fromarray(wall)
    ImageDraw.Draw(picture).ellipse((36, 20, 60, 44), fill=(20, 60, 200))
    return picture


@pytest.fixture
def thing():
    mask = Image.new("L", SIZE, 0)
    ImageDraw.Draw(mask).ellipse((36, 20, 60, 44), fill=255)
    return mask


def overlap(one, other):
    a, b = np.asarray(one.convert("L")) > 127, np.asarray(other) > 127
    return (a & b).sum() / (a | b).sum()


def test_a_point_is_answered_with_masks_that_a_mask_field_takes(run_capability, scene, thing):
    result = run_capability(SEGMENT, image=scene, points="48,32")
    assert result.data["segmenter"] == "grabcut" and "GrabCut" in result.notes[0]
    assert len(result.images) == len(result.data["masks"]) == 3
    assert max(overlap(image, thing) for image in result.images) > 0.9
    for told, image in zip(result.data["masks"], result.images, strict=True):
        assert told["score"] is None and tuple(told["box"]) == image.convert("L").getbbox()
    removed = run_capability(REMOVE, image=scene, mask_image=result.images[0].convert("L"))
    assert pixels(removed.images[0])[32, 48, 2] < 190


def test_masks_can_stand_in_the_answer_itself(run_capability, scene):
    result = run_capability(SEGMENT, image=scene, boxes="30,14,66,50", inline=True)
    pictures = run_capability(SEGMENT, image=scene, boxes="30,14,66,50").images
    assert result.images == []
    (told,) = result.data["masks"]
    content = base64.b64decode(told["mask"].removeprefix("data:image/png;base64,"))
    inline = Image.open(io.BytesIO(content), formats=["PNG"])
    assert inline.mode == "1" and inline.convert("RGB").tobytes() == pictures[0].tobytes()


def test_masks_are_grown_turned_round_and_softened_as_wished(run_capability, scene):
    (plain,) = run_capability(SEGMENT, image=scene, boxes="30,14,66,50").images
    wish = {"mask_grow": 3, "invert_mask": True, "mask_blur": 4}
    (ready,) = run_capability(SEGMENT, image=scene, boxes="30,14,66,50", **wish).images
    assert ready.convert("L").tobytes() == made_ready(plain.convert("L"), grow=3, invert=True, blur=4).tobytes()


def test_what_is_removed_gives_way_to_what_is_around_it_and_nothing_else_changes(run_capability, scene, thing):
    result = run_capability(REMOVE, image=scene, points="48,32")
    assert result.data["eraser"] == "opencv-inpaint" and result.data["segmenter"] == "grabcut"
    assert any("OpenCV's inpainting" in note for note in result.notes)
    after, before = pixels(result.images[0]), pixels(scene)
    hole = np.asarray(made_ready(thing, grow=12)) > 0
    assert np.array_equal(after[~hole], before[~hole])
    wall = before[0][None]
    assert np.abs(after - wall)[np.asarray(thing) > 0].mean() < 12, "the wall goes on behind it"


def test_the_parts_are_reported_and_a_cancelled_run_ends(run_capability, studio, scene, thing):
    run_capability(REMOVE, image=scene, mask_image=thing)
    assert studio.steps_reported() == [(0, 1), (1, 1)]


def test_filling_is_inpainting_with_the_mask_that_was_found(run_capability, thing):
    """Pixel for pixel what `inpaint` answers for the grown mask; outside it the picture's own bytes."""
    picture = noise(SIZE, 3)
    wish = {"model": "tiny-sd15", "prompt": "a cat", "seed": 5, "num_inference_steps": 2, "strength": 1.0}
    filled = run_capability(FILL, image=picture, mask_image=thing, **wish)
    plain = run_capability(find("inpaint"), image=picture, mask_image=made_ready(thing, grow=7), **wish)
    assert filled.images[0].tobytes() == plain.images[0].tobytes() and filled.seeds == [5]
    outside = np.asarray(made_ready(thing, grow=7)) == 0
    assert np.array_equal(pixels(filled.images[0])[outside], pixels(picture)[outside])


def test_the_background_is_what_inpaint_paints_around_the_thing(run_capability, thing):
    picture = noise(SIZE, 4)
    wish = {"model": "tiny-sd15", "prompt": "a beach", "seed": 6, "num_inference_steps": 2, "strength": 1.0}
    replaced = run_capability(BACKGROUND, image=picture, mask_image=thing, **wish)
    plain = run_capability(find("inpaint"), image=picture, mask_image=ImageChops.invert(thing), **wish)
    assert replaced.images[0].tobytes() == plain.images[0].tobytes()
    inside = np.asarray(thing) > 0
    assert np.array_equal(pixels(replaced.images[0])[inside], pixels(picture)[inside])


def test_the_wish_names_who_finds_the_thing_for_every_base(run_capability, studio, scene):
    wish = {"model": "tiny-sdxl", "prompt": "a cat", "seed": 1, "num_inference_steps": 1}
    result = run_capability(FILL, image=scene, points="48,32", **wish)
    assert result.data["segmenter"] == "grabcut" and result.data["mask"]["box"]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "one of mask_image, points and boxes"),
        ({"points": "96,10"}, "96,10 lies outside the picture of 96x64"),
        ({"points": "10,10", "negative_points": "3,64"}, "3,64 lies outside"),
        ({"boxes": "10,10,120,20"}, "reaches beyond the picture"),
        ({"points": "ten"}, "points"),
        ({"negative_points": "3,4"}, "points or boxes must say what is"),
        ({"points": "3,4", "boxes": "1,1,5,5;6,6,9,9"}, "one box at most"),
        ({"points": "3,4", "mask_image": Image.new("L", SIZE, 255)}, "leave out points"),
        ({"mask_image": Image.new("L", SIZE, 0)}, "no white part"),
    ],
)
def test_what_could_only_fail_is_refused_at_the_door(run_capability, scene, wish, said):
    with pytest.raises(InvalidRequest, match=said):
        run_capability(REMOVE, image=scene, **wish)


def test_a_mask_of_another_size_is_refused_with_both_sizes(run_capability, scene):
    with pytest.raises(MaskMismatch, match="50x50 pixels and the picture 96x64"):
        run_capability(REMOVE, image=scene, mask_image=Image.new("L", (50, 50), 255))


def test_everything_needs_a_model_and_the_line_that_fetches_one_is_named(run_capability, scene):
    with pytest.raises(WeightsMissing, match=r"eis models pull sam2\.1-base-plus"):
        run_capability(SEGMENT, image=scene, everything=True)
    with pytest.raises(InvalidRequest, match="points, boxes, or everything"):
        run_capability(SEGMENT, image=scene)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A server on a machine where nothing was ever pulled."""
    engine = {"runtime": "app.models.runtime:open_runtime"}
    with serving(tmp_path_factory.mktemp("fresh"), engine=engine, ready_seconds=300) as running:
        yield running


def file_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ask(server, name, image, mask=None, **wish):
    files = {key: (None, str(value)) for key, value in wish.items()}
    files["image"] = ("image.png", file_of(image), "image/png")
    if mask is not None:
        files["mask_image"] = ("mask.png", file_of(mask), "image/png")
    return server.client.post(f"/api/v1/inpaint-anything/{name}?wait=300", files=files, timeout=320)


def test_on_a_fresh_machine_the_patch_of_the_astronauts_suit_is_removed(fresh, astronaut):
    answer = ask(fresh, "remove", astronaut, points="171,385")
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["model"] == job["request"]["eraser"] == "opencv-inpaint" and job["request"]["segmenter"] == "grabcut"
    (link,) = [image["url"] for image in job["result"]["images"]]
    after = Image.open(io.BytesIO(fresh.client.get(link).content), formats=["PNG"])
    patch = Image.new("L", astronaut.size, 0)
    ImageDraw.Draw(patch).ellipse((136, 350, 206, 420), fill=255)
    inside, far = np.asarray(patch) > 0, np.asarray(made_ready(patch, grow=16)) == 0
    assert np.array_equal(pixels(after)[far], pixels(astronaut)[far])
    red, _, blue = pixels(after)[inside].mean(0)
    assert red > blue + 100, "the orange of the suit goes on where a purple patch was"


@pytest.mark.parametrize(
    ("wish", "code"),
    [({"points": "600,10"}, "invalid_request"), ({}, "invalid_request"), ({"mask": (64, 64)}, "mask_mismatch")],
)
def test_over_rest_a_mistake_is_one_clear_422_and_nothing_is_stored(fresh, astronaut, wish, code):
    wish = dict(wish)
    mask = Image.new("L", wish.pop("mask"), 255) if "mask" in wish else None
    before = fresh.stored()[0]
    answer = ask(fresh, "remove", astronaut, mask, **wish)
    assert answer.status_code == 422 and answer.json()["error"]["code"] == code, answer.text
    assert len(answer.json()["error"]["message"]) > 20
    assert fresh.stored()[0] == before
