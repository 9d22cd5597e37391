"""In a real browser: tags as chips on a fresh machine, and a search whose results become a prompt and a reference."""

import random

import pytest

from app.pocket import tagger, world
from tests.searching import PAGE, searxng
from tests.ui.serving import server
from tests.ui.test_browser_identity import put
from tests.ui.test_browser_jobs import tab

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def searching(tmp_path_factory):
    """A server whose searches, and the pictures that they find, a server on loopback answers; and that server."""
    with searxng() as provider:
        settings = {"search_provider": "searxng", "search_url": provider.address, "trusted_hosts": provider.trusted}
        catalog = {"catalog": "tests.ui.found_on_loopback:CATALOG", "devices": "cpu"}
        with server(tmp_path_factory.mktemp("searching"), **catalog, **settings) as address:
            yield address, provider


def caption(page):
    return page.locator("#stage-tag-image .eis-caption").inner_text()


def test_tags_are_chosen_added_and_used_as_a_prompt(fresh_server, open_page, tmp_path):
    scene = world.random_scene(random.Random("a car for the chips"))
    while not any(thing.name == "car" for thing in scene.things):
        scene = world.random_scene(random.Random(f"{scene.variation}"))
    world.draw(scene).save(tmp_path / "car.png")
    page = open_page(fresh_server)
    tab(page, "Tags")
    put(page, "Picture", tmp_path / "car.png")
    page.get_by_role("button", name="Tag", exact=True).click()
    stage = page.locator("#stage-tag-image")
    stage.locator(".eis-chip").first.wait_for()
    words = caption(page).split(", ")
    assert "car" in words and len(set(words) & {name.replace("_", " ") for name in tagger.tags_of(scene)}) >= 3
    # Out, and back.
    chip = stage.locator('.eis-chip[data-word="car"]')
    chip.click()
    assert "car" not in caption(page).split(", ") and chip.get_attribute("aria-pressed") == "false"
    chip.click()
    assert caption(page).split(", ") == words
    chip.click()
    # A word of one's own, typed as a person does.
    box = stage.get_by_label("Add a tag")
    box.fill("a Lighthouse, storm")
    box.press("Enter")
    assert caption(page).endswith("a Lighthouse, storm") and box.input_value() == ""
    page.screenshot(path=str(tmp_path / "chips.png"))
    said = caption(page)
    stage.locator("select[data-action=prompt]").select_option(label="Text to image")
    prompt = page.locator(".eis-prompt textarea:visible").first
    prompt.wait_for()
    page.wait_for_function("text => document.querySelector('.eis-prompt textarea').value === text", arg=said)


def look_for(page, words, kind=None):
    tab(page, "Search")
    page.get_by_label("Look for").fill(words)
    if kind:
        page.get_by_label("Kind", exact=True).locator("visible=true").click()
        page.get_by_role("option", name=kind, exact=True).click()
    page.get_by_role("button", name="Search", exact=True).click()


def test_a_search_grounds_a_prompt_that_is_edited_first(searching, open_page):
    page = open_page(searching[0])
    look_for(page, "mid-century armchair", "text")
    text = page.locator("#stage-web-search .eis-grounding textarea")
    text.wait_for()
    assert text.input_value().startswith("mid-century armchair. A mid-century armchair has tapered teak legs")
    assert page.locator("#stage-web-search .eis-found").count() == 2
    text.fill("an armchair by a window")
    page.locator("#stage-web-search .eis-grounding select").select_option(label="Text to image")
    page.wait_for_function(
        "text => document.querySelector('.eis-prompt textarea').value === text", arg="an armchair by a window"
    )


def test_a_found_picture_becomes_a_reference(searching, open_page, monkeypatch, tmp_path):
    address, provider = searching
    monkeypatch.setitem(
        provider.answers,
        "images",
        [
            {"title": f"Chair {at}", "url": PAGE, "img_src": f"{provider.address}/{at}.png", "license": "CC0"}
            for at in range(5)
        ],
    )
    page = open_page(address)
    look_for(page, "chair")
    cards = page.locator("#stage-web-search .eis-found")
    cards.nth(4).wait_for()
    assert "CC0" in cards.first.inner_text() and "Wikimedia" not in cards.first.inner_text()
    page.wait_for_function("() => [...document.querySelectorAll('.eis-found img')].every((one) => one.naturalWidth)")
    sources = [image.get_attribute("src") for image in page.locator(".eis-found img").all()]
    assert all(source.startswith("api/v1/jobs/") for source in sources)
    link = cards.first.get_by_role("link")
    assert link.get_attribute("href") == PAGE and "noreferrer" in link.get_attribute("rel")
    page.screenshot(path=str(tmp_path / "wall.png"))
    cards.nth(2).locator("select").select_option(label="Image to image")
    picker = page.locator(".eis-picker:visible, .eis-painter:visible").first
    picker.locator("img[src*='api/v1/images/']").wait_for()
    assert provider.hits["/2.png"] == 2  # once small, once whole


def test_without_a_provider_the_tab_says_so(fresh_server, open_page):
    page = open_page(fresh_server)
    look_for(page, "chair")
    page.locator("#stage-web-search").get_by_text("Web search is off on this server").wait_for()
