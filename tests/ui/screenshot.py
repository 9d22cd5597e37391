"""Takes pictures of the page: `python -m tests.ui.screenshot [FILE]`, or `python -m tests.ui.screenshot tour FOLDER`.

The first starts a server in a folder of its own, draws a few pictures with the embedded model and photographs the main
tab for the README. The tour photographs every tab, light and dark, over pictures of the little world: no model runs.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from app.core.jobs import ImageRecord
from app.imaging.infotext import build_infotext
from app.pocket.world import draw, random_scene
from tests.api.serving import Running, serving
from tests.ui.conftest import CHROMIUM, FLAGS, PATIENCE
from tests.ui.serving import ROOT, answers, server

OTHERS = ("ControlNet", "Edit", "Inpaint Anything", "PuLID", "EcomID", "InstantID", "IP-Adapter")
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
        page.evaluate("scrollTo(0, 0)")  # filling in the seed scrolled to it
        page.screenshot(path=str(target))
        browser.close()


def hang(running: Running, capability: str, count: int) -> None:
    """Put pictures into the gallery as if jobs had made them."""
    for seed in range(count):
        words = f"number {seed} of the little world, as {capability} made it"
        request = {"prompt": words, "model": "pocket", "seed": seed, "num_inference_steps": 16, "guidance_scale": 3.0}
        image = draw(random_scene(random.Random(seed)))
        infotext = build_infotext(request, seed=seed, size=image.size, model="pocket", version="tour")
        recipe = {"capability": capability, "request": request, "model": "pocket"}
        stored = running.service.storage.save_result(image, recipe=recipe, infotext=infotext)
        facts = {"kind": "result", "capability": capability, "prompt": words, "seed": seed, **vars(stored)}
        running.service._store.images.add(ImageRecord(**facts))


def shoot(page: Any, folder: Path, name: str) -> None:
    """One picture of the page as it stands, once it has come to rest."""
    page.mouse.move(1, 1)
    page.wait_for_timeout(1500)
    page.screenshot(path=str(folder / f"{name}.png"))


def tour(folder: Path) -> None:
    """Write a picture of every tab, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), ui=True, catalog="app.core.catalog:CATALOG", ready_seconds=300) as running,
        sync_playwright() as playwright,
    ):
        hang(running, "text-to-image", 9)
        wait_for_page(running.address)
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        for look in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1360, "height": 940}, color_scheme=look)
            page.set_default_timeout(PATIENCE)
            page.goto(running.address)
            page.locator("#stage-text-to-image .eis-recent .eis-thumb").first.click()
            page.wait_for_selector("#stage-text-to-image .eis-picture")
            shoot(page, folder, f"text-to-image-{look}")
            for name in ("Image to image", "Inpaint", "Outpaint"):
                page.locator("#stage-text-to-image select").select_option(label=name)
                page.wait_for_selector(".eis-origin:visible")
                shoot(page, folder, f"{name.lower().replace(' ', '-')}-{look}")
                page.get_by_role("tab", name="Text to image", exact=True).click()
            for name in OTHERS:
                page.get_by_role("tab", name=name, exact=True).first.click()
                shoot(page, folder, f"{name.lower().replace(' ', '-')}-{look}")
            page.get_by_role("tab", name="Gallery", exact=True).click()
            page.locator(".eis-tile").nth(1).click()
            page.wait_for_selector("#gallery-detail .eis-picture")
            shoot(page, folder, f"gallery-{look}")
            for name in ("Jobs", "Batch", "Models", "GPU & Memory"):
                page.get_by_role("tab", name=name, exact=True).click()
                shoot(page, folder, f"{name.lower().replace(' & ', '-')}-{look}")
            page.close()
        browser.close()


def wait_for_page(address: str) -> None:
    """Until the page, which is built behind the answering server, stands."""
    end = time.monotonic() + PATIENCE / 1000
    while not answers(f"{address}/config", ""):
        if time.monotonic() > end:
            raise TimeoutError("the page did not come up")
        time.sleep(0.2)


if __name__ == "__main__" and sys.argv[1:2] == ["tour"]:
    tour(Path(sys.argv[2]))
elif __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "text-to-image.png")
