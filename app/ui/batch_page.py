"""The Batch tab: many jobs from a few lines of words, the queue with its order and its pause, and what became of each.

It looks again while it is open. What changes at every look (progress) stands in parts of its own, so that the buttons
beside what waits hold still.
"""

import asyncio
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import gradio as gr

from app.core.batching import BatchView, Wish
from app.core.capability import image_fields
from app.core.combining import combine, count_wishes
from app.core.jobs import Job, JobStatus
from app.errors import InvalidRequest, ServiceError
from app.ui.batch_words import prompts_of, read_lists, read_values
from app.ui.clock import run_while_open
from app.ui.panel import QUIET
from app.ui.parts import part, picture_picker
from app.ui.queue_page import job_row
from app.ui.session import may_administer, owner_of, require_admin, warn
from app.ui.stage import state_badge
from app.ui.wording import button, empty, label, moment, picture_url, thumbnail_url, without_backticks

SECONDS_BETWEEN_LOOKS = 1.5
SHOWN_WAITING = 12
SHOWN_BATCHES = 30
SHOWN_PICTURES = 60
COMBINATIONS = [("Every combination", "product"), ("Line by line", "zip")]


class BatchPage:
    """The tab's parts and listeners."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.titles = {capability.name: capability.title for capability in service.catalog}
        self.fields = {capability.name: capability.request.model_fields for capability in service.catalog}
        self.pictures = {
            capability.name: [name for name, kind in image_fields(capability.request).items() if kind != "mask"]
            for capability in service.catalog
        }
        offered = [name for name, fields in self.fields.items() if not needs_mask(service, name)]
        first = offered[0] if offered else None
        self.opened = gr.State("")
        with gr.Row(elem_classes=["eis-batch"]):
            with gr.Column(elem_classes=["eis-words-column"]):
                titles = [(self.titles[name], name) for name in offered]
                self.capability = gr.Dropdown(titles, value=first, label="Capability", elem_id="batch-capability")
                self.prompts = gr.Textbox(
                    label="Prompts, one per line",
                    lines=5,
                    max_lines=14,
                    placeholder="a red car, blue background\na green boat, yellow background",
                    elem_id="batch-prompts",
                    visible=first is not None and "prompt" in self.fields[first],
                )
                names = sorted({name for pictures in self.pictures.values() for name in pictures})
                self.pickers = {}
                for name in names:
                    with gr.Group(visible=first is not None and name in self.pictures[first]) as group:
                        self.pickers[name] = (group, picture_picker(label(name)))
                self.lists = gr.Textbox(
                    label="Lists of values, one field per line",
                    info="Commas part values; 1..4 counts.",
                    lines=2,
                    max_lines=8,
                    placeholder="seed = 1..4\nguidance_scale = 3, 5, 7",
                    elem_id="batch-lists",
                )
                self.same = gr.Textbox(
                    label="The same for all",
                    lines=1,
                    max_lines=8,
                    placeholder="num_inference_steps = 8",
                    elem_id="batch-same",
                )
                self.how = gr.Radio(COMBINATIONS, value="product", label="Prompts and lists", elem_id="batch-how")
                self.priority = gr.Slider(0, 10, value=5, step=1, label="Priority", info="10 goes first.")
                self.count = part('<p class="eis-hint">Makes 1 job.</p>', elem_id="batch-count")
                self.submit = gr.Button("Add to the queue", variant="primary", size="lg", elem_id="batch-submit")
                # Not the count's own line: a count that was asked for before the press may be answered after it.
                self.said = part("", elem_id="batch-said")
            with gr.Column(elem_classes=["eis-batch-queue"]):
                self.head = part("", elem_id="batch-head")
                self.running = part("", elem_id="batch-running")
                self.waiting = part("", elem_id="batch-waiting")
                self.batches = part("", elem_id="batch-list")
        self.timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    @property
    def boxes(self) -> list[Any]:
        """What the form reads before its pictures."""
        return [self.capability, self.prompts, self.lists, self.same, self.how]

    @property
    def parts(self) -> list[Any]:
        """Everything that a look draws."""
        return [self.head, self.running, self.waiting, self.batches]

    def connect(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Attach the listeners; the clock runs only while the tab is open."""
        reads = {"fn": self.look, "inputs": self.opened, "outputs": self.parts}
        run_while_open(self.timer, tab, others)
        tab.select(**reads, **QUIET)
        self.timer.tick(**reads, **QUIET)
        groups = [group for group, _ in self.pickers.values()]
        self.capability.change(self.fit, self.capability, [self.prompts, *groups], **QUIET)
        for box in self.boxes:
            box.change(self.counted, self.boxes, self.count, trigger_mode="always_last", **QUIET)
        pickers = [picker for _, picker in self.pickers.values()]
        for box in (*self.boxes, *pickers):  # in the browser: what a count answers late would wipe out a refusal
            box.change(None, None, self.said, js="() => ''", queue=False, **QUIET)
        asked = [self.opened, self.priority, *self.boxes, *pickers]
        self.submit.click(self.enqueue, asked, [self.opened, self.said, *self.parts], **QUIET)
        for source in self.parts:
            source.act(self.act, self.opened, [self.opened, *self.parts], **QUIET)

    # ---- from words to jobs ------------------------------------------------------------------------------------

    def fit(self, capability: str) -> list[Any]:
        """Show what this capability takes."""
        shown = [gr.update(visible="prompt" in self.fields[capability])]
        return [*shown, *(gr.update(visible=name in self.pictures[capability]) for name in self.pickers)]

    def values(self, capability: str, prompts: str, lists: str) -> dict[str, list[Any]]:
        """The lists that the form holds."""
        values = read_lists(lists)
        lines = prompts_of(prompts) if "prompt" in self.fields[capability] else []
        if lines and "prompt" in values:
            raise InvalidRequest("The prompts stand in both boxes; leave one of them empty.")
        return {"prompt": lines, **values} if lines else values

    def counted(self, capability: str, prompts: str, lists: str, same: str, how: Any) -> str:
        """How many jobs the form would make now, or what is wrong with it."""
        try:
            read_values(same)
            count = count_wishes(self.values(capability, prompts, lists), how)
        except ServiceError as error:
            return f'<p class="eis-error-line">{escape(without_backticks(error.message))}</p>'
        limit = self.service.options.batch_limit
        if count > limit:
            return f'<p class="eis-error-line">{count:,} jobs are too many; a batch may hold {limit:,}.</p>'
        return f'<p class="eis-hint">Makes {count} job{"" if count == 1 else "s"}.</p>'

    async def enqueue(
        self,
        request: gr.Request,
        opened: str,
        priority: float,
        capability: str,
        prompts: str,
        lists: str,
        same: str,
        how: Any,
        *pickers: Any,
    ) -> tuple[Any, ...]:
        """Submit the batch. A refusal is told and leaves the form as it is."""
        owner, admin = owner_of(request), may_administer(request)

        def submit() -> Any:
            fixed = read_values(same)
            for name, picked in zip(self.pickers, pickers, strict=True):
                if name in self.pictures[capability] and picked and picked.get("image"):
                    many = image_fields(self.service.handler(capability).request)[name] == "images"
                    fixed[name] = [picked["image"]] if many else picked["image"]
            values = self.values(capability, prompts, lists)
            self.service.check_batch_size(count_wishes(values, how))
            wishes = [Wish(capability, one, int(priority)) for one in combine(fixed, values, how)]
            return self.service.submit_batch(wishes, owner=owner)[0]

        try:
            batch = await asyncio.to_thread(submit)
        except ServiceError as error:
            warn(error.message, "Not accepted")
            refusal = f'<p class="eis-error-line" role="alert">{escape(without_backticks(error.message))}</p>'
            return (opened, refusal, *[gr.skip() for _ in self.parts])
        count = f"{batch.size} job{'' if batch.size == 1 else 's'}"
        said = f'<p class="eis-hint" role="status">Added {count} to the queue.</p>'
        return (batch.id, said, *await asyncio.to_thread(self.drawn, batch.id, owner, admin))

    # ---- the queue ---------------------------------------------------------------------------------------------

    async def look(self, opened: str, request: gr.Request) -> tuple[str, ...]:
        """The parts as they stand."""
        return await asyncio.to_thread(self.drawn, opened, owner_of(request), may_administer(request))

    def drawn(self, opened: str, owner: str, admin: bool) -> tuple[str, ...]:
        """Blocking: the queue's head, what runs, what waits, and the batches."""
        running = self.service.list_jobs(owner=owner, status=JobStatus.RUNNING)[0]
        waiting = self.service.next_jobs(owner, SHOWN_WAITING)
        batches, total = self.service.list_batches(owner=owner, limit=SHOWN_BATCHES)
        return (
            self.head_view(admin),
            listed("Running", [self.row(job, None) for job in running]),
            listed("Waiting", [self.row(job, position) for job, position in waiting], self.unseen(owner)),
            self.batch_list(batches, total, opened, owner),
        )

    def head_view(self, admin: bool) -> str:
        """Whether the queue moves, and for an operator the button that stops or starts it."""
        state = self.service.queue_state()
        told = f"{state['running']} running, {state['queued']} waiting"
        if state["paused"]:
            since = moment(state["paused_since"])
            word, act = "Paused", button("Resume", "resume", style="eis-strong")
            hint = f"Nothing new starts, for any key, since {since}. {told}."
            return queue_bar("eis-paused", word, hint, act if admin else "")
        return queue_bar("", "Queue", told[0].upper() + told[1:] + ".", button("Pause", "pause") if admin else "")

    def unseen(self, owner: str) -> int:
        """How many of the owner's waiting jobs are not listed."""
        return self.service.list_jobs(owner=owner, status=JobStatus.QUEUED, limit=1)[1] - SHOWN_WAITING

    def row(self, job: Job, position: int | None) -> str:
        """A job of the queue."""
        act = button("Cancel", "cancel", id=job.id)
        if job.status == JobStatus.QUEUED:
            act = stepper(job.id, job.priority) + act
        return job_row(job, self.titles.get(job.capability, job.capability), position, act)

    def batch_list(self, batches: list[BatchView], total: int, opened: str, owner: str) -> str:
        """The batches, newest first; the opened one with its pictures."""
        if not batches:
            return empty("No batches yet", "Several prompts, seeds or settings become one batch: add one on the left.")
        rows = [self.batch_row(view, view.batch.id == opened, owner) for view in batches]
        return listed("Batches", rows, total - len(batches))

    def batch_row(self, view: BatchView, opened: bool, owner: str) -> str:
        """One batch."""
        batch, counts = view.batch, view.counts
        first = self.service.jobs_of_batch(batch.id, owner, limit=1)[0]
        title = escape(self.titles.get(first.capability, first.capability))
        told = [f"{counts['succeeded']} of {view.total} done"]
        told += [f"{counts[status]} {status}" for status in ("running", "failed", "cancelled") if counts[status]]
        told += [f"{counts['queued']} waiting"] if counts["queued"] else []
        act = button("Hide" if opened else "Show", "close" if opened else "open", id=batch.id)
        if counts["failed"]:
            act = button("Retry failed", "retry", id=batch.id) + act
        if counts["queued"] or counts["running"]:
            act = button("Cancel", "cancel", id=batch.id, confirm="Cancel all?", style="eis-danger") + act
        if view.priority is not None:
            act = stepper(batch.id, view.priority) + act
        words = escape(str(first.request.get("prompt") or ""))
        bar = f'<div class="eis-progress"><i style="width:{100 * view.progress:.1f}%"></i></div>'
        pictures = self.batch_pictures(batch.id, owner) if opened else ""
        return (
            f'<div class="eis-job eis-batch-row" role="listitem" data-batch="{batch.id}"><div class="eis-job-text">'
            f'<div class="eis-job-title">{state_badge(view.status)}<strong>{title}</strong>{moment(batch.created)}'
            f'</div><div class="eis-job-words">{words}</div><div class="eis-hint">{" · ".join(told)}</div>{bar}</div>'
            f'<div class="eis-job-act">{act}</div>{pictures}</div>'
        )

    def batch_pictures(self, batch_id: str, owner: str) -> str:
        """What the jobs of a batch made so far, in order, and why some made nothing."""
        jobs = self.service.jobs_of_batch(batch_id, owner, limit=SHOWN_PICTURES)
        tiles, failures = [], []
        for number, job in enumerate(jobs, 1):
            words = escape(str(job.request.get("prompt") or f"Job {number}"))
            for image in (job.result or {}).get("images", []):
                tiles.append(
                    f'<a class="eis-thumb" href="{picture_url(image["id"])}" target="_blank" rel="noopener" '
                    f'title="{words}"><img loading="lazy" src="{thumbnail_url(image["id"])}" alt="{words}"></a>'
                )
            if job.status == JobStatus.FAILED:
                message = escape(without_backticks((job.error or {}).get("message", "")))
                failures.append(f'<p class="eis-error-line">Job {number}: {message}</p>')
        nothing = "" if tiles or failures else '<p class="eis-hint">No picture yet.</p>'
        return f'<div class="eis-batch-pictures">{"".join(tiles)}{nothing}</div>{"".join(failures)}'

    async def act(self, opened: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Pause, resume, cancel, retry, reprioritise, open and close."""
        data: Mapping[str, Any] = event._data or {}
        owner, id, action = owner_of(request), str(data.get("id")), data.get("action")
        deeds: dict[Any, Callable[[], Any]] = {
            "pause": lambda: self.service.pause_queue(True),
            "resume": lambda: self.service.pause_queue(False),
            "cancel": lambda: self.by_kind(id, owner, self.service.cancel, self.service.cancel_batch),
            "retry": lambda: self.by_kind(id, owner, self.service.retry, self.service.retry_batch),
            "priority": lambda: self.service.reprioritise(id, int(data["value"]), owner),
        }
        try:
            if action in {"pause", "resume"}:
                require_admin(request)
            if action in deeds:
                await asyncio.to_thread(deeds[action])
        except ServiceError as error:
            warn(error.message)
        shown = {"open": id, "close": ""}.get(str(action), opened)
        return (shown, *await asyncio.to_thread(self.drawn, shown, owner, may_administer(request)))

    def by_kind(self, id: str, owner: str, job: Callable[..., Any], batch: Callable[..., Any]) -> Any:
        """Call what fits: a job's way or a batch's."""
        return (job if isinstance(self.service.find(id, owner), Job) else batch)(id, owner)


def needs_mask(service: Any, name: str) -> bool:
    """Whether a capability cannot do without a mask, which is painted on each picture by hand."""
    wish = next(capability.request for capability in service.catalog if capability.name == name)
    kinds = image_fields(wish)
    return any(kind == "mask" and wish.model_fields[field].is_required() for field, kind in kinds.items())


def queue_bar(style: str, word: str, hint: str, act: str) -> str:
    """The line above the queue."""
    return (
        f'<div class="eis-queue-bar {style}"><div><strong role="status">{word}</strong>'
        f'<span class="eis-hint">{hint}</span></div>{act}</div>'
    )


def listed(title: str, rows: list[str], more: int = 0) -> str:
    """Rows under a heading; nothing where there are none."""
    if not rows:
        return ""
    rest = f'<p class="eis-hint">and {more} more</p>' if more > 0 else ""
    return f'<h2 class="eis-heading">{title}</h2><div class="eis-jobs" role="list">{"".join(rows)}</div>{rest}'


def stepper(id: str, priority: int) -> str:
    """A priority between two buttons that lower and raise it."""

    def step(text: str, name: str, value: int) -> str:
        off = " disabled" if not 0 <= value <= 10 else ""
        return (
            f'<button type="button" class="eis-button" data-action="priority" data-id="{id}" data-value="{value}" '
            f'aria-label="{name}"{off}>{text}</button>'
        )

    lower, higher = step("&minus;", "Lower the priority", priority - 1), step("+", "Raise the priority", priority + 1)
    return f'<span class="eis-stepper" title="Priority: 10 goes first">{lower}<span>{priority}</span>{higher}</span>'
