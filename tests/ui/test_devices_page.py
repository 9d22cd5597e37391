"""What the GPU & Memory tab draws of a device, whatever state it is in; nothing that a driver says becomes markup."""

from html import escape
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app.core.multi_gpu import Strategy
from app.ui.devices_page import OUTCOMES, STATES, STRATEGIES, DevicesPage, draw_choices
from app.ui.memory_section import GIB, gib

DEVICE = {
    "device": "cuda:0",
    "name": "RTX <b>4090",
    "kind": "cuda",
    "tier": "HIGH",
    "simulated": False,
    "load_percent": 12.0,
    "temperature_celsius": 61,
    "total_bytes": 24 * GIB,
    "free_bytes": 6 * GIB,
    "runs_on": "cuda:0",
    "enabled": True,
    "state": "idle",
    "trouble": None,
    "memory_limit_bytes": None,
    "models_may_take_bytes": 20 * GIB,
    "jobs_at_once": 8,
    "held": 0,
    "jobs": [],
    "resident_models": ["sdxl"],
    "last_operations": [],
}


@pytest.fixture(scope="module")
def page() -> DevicesPage:
    capability = SimpleNamespace(name="inpaint", title="Inpaint")
    with gr.Blocks():
        return DevicesPage(SimpleNamespace(catalog=(capability,)))


def drawn(page: DevicesPage, **changes: Any) -> str:
    status = {"strategy": "auto", "simulated": False, "devices": [{**DEVICE, **changes}]}
    return page.draw_cards(status) + draw_choices(status)


def test_a_card_shows_its_figures_and_escapes_them(page: DevicesPage) -> None:
    html = drawn(page, trouble="the <driver> & its log")
    assert "18 GiB of 24 GiB" in html and 'aria-valuenow="75"' in html and "12 %" in html and "61 °C" in html
    assert "RTX &lt;b&gt;4090" in html and "<b>" not in html
    assert "the &lt;driver&gt; &amp; its log" in html
    assert "eis-note" not in html, "nothing is simulated here"
    assert "6.0 GiB" in html and 'value="6442450944"' in html, "a quarter of the device can be chosen"


def test_what_nobody_tells_is_not_a_nought(page: DevicesPage) -> None:
    html = drawn(page, load_percent=None, temperature_celsius=None, total_bytes=None, free_bytes=None, tier=None,
                 models_may_take_bytes=None)  # fmt: skip
    assert html.count("not told") == 2 and "unknown of unknown" in html
    assert "eis-tier" not in html and "25 %" not in html


@pytest.mark.parametrize("state", list(STATES))
def test_every_state_is_drawn(page: DevicesPage, state: str) -> None:
    if state == "unused":
        known = {name: DEVICE[name] for name in list(DEVICE)[:9]}
        device = {**known, "enabled": False, "state": state}
        status = {"strategy": "auto", "simulated": False, "devices": [device]}
        html = page.draw_cards(status) + draw_choices(status)
        assert "data-action" not in html, "there is nothing to choose for it"
    else:
        html = drawn(page, state=state, enabled=state not in {"disabled", "finishing"})
    assert escape(STATES[state][0]) in html


@pytest.mark.parametrize("outcome", list(OUTCOMES))
def test_operations_and_jobs_are_told_in_words(page: DevicesPage, outcome: str) -> None:
    done = {"job": None, "capability": "inpaint", "model": "sdxl", "seconds": 3.25, "outcome": outcome, "ended": 0.0}
    html = drawn(page, last_operations=[done], jobs=[{"job": "x", "capability": "gone/one", "model": None}], held=1)
    assert OUTCOMES[outcome][0] in html and "Inpaint · sdxl" in html and "3.2 s" in html
    assert "gone/one" in html and "1 of 8" in html


def test_words_exist_for_every_strategy() -> None:
    assert list(STRATEGIES) == [strategy.value for strategy in Strategy]


def test_sizes_are_told_as_cards_are_sold() -> None:
    assert [gib(count) for count in (None, 0, 40 * 2**20, GIB, int(11.5 * GIB), 24 * GIB)] == [
        "unknown", "0 MiB", "40 MiB", "1.0 GiB", "11.5 GiB", "24 GiB",
    ]  # fmt: skip
