"""The memory part of the GPU & Memory tab: what fills each device, the models in it, how they use it, and a cleanup.

What the workers tell is drawn again with the tab's clock; a worker that is too busy to answer shows its last figures
and says so. What a person chooses from is drawn only when it has changed, so that an open list stays open.
"""

import asyncio
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from app.core.model_offload import PRECISIONS, STRATEGIES
from app.errors import ServiceError
from app.ui.panel import QUIET
from app.ui.parts import part
from app.ui.session import may_administer, require_admin, warn
from app.ui.wording import badge, button, chooser

GIB = 2**30
ANSWER_SECONDS = 1.5
"""How long a look waits for workers: the next one comes soon."""
PLACES = {
    "placed": ("On the device", "eis-good"),
    "parked": ("In RAM", "eis-wait"),
    "gone": ("Loading", "eis-go"),
}
WAYS = {
    "auto": "Automatic",
    "none": "Everything on the device",
    "attention": "Attention in slices",
    "vae": "Decode in tiles",
    "model_cpu": "One component at a time",
    "sequential_cpu": "One layer at a time",
    "streamed": "Streamed from RAM",
}
FORMATS = {"auto": "Automatic", "float8": "float8 storage", "int8": "8-bit integers", "int4": "4-bit integers"}
NEED_A_GPU = ("model_cpu", "sequential_cpu", "streamed")
DEFAULT = "default"


class MemorySection:
    """The section's parts and listeners."""

    def __init__(self, service: Any) -> None:
        self.service = service
        gr.HTML('<h2 class="eis-heading">Memory</h2>', apply_default_css=False)
        self.cards = part("", elem_id="memory-cards")
        self.choices = part("", elem_id="memory-choices")

    def connect(self, tab: gr.Tab, timer: gr.Timer) -> None:
        """What is drawn when, and what a choice does."""
        everything = [self.cards, self.choices]
        tab.select(self.open, None, everything, **QUIET)
        timer.tick(self.look, None, self.cards, **QUIET)
        self.cards.act(self.clean, None, self.cards, **QUIET)
        self.choices.act(self.change, None, everything, **QUIET)

    async def ask(self) -> dict[str, Any]:
        """What the workers tell in time."""
        return await asyncio.to_thread(self.service.memory_status, seconds=ANSWER_SECONDS)

    async def look(self, request: gr.Request) -> str:
        """The cards as they stand."""
        return draw_cards(await self.ask(), admin=may_administer(request))

    async def open(self, request: gr.Request) -> list[str]:
        """All of the section; the choices are an operator's."""
        status, admin = await self.ask(), may_administer(request)
        return [draw_cards(status, admin=admin), draw_choices(status) if admin else ""]

    async def clean(self, request: gr.Request) -> str:
        """Drop what no job uses, and say what that freed."""
        try:
            require_admin(request)
            return draw_cards(await asyncio.to_thread(self.service.memory_status, cleanup=True), cleaned=True)
        except ServiceError as error:
            warn(error.message)
            return await self.look(request)

    async def change(self, event: gr.EventData, request: gr.Request) -> list[str]:
        """Another strategy or format for one device, at once."""
        data: Mapping[str, Any] = event._data or {}
        action, value = data.get("action"), str(data.get("value", ""))
        if action in {"offload", "precision"}:
            change = {str(data.get("device")): {action: None if value == DEFAULT else value}}
            try:
                require_admin(request)
                await asyncio.to_thread(self.service.devices.configure, {"devices": change})
            except ServiceError as error:
                warn(error.message)
        return await self.open(request)


def draw_cards(status: Mapping[str, Any], *, admin: bool = True, cleaned: bool = False) -> str:
    """A card for each worker, and for an operator the button that frees what no job uses."""
    cards = "".join(draw_card(device, cleaned) for device in status["devices"])
    front = f"The page and the API use {gib(status['process']['rss_bytes'])} of RAM besides."
    act = button("Free what no job uses", "clean") if admin else ""
    return (
        f'<div class="eis-memory-bar"><p class="eis-hint">{front}</p>{act}</div>'
        f'<div class="eis-devices" role="list">{cards}</div>'
    )


def draw_card(device: Mapping[str, Any], cleaned: bool) -> str:
    """One worker: a picture of its device's memory, and its models."""
    name = escape(device["device"])
    said = ""
    if cleaned:
        dropped = ", ".join(device["dropped_models"]) or "no model was unused"
        said = f'<p class="eis-note eis-freed">Freed {gib(device["freed_bytes"])}: {escape(dropped)}</p>'
    elif not device["is_live"] and device["pid"] is not None:
        said = '<p class="eis-hint">Too busy to answer: the figures are those of its last job.</p>'
    models = "".join(draw_model(model) for model in device["models"])
    models = models or '<p class="eis-hint">No model is loaded.</p>'
    where = f" on {device['runs_on']}" if device["runs_on"] != device["device"] else ""
    return (
        f'<article class="eis-device-card" role="listitem" data-device="{name}">'
        f'<div class="eis-device-title"><strong>{name}</strong><code>{escape(device["precision"] or "")}'
        f"{escape(where)}</code></div>{said}{picture(device)}<h3>Models</h3>"
        f'<ul class="eis-memory-models">{models}</ul></article>'
    )


def draw_model(model: Mapping[str, Any]) -> str:
    """One model: its size, where it is, and how it stands there."""
    words, tone = PLACES[model["state"]]
    badges = badge(words, tone) + (badge("In use", "eis-go") if model["borrowed"] else "")
    way = WAYS[model["strategy"]] if model["strategy"] not in {None, "none"} else ""
    return (
        f"<li><span>{escape(model['model'])}</span><span>{badges}</span><span>{gib(model['bytes'])}</span>"
        f"<em>{way}</em></li>"
    )


def picture(device: Mapping[str, Any]) -> str:
    """A bar of the whole memory, cut into what fills it, with a legend."""
    total = device["total_bytes"]
    if not total:
        return '<p class="eis-hint">Nothing is known of its memory yet.</p>'
    placed = min(device["placed_bytes"] or 0, total)
    working = min(max(0, (device["reserved_bytes"] or 0) - placed), total - placed)
    free = min(device["free_bytes"] or 0, total - placed - working)
    parts = [
        ("models", "Models", placed),
        ("working", "Its process besides", working),
        ("others", "Others and reserve", total - placed - working - free),
        ("free", "Free for models", free),
    ]
    bars = "".join(f'<i class="eis-{kind}" style="width:{100 * count / total:.2f}%"></i>' for kind, _, count in parts)
    legend = "".join(
        f'<li><i class="eis-{kind}"></i><span>{words}</span><b>{gib(count)}</b></li>' for kind, words, count in parts
    )
    told = ", ".join(f"{words} {gib(count)}" for _, words, count in parts)
    parked = device["parked_bytes"] or 0
    beside = f'<p class="eis-hint">{gib(parked)} of models lie in RAM.</p>' if parked else ""
    return (
        f'<div class="eis-stack" role="img" aria-label="{told}">{bars}</div>'
        f'<ul class="eis-legend">{legend}</ul>{beside}'
    )


def draw_choices(status: Mapping[str, Any]) -> str:
    """A line for each worker: how weights stand on its device, and in which number format."""
    rows = "".join(choices_of(device) for device in status["devices"])
    return (
        '<p class="eis-hint">They hold at once and after a restart, for what is loaded from then on; a running job '
        f'goes on as it began.</p><div class="eis-choices" role="list">{rows}</div>'
    )


def choices_of(device: Mapping[str, Any]) -> str:
    """One line."""
    name, settings = device["device"], device["settings"]
    on_cpu = device["runs_on"] == "cpu" or device["runs_on"].endswith("/cpu")
    ways = [(way, WAYS[way]) for way in STRATEGIES if not (on_cpu and way in NEED_A_GPU)]
    formats = [(name, FORMATS.get(name, name)) for name in PRECISIONS]
    default = (DEFAULT, "As the settings say")
    way = WAYS[settings["offload"]]
    number_format = FORMATS.get(settings["precision"], settings["precision"])
    return (
        f'<div class="eis-choice eis-two" role="listitem" data-device="{escape(name)}"><div class="eis-choice-name">'
        f"<code>{escape(name)}</code></div>"
        f"{chooser(f'Weights: {way}', 'offload', [*ways, default], device=name)}"
        f"{chooser(f'Format: {number_format}', 'precision', [*formats, default], device=name)}</div>"
    )


def gib(count: int | None) -> str:
    """Bytes of memory as a person reads them, in the units that cards are sold in."""
    if count is None:
        return "unknown"
    if count < GIB:
        return f"{count / 2**20:.0f} MiB"
    value = count / GIB
    return f"{value:.0f} GiB" if value >= 10 and value == round(value) else f"{value:.1f} GiB"
