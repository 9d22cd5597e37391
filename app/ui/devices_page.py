"""The GPU & Memory tab: every device with live meters, how one is chosen, and which are given jobs.

Each section has a function that places its parts and one that attaches its listeners. The meters are drawn again every
other second while the tab is open; what a person chooses from is drawn only when it has changed, so that an open list
stays open.
"""

import asyncio
from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from app.errors import ServiceError
from app.ui.clock import run_while_open
from app.ui.memory_section import MemorySection, gib
from app.ui.panel import QUIET
from app.ui.parts import part
from app.ui.session import may_administer, owner_of, require_admin, warn
from app.ui.wording import badge, button, chooser, duration, moment

SECONDS_BETWEEN_LOOKS = 2.0
CROWDED = 90
"""Percent from which a meter is shown as crowded."""
STRATEGIES = {
    "auto": (
        "Automatic",
        "A job goes where its model lies ready; else where it fits, to a device with little load and the most compute.",
    ),
    "round_robin": ("In turns", "A job goes to the device that was given one longest ago."),
    "least_loaded": ("Least loaded", "A job goes to the device with the lowest load."),
    "vram_based": ("Most memory", "A job goes to the device with the most free memory."),
    "compute_based": ("Most compute", "A job goes to the fastest device, by its cores and clock."),
}
STATES = {
    "starting": ("Starting", ""),
    "idle": ("Idle", "eis-good"),
    "busy": ("Working", "eis-go"),
    "elsewhere": ("Another server's", ""),
    "broken": ("Broken", "eis-bad"),
    "stopped": ("Stopped", ""),
    "finishing": ("Finishing", "eis-go"),
    "disabled": ("Disabled", ""),
    "unused": ("Not used", ""),
}
OUTCOMES = {
    "succeeded": ("Done", "eis-good"),
    "failed": ("Failed", "eis-bad"),
    "cancelled": ("Cancelled", ""),
    "lost": ("Lost", "eis-bad"),
}
NOT_YOURS = '<p class="eis-hint">Only a key that EIS_ADMIN_KEYS names may change how devices are used.</p>'
SEATS = (1, 2, 4, 8, 16, 32)
SHARES = (75, 50, 25)


class DevicesPage:
    """The tab's parts and listeners."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.titles = {capability.name: capability.title for capability in service.catalog}
        self.timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)
        self.place_devices()
        self.memory = MemorySection(service)

    def connect(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Attach the listeners; the clock runs only while the tab is open."""
        run_while_open(self.timer, tab, others)
        self.connect_devices(tab)
        self.memory.connect(tab, self.timer)

    # Devices

    def place_devices(self) -> None:
        """The strategy, a card for each device, and what may be chosen for each."""
        choices = [(words, name) for name, (words, _) in STRATEGIES.items()]
        gr.HTML('<h2 class="eis-heading">Devices</h2>', apply_default_css=False)
        with gr.Row(elem_classes=["eis-filters"]):
            self.strategy = gr.Radio(
                choices, value=None, show_label=False, container=False, elem_id="device-strategy", min_width=520
            )
        self.cards = part("", elem_id="device-cards")
        self.choices = part("", elem_id="device-choices")

    def connect_devices(self, tab: gr.Tab) -> None:
        """What is drawn when, and what a choice does."""
        everything = [self.strategy, self.cards, self.choices]
        tab.select(self.open_devices, None, everything, **QUIET)
        self.timer.tick(self.look_at_devices, None, self.cards, **QUIET)
        self.strategy.input(self.choose_strategy, self.strategy, everything, **QUIET)
        self.choices.act(self.change_device, None, everything, **QUIET)

    async def look_at_devices(self, request: gr.Request) -> str:
        """The cards as they stand."""
        return self.draw_cards(await asyncio.to_thread(self.service.device_status, owner_of(request)))

    async def open_devices(self, request: gr.Request) -> list[Any]:
        """All of the section."""
        status = await asyncio.to_thread(self.service.device_status, owner_of(request))
        return self.draw(status, may_administer(request))

    async def choose_strategy(self, strategy: str, request: gr.Request) -> list[Any]:
        """Another way to choose the device, at once."""
        return await self.configure({"strategy": strategy}, request)

    async def change_device(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """Enable, disable, or limit one device."""
        data: Mapping[str, Any] = event._data or {}
        value = str(data.get("value", ""))
        change: dict[str, Any] = {}
        match data.get("action"):
            case "enable" | "disable" as action:
                change = {"enabled": action == "enable"}
            case "seats":
                change = {"jobs_at_once": int(value) if value.isdecimal() else None}
            case "limit":
                change = {"memory_limit_bytes": int(value) if value.isdecimal() else None}
        return await self.configure({"devices": {str(data.get("device")): change}}, request)

    async def configure(self, change: Mapping[str, Any], request: gr.Request) -> list[Any]:
        """Change it, or say why not; all of the section as it is then."""
        try:
            require_admin(request)
            await asyncio.to_thread(self.service.devices.configure, change)
        except ServiceError as error:
            warn(error.message)
        return await self.open_devices(request)

    def draw(self, status: Mapping[str, Any], admin: bool) -> list[Any]:
        """Updates of the strategy, the cards and the choices, which are an operator's."""
        strategy = gr.update(value=status["strategy"], interactive=admin)
        return [strategy, self.draw_cards(status), draw_choices(status) if admin else NOT_YOURS]

    def draw_cards(self, status: Mapping[str, Any]) -> str:
        """What the strategy does, and a card for each device."""
        said = f'<p class="eis-hint eis-strategy">{escape(STRATEGIES[status["strategy"]][1])}</p>'
        if status["simulated"]:
            said += (
                '<p class="eis-note">These devices are simulated (EIS_FAKE_DEVICES): name, memory, load and '
                "temperature are only described, and their jobs run on the CPU.</p>"
            )
        cards = "".join(self.card(device) for device in status["devices"])
        return f'{said}<div class="eis-devices" role="list">{cards}</div>'

    def card(self, device: Mapping[str, Any]) -> str:
        """One device."""
        words, tone = STATES[device["state"]]
        badges = [badge(device["tier"], "eis-tier") if device["tier"] else "", badge(words, tone)]
        if device["simulated"]:
            badges.append(badge("Simulated", "eis-wait"))
        total, free = device["total_bytes"], device["free_bytes"]
        used = total - free if total is not None and free is not None else None
        memory = meter("Memory", used and 100 * used / total, f"{gib(used)} of {gib(total)}")
        load = device["load_percent"]
        heat = device["temperature_celsius"]
        facts = [("Temperature", "not told" if heat is None else f"{heat:.0f} °C")]
        if device["state"] != "unused":
            limit = device["memory_limit_bytes"]
            facts.append(("Jobs", f"{device['held']} of {device['jobs_at_once']}"))
            facts.append(("For models", gib(device["models_may_take_bytes"]) + (" (limit)" if limit else "")))
        shown = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
        quiet = "" if device["enabled"] else " eis-off"
        trouble = f'<p class="eis-error-line">{escape(device["trouble"])}</p>' if device.get("trouble") else ""
        return (
            f'<article class="eis-device-card{quiet}" role="listitem" data-device="{escape(device["device"])}">'
            f'<div class="eis-device-title"><strong>{escape(device["name"])}</strong>'
            f'<code>{escape(device["device"])}</code><span class="eis-grow"></span>{"".join(badges)}</div>{trouble}'
            f"{memory}{meter('Load', load, 'not told' if load is None else f'{load:.0f} %')}"
            f'<dl class="eis-facts">{shown}</dl>{self.inside(device)}{self.operations(device)}</article>'
        )

    def inside(self, device: Mapping[str, Any]) -> str:
        """The models that lie ready, and the jobs that it holds."""
        models = "".join(badge(model) for model in device.get("resident_models", ()))
        models = models or '<span class="eis-hint">none</span>'
        jobs = "".join(f"<li>{escape(self.words(job))}</li>" for job in device.get("jobs", ()))
        held = f'<div class="eis-held"><h3>Now</h3><ul>{jobs}</ul></div>' if jobs else ""
        return f'<div class="eis-ready"><h3>Models ready</h3>{models}</div>{held}'

    def operations(self, device: Mapping[str, Any]) -> str:
        """What it did last, newest first."""
        rows = "".join(
            f"<tr><td>{badge(*OUTCOMES[done['outcome']])}</td><td>{escape(self.words(done))}</td>"
            f"<td>{duration(done['seconds'])}</td><td>{moment(done['ended'])}</td></tr>"
            for done in device.get("last_operations", ())
        )
        if not rows:
            return '<h3>Last operations</h3><p class="eis-hint">Nothing yet.</p>'
        return f'<h3>Last operations</h3><table class="eis-operations"><tbody>{rows}</tbody></table>'

    def words(self, job: Mapping[str, Any]) -> str:
        """What a job is, in a few words."""
        title = self.titles.get(job["capability"], job["capability"])
        return f"{title} · {job['model']}" if job["model"] else title


def draw_choices(status: Mapping[str, Any]) -> str:
    """A line for each device that a worker uses: on or off, jobs at once, and how much models may take."""
    rows = "".join(choices_of(device) for device in status["devices"] if device["state"] != "unused")
    return (
        '<h2 class="eis-heading">Settings of each device</h2>'
        '<p class="eis-hint">They hold at once and after a restart. A disabled device finishes what it holds.</p>'
        f'<div class="eis-choices" role="list">{rows}</div>'
    )


def choices_of(device: Mapping[str, Any]) -> str:
    """One line."""
    name, total, limit = device["device"], device["total_bytes"], device["memory_limit_bytes"]
    on = device["enabled"]
    seats = [(str(count), f"{count} at once") for count in SEATS]
    seats.append(("default", "As the settings say"))
    shares = [(str(total * share // 100), f"{share} % ({gib(total * share // 100)})") for share in SHARES if total]
    shares.append(("default", "As the settings say"))
    at_once = device["jobs_at_once"]
    said = f"Models: up to {gib(limit)}" if limit else "Models: what is free"
    switch = button("Disable" if on else "Enable", "disable" if on else "enable", device=name)
    return (
        f'<div class="eis-choice" role="listitem" data-device="{escape(name)}"><div class="eis-choice-name">'
        f"<strong>{escape(device['name'])}</strong> <code>{escape(name)}</code></div>"
        f"{chooser(f'Jobs: {at_once} at once', 'seats', seats, device=name)}"
        f"{chooser(said, 'limit', shares, device=name)}{switch}</div>"
    )


def meter(name: str, percent: float | None, words: str) -> str:
    """A bar with its name and its figure."""
    share = 0.0 if percent is None else min(100.0, max(0.0, percent))
    crowded = " eis-crowded" if share >= CROWDED else ""
    return (
        f'<div class="eis-meter"><span>{name}</span><span>{escape(words)}</span>'
        f'<div class="eis-progress{crowded}" role="meter" aria-label="{name}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div></div>'
    )
