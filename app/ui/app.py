"""The browser page: a tab for each capability of the catalog, then the gallery, the jobs, the models and the devices.

The page speaks to the service in this process; pictures cross as references, and nothing of the page is a public API.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from fastapi import FastAPI

from app.core.service import Service
from app.errors import ServiceError
from app.ui.batch_page import BatchPage
from app.ui.devices_page import DevicesPage
from app.ui.gallery import Gallery
from app.ui.header import header
from app.ui.origin import wish_of
from app.ui.panel import IN_TURN, QUIET, Panel
from app.ui.parts import model_list, part
from app.ui.queue_page import QueuePage
from app.ui.session import Session, owner_of, require_own, warn
from app.ui.theme import head, icon, style_sheet, theme
from app.ui.thing_finding import ThingFinder
from app.ui.wording import label

SECONDS_BETWEEN_HEADERS = 1.5
SECONDS_BETWEEN_SIGNS = 8
SECONDS_UNTIL_LOOKED_AFTER = 20
OPEN_PAGES = 500
"""Browsers that may look at once; each holds one of the queue's places for as long as it looks."""


class Page:
    """All tabs and what connects them."""

    def __init__(self, service: Service, version: str) -> None:
        self.service = service
        self.version = version
        self.panels: dict[str, Panel] = {}
        self.inner: dict[str, gr.Tabs] = {}
        self.tabs: list[gr.Tab] = []

    def build(self) -> gr.Blocks:
        """The page, ready to be mounted."""
        with gr.Blocks(title="Edit Image Service", analytics_enabled=False, fill_width=True) as page:
            session = gr.State(Session())
            self.kept = [kept_form(capability.name) for capability in self.service.catalog]
            self.header = part("", elem_classes=["eis-top"])
            self.clock = gr.Timer(SECONDS_UNTIL_LOOKED_AFTER)
            with gr.Tabs(elem_classes=["eis-tabs"]) as self.outer:
                for group, capabilities in self.groups().items():
                    self.add_group(group, capabilities, session)
                with gr.Tab("Gallery", id="gallery") as gallery_tab:
                    self.gallery = Gallery(self.service)
                with gr.Tab("Jobs", id="jobs") as jobs_tab:
                    self.queue = QueuePage(self.service)
                with gr.Tab("Batch", id="batch") as batch_tab:
                    self.batch = BatchPage(self.service)
                with gr.Tab("Models", id="models") as models_tab:
                    self.models = model_list()
                with gr.Tab("GPU & Memory", id="devices") as devices_tab:
                    self.devices = DevicesPage(self.service)
            self.connect(gallery_tab, jobs_tab, batch_tab, models_tab, devices_tab)
            outputs = [output for panel in self.panels.values() for output in panel.restorable]
            kept = [panel.kept for panel in self.panels.values()]
            page.load(self.restore, [session, *kept], outputs, **IN_TURN, **QUIET)
            gr.on([page.load, self.clock.tick], self.look, None, self.header, trigger_mode="once", **QUIET)
        page.queue(default_concurrency_limit=None)
        page._queue.max_thread_count = OPEN_PAGES
        return page

    def groups(self) -> dict[str, list[Any]]:
        """Capabilities by the part of their name before `/`, in the catalog's order."""
        found: dict[str, list[Any]] = {}
        for capability in self.service.catalog:
            found.setdefault(capability.group, []).append(capability)
        return found

    def add_group(self, group: str, capabilities: list[Any], session: gr.State) -> None:
        """One tab; sub-tabs when several capabilities share it."""
        alone = len(capabilities) == 1 and "/" not in capabilities[0].name
        title = capabilities[0].title if alone else capabilities[0].group_title or label(group)
        with gr.Tab(title, id=group) as tab:
            self.tabs.append(tab)
            if alone:
                self.add_panel(capabilities[0], session)
                return
            with gr.Tabs(elem_classes=["eis-subtabs"]) as inner:
                self.inner[group] = inner
                for capability in capabilities:
                    with gr.Tab(capability.title, id=capability.name):
                        self.add_panel(capability, session)

    def add_panel(self, capability: Any, session: gr.State) -> None:
        """The form and stage of one capability."""
        kept = self.kept[self.service.catalog.index(capability)]
        self.panels[capability.name] = Panel(self.service, capability, session, kept)

    def connect(
        self, gallery_tab: gr.Tab, jobs_tab: gr.Tab, batch_tab: gr.Tab, models_tab: gr.Tab, devices_tab: gr.Tab
    ) -> None:
        """Attach every listener."""
        targets = self.targets()
        self.gallery.targets = targets
        for panel in self.panels.values():
            panel.targets = targets
            panel.prompt_targets = self.prompt_targets()
            panel.connect()
        forms = [panel.form for panel in self.panels.values()]
        ThingFinder(self.service, forms).connect({**QUIET, "trigger_mode": "multiple", "concurrency_limit": None})
        self.gallery.connect(gallery_tab)
        self.queue.connect(jobs_tab, [*self.tabs, gallery_tab, batch_tab, models_tab, devices_tab])
        self.batch.connect(batch_tab, [*self.tabs, gallery_tab, jobs_tab, models_tab, devices_tab])
        self.devices.connect(devices_tab, [*self.tabs, gallery_tab, jobs_tab, batch_tab, models_tab])
        widgets = [widget for panel in self.panels.values() for widget in panel.form.widgets]
        outputs = [self.outer, *self.inner.values(), *widgets]
        for source in (self.gallery.detail, *(panel.stage for panel in self.panels.values())):
            source.act(self.deliver, self.prompts, outputs, **QUIET)
        for panel in self.panels.values():
            for picture in panel.form.picture_inputs:
                picture.act(self.deliver, self.prompts, outputs, **QUIET)
                picture.act(self.taker(panel), None, panel.form.widgets, **QUIET)
        for panel in self.panels.values():
            for note in (note for control in panel.form.controls for note in control.notes):
                note.act(lambda: gr.Tabs(selected="models"), None, self.outer, **QUIET)
        # The list looks again whenever its tab is opened.
        models_tab.select(None, None, self.models, js="() => Date.now()", queue=False, api_visibility="private")
        chosen = [panel.form.widget("model") for panel in self.panels.values() if panel.form.widget("model")]
        # Each change says what has gone, so none may be passed over while another is answered.
        self.models.act(self.models_changed, chosen, widgets, trigger_mode="multiple", **IN_TURN, **QUIET)

    @property
    def prompts(self) -> list[Any]:
        """The prompt of each form that has one, in the order of the forms."""
        found = [panel.form.widget("prompt") for panel in self.panels.values()]
        return [widget for widget in found if widget is not None]

    def targets(self) -> list[tuple[str, str]]:
        """(where, words) of everything that takes a picture."""
        found = []
        for name, panel in self.panels.items():
            pictures = panel.form.pictures
            title = title_of(panel.capability)
            for field in pictures:
                found.append((f"{name}:{field}", title if len(pictures) == 1 else f"{title}: {label(field)}"))
        return found

    def prompt_targets(self) -> list[tuple[str, str]]:
        """(capability, words) of every form with a prompt."""
        panels = {name: panel for name, panel in self.panels.items() if panel.form.widget("prompt") is not None}
        return [(name, title_of(panel.capability)) for name, panel in panels.items()]

    async def restore(self, request: gr.Request, session: Session, *kept: Any) -> dict[Any, Any]:
        """After a refresh: every form and stage as they were. One event for all, so that it is quick."""
        owner = owner_of(request)

        def restored() -> dict[Any, Any]:
            found: dict[Any, Any] = {}
            for panel, form in zip(self.panels.values(), kept, strict=True):
                found.update(panel.restored(session, form, owner))
            return found

        return await asyncio.to_thread(restored)

    async def look(self, request: gr.Request) -> AsyncIterator[Any]:
        """The header for as long as the page is open.

        It never ends by itself, so that the browser's one stream of events stays open: Gradio closes that stream when
        nothing is under way, and an event that begins in the same moment would lose its answers.
        """
        logged_in = bool(owner_of(request))
        shown, said, was_open = None, 0.0, False
        while self.service.is_open or not was_open:
            was_open = was_open or self.service.is_open
            now = await asyncio.to_thread(header, self.service, self.version, logged_in=logged_in)
            # Only when it says something does Gradio notice that the browser has gone.
            if now != shown or time.monotonic() - said > SECONDS_BETWEEN_SIGNS:
                yield now if now != shown else gr.skip()
                shown, said = now, time.monotonic()
            await asyncio.sleep(SECONDS_BETWEEN_HEADERS)

    async def deliver(self, event: gr.EventData, request: gr.Request, *prompts: str) -> dict[Any, Any]:
        """Send a picture to a form, or fill a form with a picture's settings, and go there."""
        data: Mapping[str, Any] = event._data or {}
        try:
            if data.get("action") == "send":
                return await asyncio.to_thread(self.sent, data, prompts, owner_of(request))
            if data.get("action") == "reference":
                return await asyncio.to_thread(self.referred, data, prompts, owner_of(request))
            if data.get("action") == "prompt":
                return self.prompted(data)
            if data.get("action") == "settings":
                return await asyncio.to_thread(self.set, str(data["image"]), owner_of(request))
        except ServiceError as error:
            warn(error.message)
        return {self.outer: gr.skip()}

    def taker(self, panel: Panel) -> Callable[..., Any]:
        """A listener that fills a form with what the file of a picture in it says; its pictures stay."""

        async def take(event: gr.EventData, request: gr.Request) -> list[Any]:
            data: Mapping[str, Any] = event._data or {}
            if data.get("action") == "take":
                try:
                    return await asyncio.to_thread(self.taken, panel, str(data["image"]), owner_of(request))
                except ServiceError as error:
                    warn(error.message)
            return [gr.skip() for _ in panel.form.widgets]

        return take

    def taken(self, panel: Panel, reference: str, owner: str) -> list[Any]:
        """Updates of a form's own widgets."""
        require_own(self.service, reference, owner)
        _, said = wish_of(self.service.storage.metadata(reference))
        return panel.form.settled(panel.form.sensible(said))

    def sent(self, data: Mapping[str, Any], prompts: Sequence[str], owner: str) -> dict[Any, Any]:
        """A picture on its way to a form, and its prompt with it where the form has none yet."""
        name, _, field = str(data.get("value")).partition(":")
        panel = self.panels[name]
        reference = str(data["image"])
        require_own(self.service, reference, owner)
        width, height = self.service.storage.size(reference)
        value = {"image": reference, "width": width, "height": height}
        found = {**self.to(name), panel.form.pictures[field]: gr.update(value=value)}
        box = panel.form.widget("prompt")
        said = dict(zip(self.prompts, prompts, strict=True))
        if box is not None and not (said[box] or "").strip():
            _, wish = wish_of(self.service.storage.metadata(reference))
            found[box] = gr.update(value=panel.form.sensible(wish).get("prompt") or "")
        return found

    def referred(self, data: Mapping[str, Any], prompts: Sequence[str], owner: str) -> dict[Any, Any]:
        """A picture that a search found, fetched and on its way to a form."""
        stored = self.service.found.keep(str(data["job"]), int(data["number"]), owner)
        return self.sent({**data, "image": stored.id}, prompts, owner)

    def prompted(self, data: Mapping[str, Any]) -> dict[Any, Any]:
        """Words that were found, in the prompt of a form."""
        name = str(data.get("value"))
        box = self.panels[name].form.widget("prompt")
        return {**self.to(name), box: gr.update(value=str(data.get("text") or ""))}

    def set(self, reference: str, owner: str) -> dict[Any, Any]:
        """A picture's recipe back into its form, its input picture included while it exists."""
        require_own(self.service, reference, owner)
        capability, said = wish_of(self.service.storage.metadata(reference))
        panel = self.panels.get(capability)
        if panel is None:
            warn("The picture does not say how it was made.")
            return {self.outer: gr.skip()}
        request = panel.form.sensible(said)
        for field in panel.form.pictures:
            mask = said.get(panel.form.masks.get(field, ""))
            request[field] = self.picture_value(said.get(field), owner, mask)
        shown = dict(zip(panel.form.widgets, panel.form.settled(request), strict=True))
        return {**self.to(panel.name), **shown}

    def picture_value(self, reference: Any, owner: str, mask: Any = None) -> dict[str, Any] | None:
        """What a picture's widget holds for a stored picture and the mask on it; None once the picture is gone."""
        size, mask_size = self.size_of(reference, owner), self.size_of(mask, owner)
        if size is None:
            return None
        value = {"image": str(reference), "width": size[0], "height": size[1]}
        return {**value, "mask": str(mask)} if mask_size == size else value

    def size_of(self, reference: Any, owner: str) -> tuple[int, int] | None:
        """(width, height) of the owner's stored picture; None where there is none."""
        try:
            require_own(self.service, str(reference), owner)
            return self.service.storage.size(str(reference))
        except ServiceError:
            return None

    def to(self, name: str) -> dict[Any, Any]:
        """Updates that open a capability's tab."""
        group = self.panels[name].capability.group
        found: dict[Any, Any] = {self.outer: gr.Tabs(selected=group)}
        if group in self.inner:
            found[self.inner[group]] = gr.Tabs(selected=name)
        return found

    def models_changed(self, event: gr.EventData, *chosen: str) -> list[Any]:
        """After a pull or a removal: what each form offers, and what empty means for the model chosen in it."""
        gone = {str(model) for model in (event._data or {}).get("gone") or ()}
        models = iter(chosen)
        updates: list[Any] = []
        for panel in self.panels.values():
            model = next(models) if panel.form.widget("model") else "auto"
            updates += panel.form.after_models_changed(model or "auto", gone)
        return updates


def title_of(capability: Any) -> str:
    """What a menu calls a capability."""
    return f"{capability.group_title} {capability.title}" if capability.group_title else capability.title


def kept_form(name: str) -> gr.BrowserState:
    """What the browser keeps of one form, and shows to nobody else.

    One key for each: a page writes its own copy of a key whole, so two that are open would undo each other. It must not
    stand inside a tab, where Gradio reads it only once the tab is opened. The secret is a plain word, which only spares
    Gradio from drawing a new one at each start.
    """
    key = f"eis.form.{name}"
    return gr.BrowserState({}, storage_key=key, secret=key)


def build_ui(service: Service, *, version: str = "") -> gr.Blocks:
    """The whole page for a service."""
    return Page(service, version).build()


def mount_ui(service: Service, *, version: str = "", max_upload_bytes: int = 64 * 2**20) -> FastAPI:
    """An application that serves the page at its root; its lifespan starts and ends the page's own tasks.

    No file of the server may be read through it, no call of it is documented, and nothing is fetched from elsewhere.
    """
    application = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    return gr.mount_gradio_app(
        application,
        build_ui(service, version=version),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        favicon_path=str(icon()),
        show_error=False,
        max_file_size=max_upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=style_sheet(),
        head=head(),
    )
