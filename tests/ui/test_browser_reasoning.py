"""In a real browser: Step1X-Edit's reasoning is read stage by stage while its job runs, and stays however that ends.

A whole model of random weights in a worker process: what it says is noise, and how the words come is real.
"""

import json
import shutil

import pytest
from PIL import Image

from app.core.step1x_edit import STEP1X_EDIT
from app.models.library import ModelLibrary
from tests.models import tiny_step1x
from tests.parity.cases import DATA
from tests.ui.serving import server
from tests.ui.test_browser_identity import put

pytestmark = pytest.mark.browser

CATALOG = (STEP1X_EDIT,)
STAGE = "#stage-step1x-edit"
TITLES = [
    "Rewritten instruction",
    *(f"Try 1: {name}" for name in ("edit", "description", "judgement", "verdict")),
    *(f"Try 1: rating of the {what}" for what in ("edit", "picture")),
]
"""A model of noise says nothing that can be read as a verdict, so there is one try."""

NOTE_WHAT_IS_SHOWN = """() => {
    const stage = document.querySelector("#stage-step1x-edit");
    window.shown = [];
    new MutationObserver(() => {
        const stages = [...stage.querySelectorAll(".eis-stages li")];
        if (stage.querySelector("[data-working]")) window.shown.push(stages.map((one) => one.textContent));
    }).observe(stage, { childList: true, subtree: true, characterData: true });
}"""


@pytest.fixture(scope="module")
def reasoning_server(tmp_path_factory):
    """A worker with a Step1X-Edit of v1.2."""
    home, made = tmp_path_factory.mktemp("reasoning"), tmp_path_factory.mktemp("made")
    case = json.loads((DATA / "step1x_edit" / "case.json").read_text("utf-8"))
    folder = tiny_step1x.make_folder(made / "tiny-step1x", case["keys"], case["config"], version="1.2")
    ModelLibrary(home).add(folder, id="tiny-step1x")
    shutil.rmtree(made)
    settings = {"catalog": f"{__name__}:CATALOG", "devices": "cpu", "precision": "float32"}
    with server(home, **settings) as address:
        yield address


@pytest.fixture
def photo(tmp_path):
    Image.effect_mandelbrot((160, 128), (-2, -1.2, 0.8, 1.2), 60).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def wish(page, photo, *, steps: int) -> None:
    """Ask for an edit that is thought about before and judged after."""
    put(page, "Picture", photo)
    page.locator(".eis-prompt textarea:visible").first.fill("make it <b>blue</b>")
    page.get_by_label("Steps", exact=True).locator("visible=true").fill(str(steps))
    pasted = page.locator(".eis-with-paste_changes")
    assert pasted.count() == 2 and not pasted.locator("visible=true").count(), "nothing is pasted"
    page.get_by_label("Paste only what changed", exact=True).locator("visible=true").check()
    pasted.nth(1).wait_for()
    page.get_by_label("Paste only what changed", exact=True).locator("visible=true").uncheck()
    pasted.nth(1).wait_for(state="hidden")
    page.get_by_label("Worked on at").locator("visible=true").fill("256")
    for name in ("Rewrite the instruction first", "Judge and correct"):
        page.get_by_label(name, exact=True).locator("visible=true").check()
    page.locator("#generate-step1x-edit").click()


def stages_of(page, address: str) -> list[str]:
    """What the job on the stage told, as the page writes it, out of the job's own record."""
    job = page.locator(f"{STAGE} [data-job]").first.get_attribute("data-job")
    told = page.request.get(f"{address}/api/v1/jobs/{job}").json()["result"]["data"]["stages"]
    skipped = " (skipped, not readable)"
    titles = [title + (skipped if one.get("skipped") else "") for title, one in zip(TITLES, told, strict=False)]
    return visible([title + one["text"] for title, one in zip(titles, told, strict=True)])


def shown_on(page) -> list[str]:
    return visible(page.locator(f"{STAGE} .eis-stages li").all_text_contents())


def visible(texts: list[str]) -> list[str]:
    """Texts without what no page keeps of a noise's: kinds of line ends, and bytes of zero."""
    return ["".join(text.replace("\0", "").split()) for text in texts]


def test_each_stage_is_read_while_the_job_runs_and_in_its_result(reasoning_server, open_page, photo):
    page = open_page(reasoning_server)
    page.evaluate(NOTE_WHAT_IS_SHOWN)
    wish(page, photo, steps=12)
    page.wait_for_selector(f"{STAGE} .eis-result")
    told = stages_of(page, reasoning_server)
    assert len(told) == len(TITLES) and shown_on(page) == told
    assert told[0] not in visible(TITLES), "the model said something"

    meanwhile = [visible(seen) for seen in page.evaluate("window.shown")]
    assert all(told[: len(seen)] == seen for seen in meanwhile)
    counts = [len(seen) for seen in meanwhile]
    assert counts == sorted(counts) and counts[0] == 0
    assert {1, 2} & set(counts), "the first stages stood there before anything was judged"
    assert len(set(counts)) >= 3, "they came one after the other"


def test_a_cancelled_edit_keeps_the_stages_so_far(reasoning_server, open_page, photo):
    page = open_page(reasoning_server)
    wish(page, photo, steps=100)
    page.wait_for_selector(f"{STAGE} [data-working] ~ .eis-stages >> text=Try 1: edit")
    page.wait_for_selector(f"{STAGE} >> text=/Step \\d+ of 300/")
    running = shown_on(page)
    page.locator(f"{STAGE} .eis-cancel").click()
    page.wait_for_selector(f"{STAGE} >> text=/Stopped at step \\d+ of 300/")
    told = stages_of(page, reasoning_server)
    assert len(told) == 2 and shown_on(page) == running == told
