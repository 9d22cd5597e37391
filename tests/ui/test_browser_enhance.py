"""In a real browser on a fresh machine: a photo is made larger, and slid between before and after in three ways."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ui.test_browser_identity import asked, put
from tests.ui.test_browser_jobs import tab
from tests.ui.test_browser_pictures import fetch

pytestmark = pytest.mark.browser
WEIGHTS = os.environ.get("EIS_TEST_WEIGHTS")
STAGE = "#stage-upscale"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def share(page):
    """Where the line stands, from 0 to 100."""
    box = page.locator(f"{STAGE} .eis-slider-box:visible")
    return float(box.evaluate("box => box.style.getPropertyValue('--at')").removesuffix("%"))


def seen(page, tmp_path):
    """The pixels of the slider as they are shown."""
    path = tmp_path / "slider.png"
    page.locator(f"{STAGE} .eis-slider-box:visible").screenshot(path=str(path))
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_astronaut_is_made_larger_and_slid_by_mouse_keys_and_finger(fresh_server, open_page, photo, tmp_path):
    page = open_page(fresh_server)
    tab(page, "Enhance")
    put(page, "Picture", photo)
    page.locator("#generate-upscale").click()
    page.wait_for_selector(f"{STAGE} .eis-slider-box:visible")
    stage = page.locator(STAGE)
    assert "Lanczos" in stage.inner_text()
    assert fetch(page, fresh_server, stage.locator(".eis-picture").first).size == (1024, 1024)
    assert asked(page, "upscale")["scale"] == 2
    box = stage.locator(".eis-slider-box")
    box.scroll_into_view_if_needed()
    place = box.bounding_box()
    assert abs(place["width"] - place["height"]) <= 1 and share(page) == 50

    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + place["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] * 0.8, middle, steps=5)
    page.mouse.up()
    assert abs(share(page) - 80) < 1
    page.mouse.move(place["x"] + 5, middle)
    assert abs(share(page) - 80) < 1, "a mouse without a button moves nothing"
    page.mouse.click(place["x"] + place["width"] * 0.25, middle)
    assert abs(share(page) - 25) < 1

    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert abs(share(page) - 30) < 1
    page.keyboard.press("Home")
    assert share(page) == 0
    after = seen(page, tmp_path)
    page.keyboard.press("End")
    assert share(page) == 100
    before = seen(page, tmp_path)
    half = before.shape[1] // 2
    assert np.abs(before - after)[:, half // 2 : half].mean() > 0.05, "the two pictures are not the same"

    page.evaluate(
        """([selector, x, y]) => {
        const box = document.querySelector(selector);
        const say = (name, x) => box.dispatchEvent(new PointerEvent(name, { pointerId: 7, pointerType: 'touch',
          isPrimary: true, bubbles: true, cancelable: true, button: 0, clientX: x, clientY: y }));
        say('pointerdown', x); say('pointermove', x + 40); say('pointerup', x + 40);
        }""",
        [f"{STAGE} .eis-slider-box", place["x"] + 100, middle],
    )
    assert abs(share(page) - 100 * 140 / place["width"]) < 1.5

    button = stage.get_by_role("button", name="Before and after")
    button.click()
    assert stage.locator(".eis-picture").is_visible() and not stage.locator(".eis-slider").is_visible()
    button.click()
    assert stage.locator(".eis-slider").is_visible()
    page.screenshot(path=str(tmp_path / "light.png"))
    page.get_by_role("button", name="Dark").click()
    page.screenshot(path=str(tmp_path / "dark.png"))


def test_a_result_is_sent_to_the_other_forms_of_the_tab(fresh_server, open_page, photo):
    page = open_page(fresh_server)
    tab(page, "Enhance")
    put(page, "Picture", photo)
    page.locator("#generate-upscale").click()
    page.wait_for_selector(f"{STAGE} .eis-slider-box:visible")
    page.locator(f"{STAGE} select[data-action=send]").select_option(label="Enhance Restore faces")
    page.wait_for_selector("#generate-restore-face:visible")
    page.locator(".eis-picker:visible img").first.wait_for()


@pytest.mark.skipif(not WEIGHTS, reason="EIS_TEST_WEIGHTS names no folder of published weights")
def test_a_network_of_ones_own_is_added_on_the_page_and_makes_the_photo_sharper(
    fresh_server, open_page, tmp_path_factory, tmp_path
):
    data = pytest.importorskip("skimage.data")
    photo = tmp_path_factory.mktemp("part") / "part.png"
    part = Image.fromarray(data.astronaut()).crop((150, 30, 278, 158))
    part.save(photo)
    file = tmp_path_factory.mktemp("own") / "animevideo.safetensors"
    shutil.copy(Path(WEIGHTS) / "realesr-animevideov3-x4.safetensors", file)
    page = open_page(fresh_server)
    tab(page, "Models")
    page.locator("[data-model=real-esrgan-x4plus]").wait_for()
    page.locator(".eis-add input[type=file]").set_input_files(file)
    page.locator("[data-model=animevideo] >> text=Installed").wait_for()
    tab(page, "Enhance")
    put(page, "Picture", photo)
    page.locator("#generate-upscale").click()
    page.wait_for_selector(f"{STAGE} .eis-slider-box:visible")
    assert asked(page, "upscale")["upscaler"] == "animevideo"
    made = fetch(page, fresh_server, page.locator(f"{STAGE} .eis-picture").first)
    smooth = part.resize((256, 256), Image.Resampling.LANCZOS)
    assert made.size == (256, 256)
    assert edges(made) > 1.2 * edges(smooth)


def edges(image):
    """How steep the steepest hundredth of the steps between neighbours is."""
    return np.percentile(np.abs(np.diff(np.asarray(image.convert("L")).astype(int), axis=1)), 99)


def test_what_is_ticked_follows_the_picture(fresh_server, open_page):
    page = open_page(fresh_server)
    tab(page, "Text to image")
    page.locator(".eis-prompt textarea:visible").first.fill("a red car")
    for label in ("Tags", "Upscale ×2"):
        page.locator("#then-text-to-image").get_by_text(label).click()
    page.locator("#generate-text-to-image").click()
    drawn = page.locator("#stage-text-to-image")
    drawn.get_by_text("Add a tag").wait_for()
    picture = drawn.locator(".eis-picture:visible").first
    assert fetch(page, fresh_server, picture).size == (256, 256), "the larger one stands above its tags"
    assert asked(page, "text-to-image")["scale"] == 2
