"""Through a real browser: faces are found, shown on their picture and chosen; results say how alike they are."""

import json
import random
from dataclasses import replace

import pytest
from PIL import Image

from app.models.catalog import CATALOG
from app.pocket import likeness, measure, spec, world
from tests.ui.people import picture_of
from tests.ui.serving import ROOT, server
from tests.ui.test_browser_jobs import reload, tab
from tests.ui.test_browser_pictures import fetch

pytestmark = pytest.mark.browser

SPECS = {spec.id: spec for spec in CATALOG}
LARGE, SMALL = (20, 40, 80, 200), (150, 60, 50, 120)
"""The two faces of a picture of 240 x 160, number 0 and number 1."""


@pytest.fixture(scope="module")
def people_server(tmp_path_factory):
    with server(tmp_path_factory.mktemp("people"), catalog="tests.ui.people:CATALOG", devices="cpu") as address:
        yield address


@pytest.fixture
def pictures(tmp_path):
    """Name -> file of a picture with two faces, with one, with none."""
    found = {"two": picture_of(LARGE, SMALL), "one": picture_of(LARGE), "none": picture_of()}
    for name, image in found.items():
        image.save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in found}


def put(page, label: str, file) -> None:
    """Choose a file in the picture input of this label, and wait until it is shown."""
    picker = picker_of(page, label)
    with page.expect_response(lambda answer: answer.request.method == "POST" and "/images" in answer.url) as stored:
        picker.locator("input[type=file]").first.set_input_files(file)
    picker.locator(f"img[src*='{stored.value.json()['id']}']").wait_for()


def picker_of(page, label: str):
    heading = page.locator(".eis-label:visible", has_text=label).and_(page.get_by_text(label, exact=True))
    return page.locator(".eis-picker:visible").filter(has=heading)


def asked(page, name: str) -> dict:
    """The request of the result on the stage, out of its recipe."""
    page.locator(f"#stage-{name} summary", has_text="Recipe").locator("visible=true").click()
    return json.loads(page.locator(f"#stage-{name} pre[id^=recipe]:visible").inner_text())["request"]


def test_faces_are_framed_where_they_are_and_the_clicked_one_is_meant(people_server, open_page, pictures):
    page = open_page(people_server)
    put(page, "Person", pictures["two"])
    picker = picker_of(page, "Person")
    picker.get_by_role("button", name="Find faces").click()
    frames = picker.locator(".eis-face")
    frames.nth(1).wait_for()
    assert frames.count() == 2
    board = picker.locator(".eis-faces").bounding_box()
    for frame, (left, top, side, _) in zip(frames.all(), (LARGE, SMALL), strict=True):
        box = frame.bounding_box()
        scale = board["width"] / 240
        assert abs(box["x"] - board["x"] - left * scale) < 2 and abs(box["y"] - board["y"] - top * scale) < 2
        assert abs(box["width"] - side * scale) < 2 and abs(box["height"] - side * scale) < 2
    frames.nth(1).click()
    picker.get_by_text("Face 1 is meant.").wait_for()
    page.locator("#generate-person").click()
    page.wait_for_selector("#stage-person .eis-result")
    made = fetch(page, people_server, page.locator("#stage-person .eis-picture").first)
    assert made.getpixel((48, 48))[0] == SMALL[3]
    assert asked(page, "person")["face_index"] == 1

    reload(page, open_page)
    picker_of(page, "Person").locator(".eis-face[aria-pressed=true]", has_text="1").wait_for()
    put(page, "Person", pictures["one"])
    assert picker_of(page, "Person").locator(".eis-face").count() == 0, "the number belonged to the other picture"
    before = page.locator("#stage-person .eis-picture").first.evaluate("image => image.src")
    page.locator("#generate-person").click()
    page.wait_for_function("before => document.querySelector('#stage-person .eis-picture')?.src !== before", arg=before)
    assert asked(page, "person")["face_index"] is None


def test_a_picture_of_nobody_says_so(people_server, open_page, pictures):
    page = open_page(people_server)
    put(page, "Person", pictures["none"])
    picker_of(page, "Person").get_by_role("button", name="Find faces").click()
    picker_of(page, "Person").get_by_text("No face was found in this picture.").wait_for()
    tab(page, "Detect faces")
    put(page, "Picture", pictures["none"])
    page.locator("#generate-detect-faces").click()
    page.wait_for_selector("#stage-detect-faces >> text=No face was found")
    put(page, "Picture", pictures["two"])
    page.locator("#generate-detect-faces").click()
    page.wait_for_selector("#stage-detect-faces .eis-alike >> text=2 faces")


def test_a_refusal_shows_the_faces_and_a_click_answers_it(people_server, open_page, pictures):
    page = open_page(people_server)
    tab(page, "Swap")
    put(page, "Picture", pictures["two"])
    put(page, "Person", pictures["two"])
    for label, number in (("Picture", 1), ("Person", 0)):
        page.locator("#generate-swap").click()
        page.wait_for_selector("#stage-swap >> text=Which face?")
        page.locator("#stage-swap .eis-face").nth(number).click()
        page.wait_for_selector(f"#stage-swap >> text=Face {number} is chosen")
        picker_of(page, label).locator(f".eis-face[aria-pressed=true] >> text={number}").wait_for()
    page.locator("#generate-swap").click()
    page.wait_for_selector("#stage-swap .eis-result")
    request = asked(page, "swap")
    assert (request["target_face_index"], request["face_index"]) == (1, 0)
    assert fetch(page, people_server, page.locator("#stage-swap .eis-picture")).getpixel((48, 48))[0] == SMALL[3]


def test_the_face_of_the_changed_picture_itself_is_chosen(people_server, open_page, pictures):
    page = open_page(people_server)
    tab(page, "Edit")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(pictures["two"])
    page.wait_for_selector(".eis-canvas:visible")
    page.locator("#generate-edit").click()
    page.wait_for_selector("#stage-edit >> text=Which face?")
    page.locator("#stage-edit .eis-face").nth(1).click()
    picker_of(page, "Person").get_by_text("Face 1 of the picture that is changed is meant.").wait_for()
    page.locator("#generate-edit").click()
    page.wait_for_selector("#stage-edit .eis-result")
    assert asked(page, "edit")["face_index"] == 1
    picker_of(page, "Person").get_by_role("button", name="Any face").click()
    page.locator("#generate-edit").click()
    page.wait_for_selector("#stage-edit >> text=Which face?")


def test_a_face_of_the_pose_picture_is_chosen(people_server, open_page, pictures):
    """Before there is a wish, and by a refusal; the words under the result are those of its face pack."""
    page = open_page(people_server)
    tab(page, "Follow")
    put(page, "Person", pictures["one"])
    put(page, "Pose", pictures["two"])
    picker_of(page, "Pose").get_by_role("button", name="Find faces").click()
    picker_of(page, "Pose").locator(".eis-face").nth(1).click()
    picker_of(page, "Pose").get_by_text("Face 1 is meant.").wait_for()
    page.locator("#generate-follow").click()
    page.wait_for_selector("#stage-follow .eis-result")
    assert asked(page, "follow")["pose_face_index"] == 1
    assert fetch(page, people_server, page.locator("#stage-follow .eis-picture")).getpixel((48, 48))[0] == SMALL[3]
    assert page.locator("#stage-follow .eis-alike .eis-badge").inner_text() == "same face 0.40"

    put(page, "Pose", pictures["two"])
    page.locator("#generate-follow").click()
    page.wait_for_selector("#stage-follow >> text=Which face?")
    page.locator("#stage-follow .eis-face").nth(0).click()
    picker_of(page, "Pose").locator(".eis-face[aria-pressed=true] >> text=0").wait_for()


def test_a_face_of_a_further_picture_is_chosen(people_server, open_page, pictures):
    """The second of two further pictures shows two people: the refusal, and the choice, are about that one."""
    page = open_page(people_server)
    put(page, "Person", pictures["one"])
    put(page, "Further picture 1", pictures["one"])
    put(page, "Further picture 2", pictures["two"])
    page.locator("#generate-person").click()
    page.wait_for_selector("#stage-person >> text=Which face?")
    page.locator("#stage-person .eis-face").nth(1).click()
    picker_of(page, "Further picture 2").get_by_text("Face 1 is meant.").wait_for()
    page.locator("#generate-person").click()
    page.wait_for_selector("#stage-person .eis-result")
    assert asked(page, "person")["face_images_index"] == [None, 1]
    page.locator("#stage-person [data-client=pick]").nth(5).click()
    made = fetch(page, people_server, page.locator("#stage-person .eis-picture:visible"))
    assert made.getpixel((48, 48))[0] == SMALL[3]


def test_an_earlier_picture_says_how_alike_it_is_too(people_server, open_page, pictures):
    page = open_page(people_server)
    put(page, "Person", pictures["one"])
    page.locator("#generate-person").click()
    page.wait_for_selector("#stage-person .eis-result")
    page.locator(".eis-recent:visible [data-action=open]").nth(3).wait_for()
    stage = page.locator("#stage-person")
    said = set()
    for number in range(4):
        page.locator(".eis-recent:visible [data-action=open]").nth(number).click()
        page.wait_for_function(
            "seen => { const badge = document.querySelector('#stage-person .eis-alike .eis-badge');"
            " return badge && document.querySelectorAll('#stage-person [data-view]').length === 0"
            " && !seen.includes(badge.innerText); }",
            arg=sorted(said),
        )
        said.add(stage.locator(".eis-alike .eis-badge").inner_text())
    assert said == {"same face 0.87", "similar face 0.41", "another face 0.12", "no face seen"}
    stage.get_by_role("button", name="Beside the person").click()
    assert fetch(page, people_server, stage.locator(".eis-beside:visible")).size == (240, 160)


def test_results_say_how_alike_they_are_and_stand_beside_the_person(people_server, open_page, pictures):
    page = open_page(people_server)
    put(page, "Person", pictures["one"])
    page.locator("#generate-person").click()
    page.wait_for_selector("#stage-person .eis-result")
    stage = page.locator("#stage-person")
    said = []
    for number in range(4):
        stage.locator("[data-client=pick]").nth(number).click()
        said.append(stage.locator(".eis-alike .eis-badge:visible").inner_text())
    assert said == ["same face 0.87", "similar face 0.41", "another face 0.12", "no face seen"]
    beside = stage.locator(".eis-beside")
    assert beside.locator("visible=true").count() == 0
    stage.get_by_role("button", name="Beside the person").locator("visible=true").click()
    shown = beside.locator("visible=true")
    assert shown.count() == 1 and fetch(page, people_server, shown).size == (240, 160)
    stage.locator("[data-client=pick]").nth(0).click()
    assert beside.locator("visible=true").count() == 1, "it stays beside the next picture"
    frame, picture = stage.locator(".eis-frame:visible").bounding_box(), shown.bounding_box()
    assert picture["x"] >= frame["x"] and picture["x"] + picture["width"] <= frame["x"] + frame["width"] + 1
    stage.get_by_role("button", name="Beside the person").locator("visible=true").click()
    assert beside.locator("visible=true").count() == 0


def test_poses_are_named_and_the_sheet_is_last(people_server, open_page, pictures):
    page = open_page(people_server)
    tab(page, "Poses")
    put(page, "Person", pictures["one"])
    page.locator("#generate-poses").click()
    page.wait_for_selector("#stage-poses .eis-result")
    stage = page.locator("#stage-poses")
    assert stage.locator(".eis-captioned > span").all_inner_texts() == ["Front", "Left", "Up", "All poses"]
    assert "Front" in stage.locator(".eis-alike:visible").inner_text()
    stage.locator("[data-client=pick]").nth(3).click()
    line = stage.locator(".eis-alike:visible").inner_text()
    assert "All poses" in line and "face 0." not in line


@pytest.mark.skipif(
    not (ROOT / SPECS["pocket-faces"].embedded).is_dir(), reason="this copy comes without the embedded face models"
)
def test_the_embedded_face_models_find_two_people(fresh_server, open_page, tmp_path):
    """Nothing stands in: the product's catalog, its worker, and the face models that it comes with."""
    source = random.Random(3)
    sheet = Image.new("RGB", (640, 400), (200, 205, 210))
    for side, corner in ((320, (20, 40)), (220, (380, 120))):
        sheet.paste(world.draw(world.random_portrait(source), side), corner)
    sheet.save(tmp_path / "couple.png")
    page = open_page(fresh_server)
    tab(page, "PuLID")
    put(page, "Person", tmp_path / "couple.png")
    picker = picker_of(page, "Person")
    picker.get_by_role("button", name="Find faces").click()
    picker.get_by_text("2 faces were found").wait_for()
    picker.locator(".eis-face").nth(1).click()
    picker.get_by_text("Face 1 is meant.").wait_for()
    tab(page, "Enhance")
    tab(page, "Detect faces")
    put(page, "Picture", tmp_path / "couple.png")
    page.locator("#generate-detect-faces").click()
    page.wait_for_selector("#stage-detect-faces .eis-alike >> text=2 faces")
    drawn = fetch(page, fresh_server, page.locator("#stage-detect-faces .eis-picture"))
    assert drawn.size == (640, 400) and drawn.tobytes() != sheet.tobytes()


@pytest.mark.skipif(
    not (ROOT / SPECS["pocket-ecomid"].embedded).is_dir(), reason="this copy comes without the embedded EcomID"
)
def test_the_embedded_ecomid_turns_a_head_and_a_picture_is_a_prompt(fresh_server, open_page, tmp_path):
    """On a fresh machine: the sheet of poses by EcomID's own tab, then one of its pictures' kind by IP-Adapter's."""
    scene = world.random_portrait(random.Random(3))
    world.draw(replace(scene, person=replace(scene.person, pose="front")), 512).save(tmp_path / "person.png")
    page = open_page(fresh_server)
    tab(page, "EcomID")
    tab(page, "Multi-pose")
    put(page, "Person", tmp_path / "person.png")
    page.locator(".eis-prompt textarea:visible").fill("a portrait, blue background")
    page.get_by_label("Seed", exact=True).locator("visible=true").fill("7")
    page.locator("#generate-ecomid-multi-pose").click()
    page.wait_for_selector("#stage-ecomid-multi-pose .eis-result")
    stage = page.locator("#stage-ecomid-multi-pose")
    named = stage.locator(".eis-captioned > span").all_inner_texts()
    assert named == ["Front", "Left", "Right", "Up", "Down", "All poses"]
    turned = []
    for number in (1, 2):
        stage.locator("[data-client=pick]").nth(number).click()
        assert "face 0." in stage.locator(".eis-alike:visible").inner_text()
        turned.append(fetch(page, fresh_server, stage.locator(".eis-picture").locator("visible=true").first))
    poses = likeness.read(likeness.load(spec.WEIGHTS), turned)[1]
    assert [likeness.pose_name(*pose) for pose in poses.tolist()] == ["left", "right"]

    tab(page, "IP-Adapter")
    world.draw(world.Scene("blue", (world.Thing("car", "red"),)), 256).save(tmp_path / "car.png")
    put(page, "Picture as a prompt 1", tmp_path / "car.png")
    page.get_by_label("Seed", exact=True).locator("visible=true").fill("7")
    page.locator("#generate-ip-adapter").click()
    page.wait_for_selector("#stage-ip-adapter .eis-result")
    drawn = fetch(page, fresh_server, page.locator("#stage-ip-adapter .eis-picture").first)
    assert measure.background_colour(drawn) == "blue" and measure.find(drawn) is not None
