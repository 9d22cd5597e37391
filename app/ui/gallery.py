"""The Gallery tab: every picture that jobs made, newest first, with search, details, send to, delete and download."""

import asyncio
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from app.errors import ServiceError
from app.ui import stage
from app.ui.panel import QUIET, picture_seed
from app.ui.parts import number_box, parse_number, part
from app.ui.session import owner_of, require_own, warn
from app.ui.wording import button, empty, label, moment, thumbnail_url

PAGE = 48


class Gallery:
    """The tab's parts and listeners."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.targets: list[tuple[str, str]] = []
        titles = [(capability.title, capability.name) for capability in service.catalog]
        with gr.Row(elem_classes=["eis-search"]):
            self.prompt = gr.Textbox(label="Words in the prompt", placeholder="red car", scale=3, min_width=180)
            self.capability = gr.Dropdown([("any", ""), *titles], value="", label="Made by", scale=2, min_width=150)
            self.model = gr.Dropdown([("any", "")], value="", label="Model", scale=2, min_width=150)
            self.seed = number_box("Seed", placeholder="any", scale=1)
        self.shown = gr.State(PAGE)
        with gr.Row(elem_classes=["eis-gallery"]):
            with gr.Column(elem_classes=["eis-grid-column"]):
                self.grid = part("", elem_id="gallery-grid")
            with gr.Column(elem_classes=["eis-detail-column"]):
                self.detail = part("", elem_id="gallery-detail")

    @property
    def search_boxes(self) -> list[Any]:
        """What the search reads."""
        return [self.prompt, self.capability, self.model, self.seed]

    def connect(self, tab: gr.Tab) -> None:
        """Attach the listeners."""
        tab.select(self.open, [*self.search_boxes, self.shown], [self.model, self.grid, self.detail], **QUIET)
        for box in self.search_boxes:
            outputs = [self.grid, self.detail, self.shown]
            box.change(self.search, self.search_boxes, outputs, trigger_mode="always_last", **QUIET)
        self.grid.act(self.act_on_grid, [*self.search_boxes, self.shown], [self.grid, self.detail, self.shown], **QUIET)
        self.detail.act(self.act_on_detail, [*self.search_boxes, self.shown], [self.grid, self.detail], **QUIET)

    def find(self, owner: str, words: Sequence[Any], shown: int) -> str:
        """The grid for a search."""
        prompt, capability, model, seed = words
        images, total = self.service.search_images(
            owner=owner,
            prompt=(prompt or "").strip() or None,
            capability=capability or None,
            model=model or None,
            seed=parse_number("Seed", seed, whole=True),
            limit=shown,
        )
        if not images:
            if any((prompt, capability, model, seed)):
                return empty("Nothing matches", "Fewer or other words may find something.")
            return empty("No pictures yet", "What you make appears here, newest first.")
        tiles = "".join(tile(image) for image in images)
        more = button(f"Show more ({total - len(images)} left)", "more") if total > len(images) else ""
        count = f"{total} picture{'' if total == 1 else 's'}"
        return f'<p class="eis-hint">{count}</p><div class="eis-grid">{tiles}</div><div class="eis-more">{more}</div>'

    def models(self) -> list[tuple[str, str]]:
        """Entries of the model filter: what is installed."""
        return [
            ("any", ""),
            *(
                (row.spec.title, row.spec.id)
                for row in self.service.models.rows()
                if row.installed and row.spec.kind == "checkpoint"
            ),
        ]

    async def open(self, prompt: str, capability: str, model: str, seed: str, shown: int, request: gr.Request) -> Any:
        """The tab was opened."""
        words = (prompt, capability, model, seed)
        try:
            grid = await asyncio.to_thread(self.find, owner_of(request), words, shown)
        except ServiceError as error:
            grid = empty("Nothing matches", error.message)
        return gr.update(choices=self.models()), grid, gr.skip()

    async def search(self, prompt: str, capability: str, model: str, seed: str, request: gr.Request) -> Any:
        """The search changed: from the first page again."""
        words = (prompt, capability, model, seed)
        try:
            return await asyncio.to_thread(self.find, owner_of(request), words, PAGE), "", PAGE
        except ServiceError as error:
            return empty("Nothing matches", error.message), "", PAGE

    async def act_on_grid(
        self, prompt: str, capability: str, model: str, seed: str, shown: int, event: gr.EventData, request: gr.Request
    ) -> Any:
        """A picture was clicked, or more are wished."""
        owner = owner_of(request)
        data = event._data or {}
        try:
            if data.get("action") == "more":
                shown += PAGE
                words = (prompt, capability, model, seed)
                return await asyncio.to_thread(self.find, owner, words, shown), gr.skip(), shown
            if data.get("action") == "open":
                return gr.skip(), await asyncio.to_thread(self.details, str(data["image"]), owner), gr.skip()
        except ServiceError as error:
            warn(error.message)
        return gr.skip(), gr.skip(), gr.skip()

    def details(self, reference: str, owner: str) -> str:
        """Everything about one picture."""
        require_own(self.service, reference, owner)
        metadata = self.service.storage.metadata(reference)
        recipe = metadata.get("recipe") or {}
        sides = {name: metadata[name] for name in ("width", "height")}
        image = {"id": reference, **sides, "seed": picture_seed(recipe)}
        view = stage.picture_view(image, metadata, self.targets, delete=True)
        made_by = escape(label(str(recipe.get("capability") or "").replace("-", " ")))
        head = f'<div class="eis-detail-head"><span>{made_by} · {moment(metadata.get("created"))}</span>'
        return f'{head}{button("Close", "close")}</div><div class="eis-result">{view}</div>'

    async def act_on_detail(
        self, prompt: str, capability: str, model: str, seed: str, shown: int, event: gr.EventData, request: gr.Request
    ) -> Any:
        """Delete or close; sending and settings belong to the whole page."""
        data: Mapping[str, Any] = event._data or {}
        owner = owner_of(request)
        if data.get("action") == "close":
            return gr.skip(), ""
        if data.get("action") != "delete":
            return gr.skip(), gr.skip()
        try:
            await asyncio.to_thread(self.service.delete_image, str(data["image"]), owner)
        except ServiceError as error:
            warn(error.message)
            return gr.skip(), gr.skip()
        gr.Info("The picture is deleted.")
        return await asyncio.to_thread(self.find, owner, (prompt, capability, model, seed), shown), ""


def tile(image: Any) -> str:
    """One picture of the grid."""
    words = escape(image.prompt or "")
    seed = "" if image.seed is None else f'<span class="eis-seed-text">Seed {image.seed}</span>'
    return (
        f'<button type="button" class="eis-tile" data-action="open" data-image="{image.id}" title="{words}">'
        f'<img loading="lazy" src="{thumbnail_url(image.id)}" alt="{words or "A picture"}"><span class="eis-caption">'
        f"<span>{words}</span>{seed}</span></button>"
    )
