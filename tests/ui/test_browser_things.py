"""In a real browser on a fresh machine: a thing of a photo is clicked, its mask seen and chosen, and it is removed."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.ui.test_browser_identity import asked, picker_of, put
from tests.ui.test_browser_jobs import tab
from tests.ui.test_browser_pictures import fetch

pytestmark = pytest.mark.browser
PATCH = (171, 385)
"""Middle of the round patch on the astronaut's suit."""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def click(page, x, y, **more):
    """A click at this pixel of the picture."""
    board = picker_of(page, "Picture").locator(".eis-things")
    box = board.bounding_box()
    scale = box["width"] / 512
    board.click(position={"x": x * scale, "y": y * scale}, **more)


def test_the_patch_is_clicked_its_mask_chosen_and_it_is_removed(fresh_server, open_page, photo, tmp_path):
    page = open_page(fresh_server)
    tab(page, "Inpaint Anything")
    put(page, "Picture", photo)
    click(page, *PATCH)
    picker = picker_of(page, "Picture")
    picker.locator(".eis-thing-masks button").nth(2).wait_for()
    picker.locator(".eis-thing-mask").wait_for()
    assert picker.locator(".eis-thing-dot").count() == 1
    choices = picker.locator(".eis-thing-masks button")
    choices.nth(2).click()
    large = picker.locator(".eis-thing-mask").evaluate("layer => layer.style.maskImage")
    choices.nth(0).click()
    small = picker.locator(".eis-thing-mask").evaluate("layer => layer.style.maskImage")
    assert small != large and small.startswith('url("data:image/png;base64,')
    page.screenshot(path=str(tmp_path / "clicked.png"))
    page.locator("#generate-inpaint-anything-remove").click()
    page.wait_for_selector("#stage-inpaint-anything-remove .eis-result")
    stage = page.locator("#stage-inpaint-anything-remove")
    assert "OpenCV's inpainting" in stage.inner_text()
    page.screenshot(path=str(tmp_path / "removed.png"))
    after = np.asarray(fetch(page, fresh_server, stage.locator(".eis-picture").first)).astype(int)
    before = np.asarray(Image.open(photo)).astype(int)
    patch = Image.new("L", (512, 512), 0)
    ImageDraw.Draw(patch).ellipse((136, 350, 206, 420), fill=255)
    red, _, blue = after[np.asarray(patch) > 0].mean(0)
    assert red > blue + 100, "the orange of the suit goes on where a purple patch was"
    assert np.array_equal(after[:300], before[:300])
    request = asked(page, "inpaint-anything-remove")
    assert request["eraser"] == "opencv-inpaint" and request["mask_image"] and request["points"] is None

    # The other things that can be done with it have the picture and the mask already.
    tab(page, "Replace background")
    picker_of(page, "Picture").locator(".eis-thing-mask").wait_for()
    tab(page, "Segment")
    board = picker_of(page, "Picture").locator(".eis-things").bounding_box()
    scale = board["width"] / 512
    page.mouse.move(board["x"] + 125 * scale, board["y"] + 340 * scale)
    page.mouse.down()
    page.mouse.move(board["x"] + 218 * scale, board["y"] + 428 * scale, steps=4)
    page.mouse.up()
    picker_of(page, "Picture").get_by_text("What is coloured is the mask.").wait_for()
    assert picker_of(page, "Picture").locator(".eis-thing-box").count() == 1
    page.locator("#generate-inpaint-anything-segment").click()
    page.wait_for_selector("#stage-inpaint-anything-segment .eis-result")
    mask = fetch(page, fresh_server, page.locator("#stage-inpaint-anything-segment .eis-picture").first)
    assert mask.getpixel(PATCH) == (255, 255, 255) and mask.getpixel((20, 20)) == (0, 0, 0)


def test_without_a_click_the_form_says_what_is_missing(fresh_server, open_page, photo):
    page = open_page(fresh_server)
    tab(page, "Inpaint Anything")
    put(page, "Picture", photo)
    page.locator("#generate-inpaint-anything-remove").click()
    page.locator("#stage-inpaint-anything-remove").get_by_text("click the thing that is meant").wait_for()


def test_every_tab_has_room_in_the_row(fresh_server, open_page):
    page = open_page(fresh_server)
    page.set_viewport_size({"width": 1360, "height": 940})
    page.get_by_role("tab", name="GPU & Memory", exact=True).wait_for()
    assert not page.locator(".eis-tabs .overflow-menu > button").first.is_visible()
