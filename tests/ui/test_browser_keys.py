"""With keys set, the page asks for one, and what one key made the other does not see."""

import pytest

from tests.ui.serving import server

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def keyed_server(tmp_path_factory):
    home = tmp_path_factory.mktemp("keyed")
    settings = {"catalog": "tests.ui.capabilities:CATALOG", "devices": "cpu", "api_keys": "first-key,second-key"}
    with server(home, **settings) as address:
        yield address


def log_in(page, key: str) -> None:
    page.locator("#key").fill(key)
    page.get_by_role("button", name="Log in").click()


def test_a_key_opens_the_page_and_keeps_others_out(keyed_server, open_page):
    page = open_page(keyed_server, wait=False)
    assert page.url.endswith("/login")
    log_in(page, "wrong-key")
    page.wait_for_selector("text=not known")
    open_page.complaints[:] = [text for text in open_page.complaints if "401" not in text]
    log_in(page, "first-key")
    page.wait_for_selector(".eis-header")
    cookie = next(cookie for cookie in page.context.cookies() if cookie["name"] == "eis_session")
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and "first-key" not in cookie["value"]

    page.locator(".eis-prompt textarea:visible").fill("for one key only")
    box = page.locator("input[type=number]:visible").first
    box.fill("0.01")
    box.press("Tab")
    page.locator("#generate-slow").click()
    page.wait_for_selector("#stage-slow .eis-result")
    picture = page.locator("#stage-slow .eis-picture").get_attribute("src")
    page.get_by_role("tab", name="Gallery", exact=True).click()
    page.wait_for_selector("text=1 picture")

    other = open_page(keyed_server, wait=False)
    log_in(other, "second-key")
    other.wait_for_selector(".eis-header")
    other.get_by_role("tab", name="Gallery", exact=True).click()
    other.wait_for_selector("text=No pictures yet")
    other.get_by_role("tab", name="Jobs", exact=True).click()
    other.wait_for_selector("text=No jobs yet")
    status = other.evaluate("path => fetch(path).then(answer => answer.status)", f"/{picture}")
    assert status == 404
    open_page.complaints[:] = [text for text in open_page.complaints if "404" not in text]


@pytest.fixture(scope="module")
def operated_server(tmp_path_factory):
    settings = {"catalog": "tests.ui.capabilities:CATALOG", "devices": "cpu"}
    keys = {"api_keys": "first-key,second-key", "admin_keys": "first-key"}
    with server(tmp_path_factory.mktemp("operated"), **settings, **keys) as address:
        yield address


def test_only_an_operator_s_key_is_offered_the_whole_service_s_controls(operated_server, open_page):
    operator = open_page(operated_server, wait=False)
    log_in(operator, "first-key")
    operator.wait_for_selector(".eis-header")
    operator.get_by_role("tab", name="Batch", exact=True).click()
    operator.locator("#batch-head").get_by_role("button", name="Pause").click()
    operator.locator("#batch-head").get_by_role("button", name="Resume").click()
    operator.locator("#batch-head").get_by_role("button", name="Pause").wait_for()
    operator.get_by_role("tab", name="GPU & Memory", exact=True).click()
    operator.wait_for_selector("#device-choices .eis-choice")
    operator.get_by_role("tab", name="Models", exact=True).click()
    operator.get_by_role("button", name="Add a file").wait_for()

    user = open_page(operated_server, wait=False)
    log_in(user, "second-key")
    user.wait_for_selector(".eis-header")
    user.get_by_role("tab", name="Models", exact=True).click()
    user.wait_for_selector("#model-list >> text=Only a key that EIS_ADMIN_KEYS names")
    user.wait_for_selector(".eis-model")
    assert not user.locator("#model-list button:visible").count()
    user.get_by_role("tab", name="GPU & Memory", exact=True).click()
    user.wait_for_selector("#device-choices >> text=Only a key that EIS_ADMIN_KEYS names")
    user.wait_for_selector("#device-strategy input:disabled")
    assert not user.locator("#device-choices .eis-choice").count()
    user.get_by_role("tab", name="Batch", exact=True).click()
    user.wait_for_selector("#batch-head .eis-queue-bar")
    assert not user.locator("#batch-head button").count()

    # What is not offered is refused as well.
    user.locator("#batch-head .eis-queue-bar").evaluate(
        "bar => { bar.insertAdjacentHTML('beforeend', '<button data-action=pause></button>');"
        " bar.lastElementChild.click(); }"
    )
    user.wait_for_selector("text=may do this")
    told = user.evaluate("fetch('api/v1/batch').then(answer => answer.json())")
    assert not told["queue"]["paused"]
