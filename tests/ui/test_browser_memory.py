"""Through a real browser, with the embedded model in a worker of its own: the memory part of GPU & Memory."""

from collections.abc import Iterator
from typing import Any

import pytest

from app.ui.memory_section import PLACES, draw_cards, draw_choices
from tests.api.serving import Running, serving
from tests.ui.screenshot import wait_for_page

WISH = {"prompt": "a red car, blue background", "model": "pocket", "num_inference_steps": 2, "seed": 1}
GIB = 2**30
DEVICE = {
    "device": "cuda:0",
    "runs_on": "cuda:0",
    "state": "idle",
    "pid": 7,
    "is_live": True,
    "settings": {"offload": "auto", "precision": "int8", "model_memory_bytes": None, "parked_memory_bytes": None},
    "precision": "int8",
    "total_bytes": 24 * GIB,
    "free_bytes": 6 * GIB,
    "reserved_bytes": 12 * GIB,
    "allocated_bytes": 10 * GIB,
    "placed_bytes": 9 * GIB,
    "parked_bytes": 3 * GIB,
    "models": [{"model": "sd<xl", "state": "placed", "bytes": 9 * GIB, "borrowed": True, "strategy": "streamed"}],
}


def drawn(**changes: Any) -> str:
    status = {"process": {"pid": 1, "rss_bytes": 200 * 2**20}, "devices": [{**DEVICE, **changes}]}
    return draw_cards(status) + draw_choices(status)


def test_the_bar_is_cut_into_what_fills_the_device() -> None:
    html = drawn()
    assert [f'class="eis-{kind}" style="width:{share:.2f}%"' in html for kind, share in (
        ("models", 37.5), ("working", 12.5), ("others", 25.0), ("free", 25.0),
    )] == [True] * 4  # fmt: skip
    assert "Models 9.0 GiB, Its process besides 3.0 GiB" in html and "3.0 GiB of models lie in RAM" in html
    assert "sd&lt;xl" in html and "In use" in html and "Streamed from RAM" in html
    assert 'value="model_cpu"' in html and 'value="int4"' in html and "Format: 8-bit integers" in html
    assert "200 MiB of RAM" in html and "eis-note" not in html


def test_what_is_not_known_is_said() -> None:
    silent = dict.fromkeys(("total_bytes", "free_bytes", "reserved_bytes", "placed_bytes", "parked_bytes", "precision"))
    html = drawn(**silent, models=[], pid=None)
    assert "Nothing is known" in html and "No model is loaded" in html and "Too busy" not in html
    assert "Too busy to answer" in drawn(is_live=False)
    on_cpu = drawn(runs_on="cpu")
    assert "on cpu" in on_cpu and 'value="model_cpu"' not in on_cpu and 'value="vae"' in on_cpu
    for state, (words, _) in PLACES.items():
        assert words in drawn(models=[{**DEVICE["models"][0], "state": state, "strategy": None}])


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a page and a real worker that has drawn once."""
    home = tmp_path_factory.mktemp("memory")
    real = {"catalog": "app.core.catalog:CATALOG", "engine": {"runtime": "app.models.runtime:open_runtime"}}
    with serving(home, ui=True, devices=("cpu",), ready_seconds=300, **real) as running:
        wait_for_page(running.address)
        draw(running)
        yield running


def draw(running: Running) -> dict[str, Any]:
    answer = running.client.post("/api/v1/text-to-image?wait=120", json=WISH, timeout=130)
    assert answer.json()["status"] == "succeeded", answer.text
    return answer.json()["result"]["images"][0]


def told(running: Running) -> dict[str, Any]:
    return running.client.get("/api/v1/memory/status", timeout=60).json()["devices"][0]


@pytest.mark.browser
def test_models_are_seen_changed_and_freed(working: Running, open_page: Any) -> None:
    page = open_page(working.address)
    page.get_by_role("tab", name="GPU & Memory", exact=True).click()
    card = page.locator("#memory-cards .eis-device-card")
    card.locator(".eis-memory-models >> text=pocket").wait_for()
    bar = card.locator(".eis-stack")
    whole = bar.evaluate("bar => bar.getBoundingClientRect().width")
    models = bar.locator("i").first.evaluate("part => part.getBoundingClientRect().width")
    memory = told(working)
    assert abs(models / whole - memory["placed_bytes"] / memory["total_bytes"]) < 0.01

    choices = page.locator("#memory-choices .eis-choice")
    choices.locator("select[data-action=offload]").select_option(label="Attention in slices")
    choices.locator("text=Weights: Attention in slices").first.wait_for(state="attached")
    choices.locator("select[data-action=precision]").select_option(label="float8 storage")
    choices.locator("text=Format: float8 storage").first.wait_for(state="attached")
    assert (told(working)["settings"]["offload"], told(working)["precision"]) == ("attention", "float8")
    draw(working)
    card.locator(".eis-memory-models >> text=Attention in slices").wait_for()
    assert told(working)["models"][0]["strategy"] == "attention"

    page.get_by_role("button", name="Free what no job uses").click()
    page.locator(".eis-freed >> text=pocket").wait_for()
    assert told(working)["models"] == []
    choices.locator("select[data-action=precision]").select_option(label="As the settings say")
    choices.locator("text=Format: Automatic").first.wait_for(state="attached")
    choices.locator("select[data-action=offload]").select_option(label="As the settings say")
    choices.locator("text=Weights: Automatic").first.wait_for(state="attached")
    assert told(working)["settings"]["offload"] == "auto"
