"""The Jobs tab: what waits, runs and ran, with progress, cancel and retry; it looks again while it is open."""

import asyncio
from html import escape
from typing import Any

import gradio as gr

from app.core.jobs import Job, JobStatus
from app.errors import ServiceError
from app.ui.clock import run_while_open
from app.ui.panel import QUIET
from app.ui.parts import part
from app.ui.session import owner_of, warn
from app.ui.stage import state_badge
from app.ui.wording import button, duration, empty, moment, thumbnail_url, without_backticks

PAGE = 50
SECONDS_BETWEEN_LOOKS = 1.5
FILTERS = [
    ("All", ""),
    ("Waiting", "queued"),
    ("Running", "running"),
    ("Done", "succeeded"),
    ("Failed", "failed"),
    ("Cancelled", "cancelled"),
]


class QueuePage:
    """The tab's parts and listeners."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.titles = {capability.name: capability.title for capability in service.catalog}
        with gr.Row(elem_classes=["eis-filters"]):
            self.status = gr.Radio(FILTERS, value="", show_label=False, container=False)
        self.shown = gr.State(PAGE)
        self.table = part("", elem_id="job-table")
        self.timer = gr.Timer(SECONDS_BETWEEN_LOOKS, active=False)

    def connect(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Attach the listeners; the clock runs only while the tab is open."""
        reads = {"fn": self.look, "inputs": [self.status, self.shown], "outputs": self.table}
        run_while_open(self.timer, tab, others)
        tab.select(**reads, **QUIET)
        self.timer.tick(**reads, **QUIET)
        self.status.change(**reads, **QUIET)
        self.table.act(self.act, [self.status, self.shown], [self.table, self.shown], **QUIET)

    async def look(self, status: str, shown: int, request: gr.Request) -> str:
        """The table as it stands."""
        return await asyncio.to_thread(self.listed, status, shown, owner_of(request))

    def listed(self, status: str, shown: int, owner: str) -> str:
        """Blocking: the rows of the newest jobs."""
        wanted = JobStatus(status) if status else None
        jobs, total = self.service.list_jobs(owner=owner, status=wanted, limit=shown)
        if not jobs:
            if status:
                return empty("No such job", "No job has this status now.")
            return empty("No jobs yet", "Every wish becomes a job and is listed here, also those made over REST.")
        rows = "".join(self.row(job) for job in jobs)
        more = button(f"Show more ({total - len(jobs)} left)", "more") if total > len(jobs) else ""
        return f'<div class="eis-jobs" role="list">{rows}</div><div class="eis-more">{more}</div>'

    def row(self, job: Job) -> str:
        """One job."""
        position = self.service.position(job.id) if job.status == JobStatus.QUEUED else None
        act = ""
        if not job.status.is_terminal:
            act = button("Cancel", "cancel", job=job.id)
        elif job.status in {JobStatus.FAILED, JobStatus.CANCELLED}:
            act = button("Retry", "retry", job=job.id)
        return job_row(job, self.titles.get(job.capability, job.capability), position, act)

    async def act(self, status: str, shown: int, event: gr.EventData, request: gr.Request) -> Any:
        """Cancel, retry, or show more."""
        data = event._data or {}
        owner = owner_of(request)
        try:
            match data.get("action"):
                case "cancel":
                    await asyncio.to_thread(self.service.cancel, str(data["job"]), owner)
                case "retry":
                    await asyncio.to_thread(self.service.retry, str(data["job"]), owner)
                case "more":
                    shown += PAGE
        except ServiceError as error:
            warn(error.message)
        return await asyncio.to_thread(self.listed, status, shown, owner), shown


def starts(job: Job) -> str:
    """How often a job was started, and may still be: of how many would mislead, because an orderly stop takes none."""
    told = f"started {job.attempt} times"
    if job.status.is_terminal:
        return told
    return f"{told}, at most {job.starts_left} more" if job.starts_left else f"{told}, not again by itself"


def job_row(job: Job, title: str, position: int | None, act: str) -> str:
    """One job as a line: its picture, state, words and progress, and the buttons `act`."""
    images = (job.result or {}).get("images", [])
    picture = f'<img loading="lazy" src="{thumbnail_url(images[0]["id"])}" alt="">' if images else ""
    words = escape(str(job.request.get("prompt") or ""))
    bar = detail = ""
    if job.status == JobStatus.RUNNING:
        share = 100 * job.step / job.steps if job.steps else 0
        bar = f'<div class="eis-progress"><i style="width:{share:.1f}%"></i></div>'
        detail = f"Step {job.step} of {job.steps}" if job.steps else "Starting"
    elif job.status == JobStatus.QUEUED:
        detail = "Next in line" if position == 0 else f"{position} before it" if position else ""
    elif job.status == JobStatus.FAILED:
        detail = escape(without_backticks((job.error or {}).get("message", "")))
    elif job.started and job.finished:
        detail = duration(job.finished - job.started)
    if job.attempt > 1:
        detail += f" · {starts(job)}"
    seed = job.request.get("seed")
    where = f'<span title="{escape(job.device_reason or "")}">{escape(job.device)}</span>' if job.device else ""
    facts = (escape(job.model or ""), where, "" if seed is None else f"seed {seed}", detail)
    facts = " · ".join(part for part in facts if part)
    return (
        f'<div class="eis-job" role="listitem" data-job="{job.id}"><div class="eis-job-picture">{picture}</div>'
        f'<div class="eis-job-text"><div class="eis-job-title">{state_badge(job.status)}'
        f'<strong>{escape(title)}</strong>{moment(job.created)}</div><div class="eis-job-words">{words}</div>'
        f'<div class="eis-hint">{facts}</div>{bar}</div><div class="eis-job-act">{act}</div></div>'
    )
