"""The Batch tab through a real browser: many jobs from a few lines, their order, the pause, retry and cancel."""

import pytest

from tests.ui.serving import server

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def batch_server(tmp_path_factory):
    """A server of its own: the pause and the order of the queue would meddle with other tests."""
    home = tmp_path_factory.mktemp("batches")
    with server(home, catalog="tests.ui.capabilities:CATALOG", devices="cpu", batch_limit="50") as address:
        yield address


@pytest.fixture
def page(batch_server, open_page):
    """The tab, with the queue paused, and empty again at the end."""
    page = open_page(batch_server)
    page.get_by_role("tab", name="Batch", exact=True).click()
    page.locator("#batch-head").get_by_role("button", name="Pause").click()
    page.wait_for_selector("#batch-head .eis-paused")
    yield page
    page.evaluate(
        """async () => {
          const listed = await (await fetch("api/v1/batch")).json();
          for (const batch of listed.batches)
            if (batch.counts.queued || batch.counts.running) await fetch(batch.links.cancel, { method: "DELETE" });
          await fetch("api/v1/batch/resume", { method: "POST" });
        }"""
    )
    page.wait_for_function("async () => (await (await fetch('api/v1/batch')).json()).queue.running === 0")


def fill(page, *, prompts: str = "", lists: str = "", same: str = "step_seconds = 0") -> None:
    for box, text in (("prompts", prompts), ("lists", lists), ("same", same)):
        field = page.locator(f"#batch-{box} textarea")
        if field.is_visible():
            field.fill(text)
            field.press("Tab")


def choose(page, title: str) -> None:
    page.locator("#batch-capability input").click()
    page.get_by_role("option", name=title, exact=True).click()


def add(page, count: int) -> str:
    """Press the button; answers the new batch's id."""
    known = page.locator("#batch-list [data-batch]").count()
    page.locator("#batch-submit").click()
    page.wait_for_selector(f"#batch-said >> text=/Added {count} jobs? to the queue/")
    page.wait_for_function(f"() => document.querySelectorAll('#batch-list [data-batch]').length === {known + 1}")
    return page.locator("#batch-list [data-batch]").first.get_attribute("data-batch")


def waiting(page) -> list[str]:
    """The words of the waiting jobs, in their order."""
    return page.locator("#batch-waiting .eis-job-words").all_inner_texts()


def test_every_combination_runs_to_its_pictures(page):
    fill(page, prompts="a red car\n\na blue boat", lists="seed = 1..2", same="num_inference_steps = 1")
    page.wait_for_selector("#batch-count >> text=Makes 4 jobs")
    batch = add(page, 4)
    page.wait_for_function("() => document.querySelectorAll('#batch-waiting .eis-job').length === 4")
    assert waiting(page) == ["a red car", "a red car", "a blue boat", "a blue boat"]
    assert "Next in line" in page.locator("#batch-waiting .eis-job").first.inner_text()
    assert "seed 2" in page.locator("#batch-waiting .eis-job").nth(3).inner_text()
    page.locator("#batch-head").get_by_role("button", name="Resume").click()
    row = page.locator(f"[data-batch='{batch}']")
    page.wait_for_selector(f"[data-batch='{batch}'] >> text=4 of 4 done")
    page.wait_for_selector(f"[data-batch='{batch}'] .eis-batch-pictures img")
    assert row.locator(".eis-batch-pictures img").count() == 4
    width = row.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert width > 0
    row.get_by_role("button", name="Hide").click()
    page.wait_for_function(f"() => !document.querySelector('[data-batch=\"{batch}\"] img')")


def test_line_by_line_and_lists_that_do_not_fit(page):
    fill(page, prompts="one\ntwo\nthree", lists="seed = 1, 2")
    page.locator("#batch-how").get_by_text("Line by line").click()
    page.wait_for_selector("#batch-count >> text=/equally long.*prompt 3, seed 2/")
    fill(page, prompts="one\ntwo\nthree", lists="seed = 7, 8, 9")
    page.wait_for_selector("#batch-count >> text=Makes 3 jobs")
    add(page, 3)
    page.wait_for_function("() => document.querySelectorAll('#batch-waiting .eis-job').length === 3")
    assert waiting(page) == ["one", "two", "three"]
    assert "seed 9" in page.locator("#batch-waiting .eis-job").nth(2).inner_text()


def test_a_refusal_names_the_job_and_keeps_the_form(page):
    fill(page, prompts="good", lists="num_inference_steps = 1, 0")
    page.locator("#batch-submit").click()
    page.wait_for_selector("#batch-said >> text=/Job 1: num_inference_steps/")
    assert page.locator("#batch-waiting .eis-job").count() == 0
    assert page.locator("#batch-prompts textarea").input_value() == "good"
    fill(page, lists="seed = 1..51")
    page.wait_for_selector("#batch-count >> text=/51 jobs are too many/")
    assert page.locator("#batch-said").inner_text() == "", "what was mended is no longer refused"
    fill(page, lists="nonsense")
    page.wait_for_selector("#batch-count >> text=/field = value/")


def test_priorities_reorder_what_waits(page):
    fill(page, prompts="first\nsecond")
    first = add(page, 2)
    fill(page, prompts="urgent")
    second = add(page, 1)
    page.wait_for_function("() => document.querySelectorAll('#batch-waiting .eis-job').length === 3")
    assert waiting(page) == ["first", "second", "urgent"]
    page.locator(f"[data-batch='{second}']").get_by_role("button", name="Raise the priority").click()
    page.wait_for_function("() => document.querySelector('#batch-waiting .eis-job-words').innerText === 'urgent'")
    last = page.locator("#batch-waiting .eis-job").nth(2)
    assert "second" in last.inner_text() and "2 before it" in last.inner_text()
    for priority in (6, 7):
        job = page.locator("#batch-waiting .eis-job", has_text="second")
        job.get_by_role("button", name="Raise the priority").click()
        page.wait_for_function(
            """(priority) => [...document.querySelectorAll('#batch-waiting .eis-job')].some((row) =>
              row.innerText.includes('second') && row.querySelector('.eis-stepper > span').innerText === priority)""",
            arg=str(priority),
        )
    assert waiting(page) == ["second", "urgent", "first"]
    assert page.locator(f"[data-batch='{first}'] .eis-stepper > span").inner_text() == "7"


def test_cancel_one_and_then_all(page):
    fill(page, prompts="stays\ngoes\nstays too")
    batch = add(page, 3)
    page.locator("#batch-waiting .eis-job", has_text="goes").get_by_role("button", name="Cancel").click()
    page.wait_for_function("() => document.querySelectorAll('#batch-waiting .eis-job').length === 2")
    assert waiting(page) == ["stays", "stays too"]
    row = page.locator(f"[data-batch='{batch}']")
    row.get_by_role("button", name="Cancel").click()
    assert page.locator("#batch-waiting .eis-job").count() == 2, "one click must not cancel them all"
    row.get_by_role("button", name="Cancel all?").click()
    page.wait_for_selector(f"[data-batch='{batch}'] >> text=3 cancelled")
    assert page.locator("#batch-waiting .eis-job").count() == 0


def test_the_failed_are_retried_and_progress_is_seen(page):
    choose(page, "Fail")
    page.locator("#batch-prompts").wait_for(state="hidden")
    fill(page, lists="way = refusal, bug", same="")
    failing = add(page, 2)
    choose(page, "Slow")
    page.locator("#batch-prompts").wait_for(state="visible")
    fill(page, prompts="slowly", same="step_seconds = 0.5", lists="num_inference_steps = 40")
    slow = add(page, 1)
    page.locator("#batch-head").get_by_role("button", name="Resume").click()
    row = page.locator(f"[data-batch='{failing}']")
    page.wait_for_selector(f"[data-batch='{failing}'] >> text=2 failed")
    page.wait_for_selector("#batch-running >> text=/Step [1-9]\\d* of 40/")
    row.get_by_role("button", name="Show").click()
    page.wait_for_selector(f"[data-batch='{failing}'] >> text=Job 1: The wish cannot be granted.")
    row.get_by_role("button", name="Retry failed").click()
    page.wait_for_selector(f"[data-batch='{failing}'] >> text=2 waiting")
    page.locator(f"[data-batch='{slow}']").get_by_role("button", name="Cancel").click()
    page.locator(f"[data-batch='{slow}']").get_by_role("button", name="Cancel all?").click()
    page.wait_for_selector(f"[data-batch='{slow}'] >> text=1 cancelled")
    page.wait_for_selector(f"[data-batch='{failing}'] >> text=2 failed")


def test_a_capability_that_takes_a_picture_gets_one(page):
    choose(page, "Copy")
    page.locator(".eis-batch .eis-drop:visible").wait_for()
    fill(page, same="")
    page.locator("#batch-submit").click()
    page.wait_for_selector("#batch-said >> text=/Job 0: image/")
    options = page.locator("#batch-capability input")
    options.click()
    assert page.get_by_role("option", name="Fill", exact=True).count() == 0, "masks are painted, one picture at a time"
    page.keyboard.press("Escape")


def test_the_pause_is_told_at_the_top_and_to_who_comes_later(page, batch_server, open_page):
    page.wait_for_selector(".eis-header >> text=Paused")
    later = open_page(batch_server)
    later.wait_for_selector(".eis-header >> text=Paused")
    later.get_by_role("tab", name="Batch", exact=True).click()
    later.wait_for_selector("#batch-head .eis-paused")
    page.get_by_role("tab", name="Jobs", exact=True).click()
    page.get_by_role("tab", name="Batch", exact=True).click()
    page.wait_for_selector("#batch-head .eis-paused")
    page.locator("#batch-head").get_by_role("button", name="Resume").click()
    for one in (page, later):
        one.wait_for_selector("#batch-head .eis-queue-bar:not(.eis-paused)")
        one.wait_for_selector(".eis-header >> text=Ready")
