"""`/docs` in a real browser: the nine endpoints of batch, devices and memory are shown, and one is tried out."""

from typing import Any

import pytest

from tests.api.test_nine_endpoints import NINE
from tests.ui.conftest import PATIENCE

pytestmark = pytest.mark.browser


def test_the_nine_endpoints_are_shown_and_one_is_tried(chromium: Any, squares_server: str) -> None:
    context = chromium.new_context(viewport={"width": 1360, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{squares_server}/docs")
    page.wait_for_selector(".opblock-summary-path")
    for method, path in NINE:
        row = page.locator(f'.opblock-{method}:has(.opblock-summary-path[data-path="{path}"])')
        assert row.count() == 1, (method, path)
        assert row.locator(".opblock-summary-description").inner_text()
    row = page.locator('.opblock-get:has([data-path="/api/v1/gpu/status"])')
    row.locator(".opblock-summary-control").click()
    row.locator(".try-out__btn").click()
    row.locator(".execute").click()
    told = row.locator(".live-responses-table .response-col_description code").first
    told.wait_for()
    assert '"strategy"' in told.inner_text() and '"cpu"' in told.inner_text()
    assert asked and all(url.startswith((squares_server, "data:", "blob:")) for url in asked)
    context.close()
