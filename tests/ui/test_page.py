"""How the page is put together: a tab for each capability, nothing of it public, nothing fetched from elsewhere."""

import re
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

import app.ui
from app.core.catalog import CATALOG
from app.ui.app import Page
from app.ui.theme import head, style_sheet, theme
from tests.ui.capabilities import CATALOG as TEST_CATALOG

PAGES = ["Gallery", "Jobs", "Batch", "Models", "GPU & Memory"]


class Catalogued:
    """The little of a service that building the page asks for."""

    def __init__(self, catalog, models):
        self.catalog = catalog
        self.models = models
        self.devices = SimpleNamespace(known_names=lambda: ("cpu",))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A catalog's page, built once: these tests only look at it."""
    from app.models.library import ModelLibrary

    home = tmp_path_factory.mktemp("page")

    found = {}

    def build(catalog):
        if id(catalog) not in found:
            page = Page(Catalogued(catalog, ModelLibrary(home)), "1.2.3")
            found[id(catalog)] = page, page.build()
        return found[id(catalog)]

    return build


def tab_titles(blocks: gr.Blocks) -> list[str]:
    return [block.label for block in blocks.blocks.values() if isinstance(block, gr.Tab)]


def test_a_tab_for_each_capability_then_the_pages(built):
    _, blocks = built(CATALOG)
    wanted = []
    for group, members in groupby(CATALOG, lambda capability: capability.group):
        inner = list(members)
        first, is_alone = inner[0], len(inner) == 1 and "/" not in inner[0].name
        wanted += [] if is_alone else [first.group_title or first.title]
        wanted += [capability.title for capability in inner]
        assert first.group_title or first.name == group
    assert tab_titles(blocks) == wanted + PAGES
    assert {"PuLID", "EcomID", "InstantID"} <= set(wanted)


def test_capabilities_of_one_group_are_sub_tabs_of_one_tab(built):
    page, blocks = built(TEST_CATALOG)
    assert list(page.inner) == ["test"]
    titles = tab_titles(blocks)
    assert titles[:3] == ["Slow", "Fill", "Test"]
    assert "Paint" in titles and titles[-len(PAGES) :] == PAGES


def test_send_to_names_everything_that_takes_a_picture(built):
    page, _ = built(CATALOG)
    values = [value for value, _ in page.targets()]
    assert values[:3] == ["image-to-image:image", "inpaint:image", "outpaint:image"]
    assert {"pulid/swap:image", "pulid/swap:face_image", "instantid/generate:pose_image"} <= set(values)
    words = [words for _, words in page.targets()]
    assert len(set(words)) == len(words), "two entries read alike"


def test_no_listener_is_part_of_a_public_api(built):
    _, blocks = built(CATALOG)
    functions = list(blocks.fns.values())
    assert len(functions) > 20
    assert {function.api_visibility for function in functions} == {"private"}
    assert blocks.get_api_info()["named_endpoints"] == {}


def test_no_message_is_told_to_the_components_of_the_page(built):
    """Each would cost a walk through the whole page in the browser: with many forms a drawing showed no step."""
    _, blocks = built(CATALOG)
    told = [function for function in blocks.config["dependencies"] if function["backend_fn"]]
    assert len(told) > 20
    assert [function for function in told if function["show_progress_on"] != []] == []


def test_no_listener_waits_for_another(built):
    """Gradio's own default is one call at a time: one long job would hold up every other browser."""
    _, blocks = built(CATALOG)
    functions = [function for function in blocks.fns.values() if function.concurrency_id != "models"]
    assert len(functions) > 20
    assert {function.concurrency_limit for function in functions} <= {"default", None}
    assert blocks._queue.default_concurrency_limit is None


def test_what_became_of_a_batch_is_written_over_by_no_late_answer(built):
    """The form's count is asked for at every change, also just before the press, and may be answered after it."""
    _, blocks = built(CATALOG)
    (said,) = [id for id, block in blocks.blocks.items() if block.elem_id == "batch-said"]
    writers = [f.fn for f in blocks.fns.values() if said in [block._id for block in f.outputs]]
    assert [fn.__name__ for fn in writers if fn] == ["enqueue"], "the rest is the browser's own, at once"


def test_only_what_draws_forms_from_the_models_takes_turns(built):
    """None of these waits for a job. Side by side, an older answer could come after a newer one and stay."""
    page, blocks = built(CATALOG)
    in_turn = [function for function in blocks.fns.values() if function.concurrency_id == "models"]
    assert {function.fn.__name__ for function in in_turn} == {"restore", "refresh", "models_changed"}
    assert {function.concurrency_limit for function in in_turn} == {1}
    forms = [panel for panel in page.panels.values() if panel.form.widget("model") is not None]
    assert len(in_turn) == 2 + len(forms) > 10


def test_style_and_script_name_no_other_host():
    look = theme()
    assert look._stylesheets == []
    text = style_sheet() + head() + look._get_theme_css()
    hosts = {found for found in re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", text)} - {"www.w3.org"}
    assert not hosts, hosts
    assert "@import" not in text


def test_building_the_page_leaves_no_file_beside_the_source():
    folder = Path(app.ui.__file__).parent
    strange = [path.name for path in folder.iterdir() if path.suffix not in {".py", ".css", ".js", ".svg", ""}]
    assert not strange, strange
