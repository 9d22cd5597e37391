"""Takes the README's picture of the page: `python -m tests.ui.screenshot [FILE]`.

Starts a server in a folder of its own, draws a few pictures with the embedded model and photographs the main tab.
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.ui.conftest import CHROMIUM, FLAGS, PATIENCE
from tests.ui.serving import ROOT, server

WISHES = (
    "a green tree, white background",
    "a yellow star, purple background",
    "a blue house, yellow background",
    "a red car, blue background",
)


def take(target: Path) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as home, server(Path(home)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": 1360, "height": 940}, color_scheme="light")
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_selector(".eis-health.eis-good")
        for seed, words in enumerate(WISHES, 7):
            page.locator(".eis-prompt textarea:visible").fill(words)
            page.get_by_label("Seed", exact=True).locator("visible=true").fill(str(seed))
            page.locator("#generate-text-to-image").click()
            page.wait_for_selector(f"#stage-text-to-image .eis-result >> text={words}")
        page.mouse.move(1, 1)
        page.wait_for_timeout(2000)
        page.wait_for_selector(".eis-health.eis-good")
        page.screenshot(path=str(target))
        browser.close()


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "text-to-image.png")
