"""In a real browser: a picture's map is seen and followed, and a drawing is coloured.

Whole checkpoints of random weights, tiny, in a worker process: what they draw is noise, and how it comes is real.
"""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from app.imaging import control_maps
from app.models.library import ModelLibrary
from tests.models.tiny_checkpoints import make_sdxl
from tests.models.tiny_controlnets import make_controlnet
from tests.ui.serving import server
from tests.ui.test_browser_identity import asked, put
from tests.ui.test_browser_jobs import tab
from tests.ui.test_browser_pictures import fetch

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def editing_server(tmp_path_factory):
    """A worker with an SDXL and two ControlNets for it."""
    home, made = tmp_path_factory.mktemp("editing"), tmp_path_factory.mktemp("made")
    library = ModelLibrary(home)
    sdxl = make_sdxl(made / "tiny-sdxl", 1)
    library.add(sdxl, id="tiny-sdxl")
    for kind in ("canny", "lineart_anime"):
        library.add(make_controlnet(made / kind, sdxl, 2), id=kind.replace("_", "-"))
    shutil.rmtree(made)
    settings = {"catalog": "tests.ui.capabilities:CONTROLS", "devices": "cpu", "precision": "float32"}
    with server(home, **settings) as address:
        yield address


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(data.astronaut()).resize((256, 256)).save(path)
    return path


def choose(page, label: str, option: str) -> None:
    """An entry of the visible dropdown of this label, by clicks."""
    page.get_by_label(label, exact=True).locator("visible=true").first.click()
    page.get_by_role("option", name=option, exact=True).locator("visible=true").click()


def results(page, name: str) -> list:
    """The pictures on a stage, the ones that are not shown too."""
    page.wait_for_selector(f"#stage-{name} .eis-result")
    return page.locator(f"#stage-{name} .eis-result .eis-picture").all()


def test_a_photos_edges_are_seen_alone_and_then_followed(editing_server, open_page, photo):
    page = open_page(editing_server)
    tab(page, "ControlNet")
    tab(page, "Preprocess")
    put(page, "Picture", photo)
    choose(page, "Follow its", "scribble")
    choose(page, "Follow its", "canny")
    page.locator("#generate-controlnet-preprocess").click()
    [shown] = results(page, "controlnet-preprocess")
    edges = control_maps.canny(Image.open(photo))
    assert np.array_equal(np.asarray(fetch(page, editing_server, shown)), np.asarray(edges))

    tab(page, "Generate")
    put(page, "Control picture", photo)
    choose(page, "Follow its", "depth")
    choose(page, "Follow its", "canny")
    choose(page, "Map", "always drawn")
    page.locator(".eis-prompt textarea:visible").fill("a red car")
    page.get_by_label("Steps", exact=True).locator("visible=true").fill("3")
    page.locator("#generate-controlnet-generate").click()
    drawn, followed = results(page, "controlnet-generate")
    picture = fetch(page, editing_server, drawn)
    assert picture.size == (64, 64) and np.asarray(picture).std() > 5
    small = control_maps.canny(Image.open(photo).resize((64, 64), Image.Resampling.LANCZOS))
    assert np.array_equal(np.asarray(fetch(page, editing_server, followed)), np.asarray(small))
    request = asked(page, "controlnet-generate")
    assert request["control_type"] == ["canny"] and request["preprocess"] == ["on"]
    assert request["controlnet_model"] == ["canny"] and request["model"] == "tiny-sdxl"


def test_a_choice_ends_before_the_arrow_of_its_box(editing_server, open_page):
    """The words that the ControlNet form shows at first have room, and longer ones end before the arrow too."""
    page = open_page(editing_server)
    tab(page, "ControlNet")
    page.locator("#generate-controlnet-generate").wait_for()
    found = page.locator(".eis-panel:visible input[role=combobox]:visible").evaluate_all(
        """boxes => boxes.map(box => {
            const style = getComputedStyle(box), pen = document.createElement('canvas').getContext('2d');
            pen.font = style.font;
            const edge = box.getBoundingClientRect();
            const arrow = box.closest('.wrap').querySelector('.icon-wrap').getBoundingClientRect();
            const words = edge.left + parseFloat(style.paddingLeft) + pen.measureText(box.value).width;
            return [box.value, words, edge.right - parseFloat(style.paddingRight), arrow.left];
        })"""
    )
    shown = [value for value, *_ in found]
    assert "canny" in shown and "if needed" in shown and len(shown) >= 4, shown
    assert [value for value, words, room, _ in found if words > room] == []
    assert [value for value, _, room, arrow in found if room > arrow] == []


def test_a_drawing_is_coloured_on_the_anime_tab(editing_server, open_page, tmp_path):
    drawing = Image.new("RGB", (96, 128), "white")
    ImageDraw.Draw(drawing).ellipse((20, 16, 76, 100), outline=(0, 0, 0), width=3)
    drawing.save(tmp_path / "drawing.png")
    page = open_page(editing_server)
    tab(page, "ControlNet")
    tab(page, "Anime")
    labels = page.locator(".eis-picker:visible .eis-label").all_inner_texts()
    assert labels[0] == "Control picture", "what is needed stands first"
    put(page, "Control picture", tmp_path / "drawing.png")
    page.locator(".eis-prompt textarea:visible").fill("a red cat")
    page.get_by_label("Steps", exact=True).locator("visible=true").fill("3")
    page.locator("#generate-anime-controlnet").click()
    drawn, lines = results(page, "anime-controlnet")
    assert fetch(page, editing_server, drawn).size == (56, 72)
    white = ImageOps.invert(drawing).resize((56, 72), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(fetch(page, editing_server, lines)), np.asarray(white))
    assert asked(page, "anime-controlnet")["controlnet_model"] == "lineart-anime"
