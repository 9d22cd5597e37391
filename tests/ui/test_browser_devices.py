"""Through a real browser: the GPU & Memory tab shows described devices live, and clicks change what they are given."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.serving import Running, serving
from tests.engine.conftest import end_of, until
from tests.ui.screenshot import wait_for_page

pytestmark = pytest.mark.browser
FAKES = ("cuda:0=RTX 4090:24:38:64", "cuda:1=RTX 3060:12:5", "cuda:2=GTX 1660:5.9:92")


@pytest.fixture(scope="module")
def devices_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a page and three described devices, all ready."""
    home: Path = tmp_path_factory.mktemp("devices")
    forms = "tests.ui.capabilities:MODELLED"
    with serving(home, ui=True, catalog=forms, devices=("auto",), fake_devices=FAKES, ready_seconds=120) as running:
        until(lambda: set(states(running).values()) == {"idle"}, 120)
        wait_for_page(running.address)
        yield running


def states(running: Running) -> dict[str, str]:
    return {device["device"]: device["state"] for device in running.service.device_status()["devices"]}


def open_tab(open_page: Any, running: Running) -> Any:
    page = open_page(running.address)
    page.get_by_role("tab", name="GPU & Memory", exact=True).click()
    page.locator("#device-cards .eis-device-card").nth(2).wait_for()
    return page


def card(page: Any, device: str) -> Any:
    return page.locator(f"#device-cards .eis-device-card[data-device='{device}']")


def choice(page: Any, device: str) -> Any:
    return page.locator(f"#device-choices .eis-choice[data-device='{device}']")


def test_every_device_is_shown_with_its_figures(devices_server: Running, open_page: Any) -> None:
    page = open_tab(open_page, devices_server)
    assert page.locator("#device-cards .eis-device-card").count() == 3
    first = card(page, "cuda:0")
    text = first.inner_text()
    assert "RTX 4090" in text and "HIGH" in text and "Simulated" in text and "64 °C" in text and "0 of 8" in text
    load = first.get_by_role("meter", name="Load")
    assert load.get_attribute("aria-valuenow") == "38"
    width = load.locator("i").evaluate("bar => bar.getBoundingClientRect().width")
    whole = load.evaluate("bar => bar.getBoundingClientRect().width")
    assert abs(width / whole - 0.38) < 0.02
    assert re.search(r"0 MiB of 24 GiB", text)
    third = card(page, "cuda:2").inner_text()
    assert "LOW" in third and "not told" in third, "5.9 GB counts as 6, and nobody told its temperature"
    assert "run on the CPU" in page.locator(".eis-note:visible").inner_text()
    assert page.get_by_role("radio", name="Automatic").is_checked()


def test_cards_follow_the_jobs_by_themselves(devices_server: Running, open_page: Any) -> None:
    service = devices_server.service
    page = open_tab(open_page, devices_server)
    job = service.submit("test/paint", {"seed": 1, "num_inference_steps": 5000, "step_seconds": 0.02})
    until(lambda: service.get(job.id).device)
    own = card(page, service.get(job.id).device)
    own.locator("text=Working").wait_for()
    own.locator(".eis-held >> text=Paint").wait_for()
    assert "1 of 8" in own.inner_text()
    service.cancel(job.id)
    own.locator(".eis-operations >> text=Cancelled").wait_for()
    own.locator("text=Idle").wait_for()
    drawn = end_of(service, service.submit("test/draw", {"prompt": "", "model": "pocket"}).id)
    card(page, drawn.device).locator(".eis-ready >> text=pocket").wait_for()


def test_a_click_disables_a_device_and_another_enables_it(devices_server: Running, open_page: Any) -> None:
    service = devices_server.service
    page = open_tab(open_page, devices_server)
    choice(page, "cuda:0").get_by_role("button", name="Disable").click()
    choice(page, "cuda:0").get_by_role("button", name="Enable").wait_for()
    until(lambda: states(devices_server)["cuda:0"] == "disabled")
    card(page, "cuda:0").locator("text=Disabled").wait_for()
    used = {end_of(service, service.submit("test/paint", {"seed": seed}).id).device for seed in range(3)}
    assert "cuda:0" not in used
    choice(page, "cuda:1").get_by_role("button", name="Disable").click()
    choice(page, "cuda:1").get_by_role("button", name="Enable").wait_for()
    choice(page, "cuda:2").get_by_role("button", name="Disable").click()
    page.locator("text=One device must stay enabled").wait_for()
    assert states(devices_server)["cuda:2"] == "idle"
    for device in ("cuda:0", "cuda:1"):
        choice(page, device).get_by_role("button", name="Enable").click()
        choice(page, device).get_by_role("button", name="Disable").wait_for()
    until(lambda: set(states(devices_server).values()) == {"idle"})


def test_strategy_seats_and_limit_are_chosen_and_found_again(devices_server: Running, open_page: Any) -> None:
    service = devices_server.service
    page = open_tab(open_page, devices_server)
    page.locator("#device-strategy label", has_text="In turns").click()
    page.locator(".eis-strategy >> text=longest ago").wait_for()
    assert service.device_status()["strategy"] == "round_robin"
    jobs = [end_of(service, service.submit("test/paint", {"seed": seed}).id) for seed in range(3)]
    assert {job.device for job in jobs} == {"cuda:0", "cuda:1", "cuda:2"}
    choice(page, "cuda:1").locator("select[data-action=seats]").select_option(label="2 at once")
    choice(page, "cuda:1").locator("text=Jobs: 2 at once").first.wait_for(state="attached")
    choice(page, "cuda:1").locator("select[data-action=limit]").select_option(label="50 % (6.0 GiB)")
    choice(page, "cuda:1").locator("text=Models: up to 6.0 GiB").first.wait_for(state="attached")
    card(page, "cuda:1").locator("text=6.0 GiB (limit)").wait_for()
    again = open_tab(open_page, devices_server)
    assert again.get_by_label("In turns").is_checked()
    assert "0 of 2" in card(again, "cuda:1").inner_text()
    choice(again, "cuda:1").locator("select[data-action=limit]").select_option(label="As the settings say")
    card(again, "cuda:1").locator("text=10.2 GiB").wait_for()
    told = service.device_status()["devices"][1]
    assert (told["jobs_at_once"], told["memory_limit_bytes"]) == (2, None)
