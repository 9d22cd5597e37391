"""Through a real browser: pictures go in, masks are painted, results are sent on, with and without torch."""

import io
from urllib.request import Request, urlopen

import pytest
from PIL import Image, ImageChops

from app.imaging.metadata import Origin, png_texts
from tests.ui.capabilities import RED
from tests.ui.conftest import PATIENCE
from tests.ui.serving import ROOT
from tests.ui.test_browser_jobs import reload, tab

pytestmark = pytest.mark.browser

WEIGHTS = ROOT / "app" / "pocket" / "weights" / "model_index.json"


@pytest.fixture
def pocket_server(request):
    if not WEIGHTS.is_file():
        pytest.fail("the embedded model's weights are missing")
    return request.getfixturevalue("fresh_server")


def fetch(page, address: str, locator) -> Image.Image:
    """The stored picture behind an <img> of the page."""
    source = locator.get_attribute("src")
    with urlopen(Request(f"{address}/{source}", headers={"Accept": "image/png"}), timeout=PATIENCE / 1000) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """One stroke on the visible canvas, in shares of its width and height."""
    page.locator(".eis-canvas:visible").scroll_into_view_if_needed()
    box = page.locator(".eis-canvas:visible").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=6)
    page.mouse.up()


@pytest.fixture
def striped(tmp_path):
    """A picture of 96 x 64 with its own colour in every column."""
    image = Image.new("RGB", (96, 64))
    image.putdata([(x, 100, 255 - x) for _ in range(64) for x in range(96)])
    path = tmp_path / "striped.png"
    image.save(path)
    return path, image


def test_only_the_painted_part_changes(squares_server, open_page, striped):
    path, before = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    page.locator("#generate-fill").click()
    page.wait_for_selector("#stage-fill >> text=choose a picture first")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")
    page.locator("#generate-fill").click()
    page.wait_for_selector("#stage-fill >> text=paint the part to make anew")
    drag(page, (0.25, 0.5), (0.5, 0.5))
    page.locator("#generate-fill").click()
    page.wait_for_selector("#stage-fill .eis-result")
    after = fetch(page, squares_server, page.locator("#stage-fill .eis-picture"))
    assert after.size == before.size
    assert after.getpixel((36, 32)) == RED, "the stroke's middle"
    assert after.crop((64, 0, 96, 64)).tobytes() == before.crop((64, 0, 96, 64)).tobytes(), "right of the stroke"
    assert after.crop((0, 0, 96, 16)).tobytes() == before.crop((0, 0, 96, 16)).tobytes(), "above the stroke"


def test_erase_invert_undo_and_clear(squares_server, open_page, striped):
    path, _ = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")

    drag(page, (0.2, 0.5), (0.8, 0.5))
    stroke = painted(page)
    assert 0 < stroke < 96 * 64
    page.get_by_role("button", name="Erase").click()
    drag(page, (0.2, 0.5), (0.5, 0.5))
    assert 0 < painted(page) < stroke
    page.get_by_role("button", name="Undo").click()
    assert painted(page) == stroke
    page.get_by_role("button", name="Invert").click()
    assert painted(page) == 96 * 64 - stroke
    page.get_by_role("button", name="Clear").click()
    assert painted(page) == 0


def painted(page) -> int:
    """How many pixels of the visible canvas are painted."""
    return page.locator(".eis-canvas:visible").evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
        ".filter((value, at) => at % 4 === 3 && value >= 128).length"
    )


COUNT_READS = """() => {
    window.reads = { getImageData: 0, toDataURL: 0 };
    for (const [type, name] of [[CanvasRenderingContext2D, "getImageData"], [HTMLCanvasElement, "toDataURL"]]) {
        const before = type.prototype[name];
        type.prototype[name] = function (...given) { window.reads[name] += 1; return before.apply(this, given); };
    }
}"""


def test_painting_reads_no_pixel_back_until_generate(squares_server, open_page, striped):
    path, _ = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")
    page.evaluate(COUNT_READS)
    for height in (0.2, 0.5, 0.8):
        drag(page, (0.2, height), (0.8, height))
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Invert").click()
    assert page.evaluate("window.reads") == {"getImageData": 0, "toDataURL": 0}
    page.locator("#generate-fill").click()
    page.wait_for_selector("#stage-fill .eis-result")
    assert page.evaluate("window.reads") == {"getImageData": 1, "toDataURL": 1}
    after = fetch(page, squares_server, page.locator("#stage-fill .eis-picture"))
    assert after.getpixel((48, 51)) == RED, "the stroke that was undone"
    assert after.getpixel((48, 13)) != RED and after.getpixel((48, 32)) != RED, "the strokes, inverted"


def test_undo_goes_back_twenty_deeds_and_no_further(squares_server, open_page, striped):
    path, _ = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")
    counts = []
    for column in range(23):
        drag(page, (0.02 + column / 24, 0.1), (0.02 + column / 24, 0.2))
        counts.append(painted(page))
    assert counts == sorted(set(counts)), "every stroke paints more"
    for _ in range(25):
        page.get_by_role("button", name="Undo").click()
    assert painted(page) == counts[2]


def test_use_settings_brings_the_mask_back(squares_server, open_page, striped):
    path, _ = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")
    drag(page, (0.25, 0.5), (0.5, 0.5))
    stroke = painted(page)
    page.locator("#generate-fill").click()
    page.wait_for_selector("#stage-fill .eis-result")
    first = fetch(page, squares_server, page.locator("#stage-fill .eis-picture"))
    page.get_by_role("button", name="Clear").click()
    assert painted(page) == 0
    page.locator("#stage-fill").get_by_role("button", name="Use settings").click()
    wait_until_painted(page, stroke)
    page.get_by_role("button", name="Remove", exact=True).locator("visible=true").click()
    page.wait_for_selector(".eis-canvas", state="detached")
    page.locator("#stage-fill").get_by_role("button", name="Use settings").click()
    page.wait_for_selector(".eis-canvas:visible")
    wait_until_painted(page, stroke)
    drag(page, (0.9, 0.9), (0.95, 0.9))
    page.get_by_role("button", name="Undo").click()
    assert painted(page) == stroke, "undo must not take the restored mask away"

    job = page.locator("#stage-fill .eis-result").get_attribute("data-job")
    page.locator("#generate-fill").click()
    page.wait_for_selector(f"#stage-fill .eis-result:not([data-job='{job}'])")
    again = fetch(page, squares_server, page.locator("#stage-fill .eis-picture"))
    assert again.tobytes() == first.tobytes()
    reload(page, open_page)
    tab(page, "Fill")
    page.wait_for_selector(".eis-canvas:visible")
    wait_until_painted(page, stroke)


def wait_until_painted(page, count: int) -> None:
    """Until exactly so many pixels are painted; a restored mask is fetched first."""
    for _ in range(200):
        if painted(page) == count:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{painted(page)} pixels are painted, not {count}")


def test_a_mask_file_is_loaded_and_one_of_another_size_refused(squares_server, open_page, striped, tmp_path):
    path, before = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")
    wrong, right = tmp_path / "wrong.png", tmp_path / "right.png"
    Image.new("L", (10, 10), 255).save(wrong)
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 48, 64))
    mask.save(right)
    page.locator(".eis-mask-file").set_input_files(wrong)
    page.wait_for_selector("text=The mask is 10 × 10, the picture 96 × 64.")
    page.locator(".eis-mask-file").set_input_files(right)
    page.wait_for_selector("text=The mask is 10 × 10, the picture 96 × 64.", state="hidden")
    page.locator("#generate-fill").click()
    page.wait_for_selector("#stage-fill .eis-result")
    after = fetch(page, squares_server, page.locator("#stage-fill .eis-picture"))
    assert after.crop((0, 0, 48, 64)).getcolors() == [(48 * 64, RED)]
    assert after.crop((48, 0, 96, 64)).tobytes() == before.crop((48, 0, 96, 64)).tobytes()


def test_what_is_no_picture_is_refused_in_words(squares_server, open_page, tmp_path):
    page = open_page(squares_server)
    tab(page, "Fill")
    wrong = tmp_path / "picture.png"
    wrong.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page.locator(".eis-painter:visible input[type=file]").first.set_input_files(wrong)
    message = page.locator(".eis-painter:visible .eis-error-line")
    message.wait_for()
    assert len(message.inner_text()) > 20 and "The server answered" not in message.inner_text()
    open_page.complaints[:] = [text for text in open_page.complaints if "Failed to load resource" not in text]


INFOTEXT = """a lighthouse at night
Negative prompt: blur
Steps: 33, Sampler: Euler a, CFG scale: 6.5, Seed: 4711, Size: 96x64, Model: somebody"""


def test_the_settings_inside_an_uploaded_file_are_offered(squares_server, open_page, striped, tmp_path):
    path, image = striped
    page = open_page(squares_server)
    tab(page, "Fill")
    file = page.locator(".eis-painter:visible input[type=file]").first
    file.set_input_files(path)
    page.wait_for_selector(".eis-canvas:visible")
    told = tmp_path / "told.png"
    image.save(told, pnginfo=png_texts(Origin(infotext=INFOTEXT)))
    assert page.locator(".eis-origin:visible").count() == 0, "a file that says nothing offers nothing"
    file.set_input_files(told)
    page.locator(".eis-origin:visible").get_by_role("button", name="Use its settings").click()
    prompt = page.locator(".eis-prompt textarea:visible")
    page.wait_for_function("box => box.value === 'a lighthouse at night'", arg=prompt.element_handle())
    assert page.locator(".eis-canvas:visible").count() == 1, "the picture stays"

    recipe = {"capability": "slow", "request": {"prompt": "squares again", "seed": 12, "num_inference_steps": 4}}
    ours = tmp_path / "ours.png"
    image.save(ours, pnginfo=png_texts(Origin(recipe=recipe)))
    source = page.locator(".eis-board img:visible").get_attribute("src")
    file.set_input_files(ours)
    page.wait_for_selector(f".eis-board img:not([src='{source}']):visible")
    page.locator(".eis-origin:visible").get_by_role("button", name="Open as it was made").click()
    page.wait_for_selector("#generate-slow:visible")
    page.wait_for_function("box => box.value === 'squares again'", arg=prompt.element_handle())
    assert page.get_by_label("Seed", exact=True).locator("visible=true").input_value() == "12"


def test_pocket_draws_then_inpaints_what_was_sent_on(pocket_server, open_page):
    page = open_page(pocket_server)
    page.locator(".eis-prompt textarea:visible").fill("a red car, navy background")
    page.get_by_label("Seed", exact=True).locator("visible=true").fill("7")
    page.locator("#generate-text-to-image").click()
    page.wait_for_selector("#stage-text-to-image .eis-result")
    stage = page.locator("#stage-text-to-image")
    before = fetch(page, pocket_server, stage.locator(".eis-picture"))
    assert before.size == (128, 128)
    facts = stage.locator(".eis-facts").inner_text()
    assert "pocket" in facts and "7" in facts
    stage.locator("summary", has_text="Infotext").click()
    assert "Steps:" in stage.locator("pre[id^=info]").inner_text()

    stage.locator("select").select_option(label="Inpaint")
    page.wait_for_selector(".eis-canvas:visible")
    drag(page, (0.3, 0.3), (0.6, 0.3))
    page.locator(".eis-prompt textarea:visible").fill("a yellow star, navy background")
    page.locator("#generate-inpaint").click()
    page.wait_for_selector("#stage-inpaint .eis-result")
    after = fetch(page, pocket_server, page.locator("#stage-inpaint .eis-picture"))
    changed = ImageChops.difference(before, after).convert("L").point(lambda value: 255 if value else 0).getbbox()
    assert changed is not None, "nothing was repainted"
    left, top, right, bottom = changed
    assert left >= 0.3 * 128 - 12 and right <= 0.6 * 128 + 12 and top >= 0.3 * 128 - 12 and bottom <= 0.3 * 128 + 12

    tab(page, "Gallery")
    page.get_by_label("Words in the prompt").fill("navy background")
    page.wait_for_selector("text=2 pictures")
    page.get_by_label("Made by").click()
    page.get_by_role("option", name="Inpaint").click()
    page.wait_for_selector("text=1 picture")


def test_pocket_shows_what_it_draws(pocket_server, open_page):
    page = open_page(pocket_server)
    page.locator(".eis-prompt textarea:visible").fill("a red car, blue background")
    page.get_by_label("Steps", exact=True).locator("visible=true").fill("150")
    page.locator("#generate-text-to-image").click()
    preview = page.locator("#stage-text-to-image .eis-preview")
    preview.wait_for()
    assert preview.evaluate("image => image.decode().then(() => image.naturalWidth)") >= 128
    page.locator("#stage-text-to-image .eis-cancel").click()
    page.wait_for_selector("#stage-text-to-image >> text=/Stopped at step/")


def test_pocket_sizes_and_several_pictures(pocket_server, open_page):
    page = open_page(pocket_server)
    page.locator(".eis-prompt textarea:visible").fill("a green tree, white background")
    page.get_by_label("Size", exact=True).click()
    page.get_by_role("option", name="Landscape 4:3").click()
    width = page.get_by_label("Width", exact=True).locator("visible=true")
    page.wait_for_function("box => Number(box.value) > 128", arg=width.element_handle())
    height = page.get_by_label("Height", exact=True).locator("visible=true")
    asked = (int(width.input_value()), int(height.input_value()))
    count = page.locator("input[type=number]:visible").first
    count.fill("2")
    count.press("Tab")
    page.locator("#generate-text-to-image").click()
    page.wait_for_selector("#stage-text-to-image .eis-result")
    pictures = page.locator("#stage-text-to-image .eis-picture")
    assert pictures.count() == 2
    assert fetch(page, pocket_server, pictures.first).size == asked
    page.locator("[data-client=pick]").nth(1).click()
    assert pictures.nth(1).is_visible() and not pictures.nth(0).is_visible()
