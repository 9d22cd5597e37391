"""What the stage beside a form shows: nothing yet, a job that waits or runs, its pictures, or why there are none."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from app.core.chains import why_nothing_follows
from app.core.jobs import Job, JobEvent, JobStatus
from app.ui.before_after import Before
from app.ui.people import People
from app.ui.stages import stages_in, told
from app.ui.wording import (
    STATUS_WORDS,
    badge,
    button,
    chooser,
    duration,
    empty,
    picture_url,
    size,
    thumbnail_url,
    without_backticks,
)


@dataclass
class Progress:
    """What is known of a job that has not ended; fed by its events."""

    job_id: str
    status: str = "queued"
    position: int | None = None
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    preview: str | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    link: str = ""
    """What this link of a chain is called; empty where there is no chain."""
    behind: list[str] = field(default_factory=list)
    """Ids of this form's jobs that wait behind this one."""

    def take(self, event: JobEvent) -> None:
        """Note what an event says."""
        data = event.data
        if event.kind in {"queued", "requeued"}:
            self.status, self.position = "queued", data.get("position")
        elif event.kind == "started":
            self.status, self.stages = "running", []
        elif event.kind == "step":
            self.status = "running"
            self.step, self.steps = data.get("step", self.step), data.get("steps", self.steps)
            self.seconds_left = data.get("seconds_left")
        elif event.kind == "stages":
            self.status, self.stages = "running", data.get("stages", self.stages)
        elif event.kind == "preview":
            self.status, self.preview = "running", data.get("image") or self.preview


def nothing_yet(summary: str) -> str:
    """Before the first job."""
    return f'<div class="eis-frame">{empty("Nothing here yet", summary)}</div>'


def working(progress: Progress, *, resume: bool = False) -> str:
    """A job on its way, with the button that cancels exactly it.

    `resume` asks the page's script to report at once that nobody follows this job yet.
    """
    if progress.status == "queued":
        place = progress.position
        line = "Waiting" if place is None else "Next in line" if place == 0 else f"{place} before it in line"
        bar = '<div class="eis-progress waiting"><i></i></div>'
    else:
        line = f"Step {progress.step} of {progress.steps}" if progress.steps else "Starting"
        if progress.seconds_left is not None and progress.step:
            line += f" · {duration(progress.seconds_left)} left"
        share = 100 * progress.step / progress.steps if progress.steps else 0
        bar = (
            f'<div class="eis-progress" role="progressbar" aria-valuenow="{progress.step}" aria-valuemin="0" '
            f'aria-valuemax="{progress.steps}"><i style="width:{share:.1f}%"></i></div>'
        )
    line = f"{progress.link} · {line}" if progress.link else line
    picture = ""
    if progress.preview:
        picture = f'<img class="eis-preview" src="{escape(progress.preview)}" alt="Preview of the picture being made">'
    else:
        picture = '<div class="eis-empty"><span class="eis-spinner"></span></div>'
    behind = "".join(f"<li>Waiting behind it {button('Cancel', 'cancel', job=job)}</li>" for job in progress.behind)
    return (
        f'<div class="eis-frame" data-job="{progress.job_id}" data-working="{progress.job_id}"'
        f"{' data-resume' if resume else ''}>{picture}</div>"
        f'<div class="eis-status"><span class="eis-line" role="status">{line}</span>'
        f"{button('Cancel', 'cancel', job=progress.job_id, style='eis-cancel')}</div>{bar}{told(progress.stages)}"
        + (f'<ul class="eis-behind">{behind}</ul>' if behind else "")
    )


def ended_badly(job: Job) -> str:
    """A job that failed or was cancelled."""
    if job.status == JobStatus.CANCELLED:
        title, tone = "Cancelled", ""
        before = "its first step" if job.started else "it began"
        text = f"Stopped at step {job.step} of {job.steps}." if job.steps else f"Stopped before {before}."
    else:
        title, tone = "That did not work", "eis-bad"
        text = without_backticks((job.error or {}).get("message", "The job failed."))
    if reason := why_nothing_follows(job):
        text = f"{text} {reason}"
    return (
        f'<div class="eis-frame" data-job="{job.id}"><div class="eis-empty {tone}" role="alert">'
        f"<strong>{title}</strong><span>{escape(text)}</span>{button('Try again', 'retry', job=job.id)}</div></div>"
        + told(stages_in(job))
    )


def refused(message: str, more: Sequence[str] = ()) -> str:
    """A wish that was not accepted, in a sentence or several."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in more)
    return (
        f'<div class="eis-frame"><div class="eis-empty eis-bad" role="alert"><strong>Not accepted</strong>'
        f"<span>{escape(without_backticks(message))}</span>{f'<ul>{lines}</ul>' if lines else ''}</div></div>"
    )


def finished(
    job: Job,
    metadata: Mapping[str, Mapping[str, Any]],
    targets: Sequence[tuple[str, str]],
    reference: str | None = None,
    before: Before | None = None,
) -> str:
    """The pictures of a job, one large, with what is known of each.

    `reference` is the person's picture, `before` the one that they were made of.
    """
    images = (job.result or {}).get("images", [])
    notes = (job.result or {}).get("notes", [])
    people = People.of(job, reference)
    if not images and people.faces == 0:
        return f'<div class="eis-frame">{empty("No face was found", "None that these face models know.")}</div>'
    if not images:
        data = (job.result or {}).get("data") or {}
        return f'<div class="eis-frame"><pre>{escape(json.dumps(data, indent=2))}</pre></div>' + _notes(notes)
    views = "".join(
        f'<div data-view="{image["id"]}"{" hidden" if at else ""}>'
        + picture_view(
            image,
            metadata.get(image["id"], {}),
            targets,
            job=job,
            beside=people.beside(),
            caption=people.caption(at),
            before=before,
        )
        + "</div>"
        for at, image in enumerate(images)
    )
    strip = ""
    if len(images) > 1:
        buttons = "".join(
            people.thumbnail(
                at,
                f'<button type="button" class="eis-thumb" data-client="pick" data-pick="{image["id"]}" '
                f'aria-pressed="{"false" if at else "true"}"><img src="{thumbnail_url(image["id"])}" '
                f'alt="Picture {at + 1} of {len(images)}"></button>',
            )
            for at, image in enumerate(images)
        )
        strip = f'<div class="eis-strip">{buttons}</div>'
    return f'<div class="eis-result" data-job="{job.id}">{views}{strip}{_notes(notes)}{told(stages_in(job))}</div>'


def _notes(notes: Sequence[str]) -> str:
    return "".join(f'<p class="eis-note">{escape(note)}</p>' for note in notes)


def facts(image: Mapping[str, Any], metadata: Mapping[str, Any], job: Job | None) -> list[tuple[str, str]]:
    """(word, value) pairs of one picture."""
    recipe = metadata.get("recipe") or {}
    request = recipe.get("request") or (job.request if job else {})
    found = [("Size", f"{image['width']} × {image['height']}")]
    if image.get("seed") is not None:
        found.insert(0, ("Seed", str(image["seed"])))
    model = recipe.get("model") or (job.model if job else None)
    if model:
        found.append(("Model", str(model)))
    for word, name in (("Steps", "num_inference_steps"), ("Guidance", "guidance_scale"), ("Scheduler", "scheduler")):
        value = request.get(name)
        if value is not None:
            found.append((word, f"{value:g}" if isinstance(value, float) else str(value)))
    if job and job.started and job.finished:
        found.append(("Time", duration(job.finished - job.started)))
    if metadata.get("bytes"):
        found.append(("File", f"PNG, {size(metadata['bytes'])}"))
    return found


def picture_view(
    image: Mapping[str, Any],
    metadata: Mapping[str, Any],
    targets: Sequence[tuple[str, str]],
    *,
    job: Job | None = None,
    delete: bool = False,
    beside: str = "",
    caption: str = "",
    before: Before | None = None,
) -> str:
    """One picture, what can be done with it, and its origin in words and as a recipe.

    `beside` is HTML that stands in the picture's frame, `caption` what stands under it; `before` is the picture that
    this one was made of.
    """
    before = before if before and before.fits(image) else None
    reference = image["id"]
    recipe = metadata.get("recipe")
    seed = image.get("seed")
    request = (recipe or {}).get("request") or (job.request if job else {})
    prompt = request.get("prompt") or ""
    name = f"eis-{seed if seed is not None else reference[:8]}.png"
    bar = [
        chooser("Send to …", "send", targets, image=reference, width=image["width"], height=image["height"]),
        f'<a class="eis-button" href="{picture_url(reference)}" download="{name}">Download</a>',
    ]
    if before:
        bar.append(before.toggle())
    if recipe:
        bar.append(button("Use settings", "settings", image=reference))
    if seed is not None and not delete:
        bar.append(button("Reuse seed", "seed", seed=seed))
    if delete:
        bar.append(button("Delete", "delete", image=reference, confirm="Delete for good?", style="eis-danger"))
    known = facts(image, metadata, job)
    pairs = "".join(f"<div><dt>{word}</dt><dd>{escape(value)}</dd></div>" for word, value in known)
    origin = ""
    if metadata.get("infotext"):
        origin += _text("Infotext", f"info-{reference}", metadata["infotext"])
    if recipe:
        origin += _text("Recipe (JSON)", f"recipe-{reference}", json.dumps(recipe, indent=2, ensure_ascii=False))
    words = f'<p class="eis-words">{escape(prompt)}</p>' if prompt else ""
    return (
        f'<div class="eis-frame"><img class="eis-picture" src="{picture_url(reference)}" data-client="zoom" '
        f'width="{image["width"]}" height="{image["height"]}" alt="{escape(prompt) or "The picture"}"'
        f"{' hidden' if before and before.is_open else ''}>{beside}{before.slider(image) if before else ''}"
        f"</div>{caption}"
        f'<div class="eis-bar eis-actions">{"".join(bar)}</div>{words}<dl class="eis-facts">{pairs}</dl>{origin}'
    )


def _text(title: str, anchor: str, content: str) -> str:
    return (
        f"<details><summary>{title}</summary>"
        f'<button type="button" class="eis-button eis-copy" data-client="copy" data-source="{anchor}">Copy</button>'
        f'<pre id="{anchor}">{escape(content)}</pre></details>'
    )


def recent(images: Sequence[Any]) -> str:
    """The strip of a capability's latest pictures."""
    if not images:
        return ""
    buttons = "".join(
        f'<button type="button" class="eis-thumb" data-action="open" data-image="{image.id}" '
        f'title="{escape(image.prompt or "")}"><img loading="lazy" src="{thumbnail_url(image.id)}" '
        f'alt="{escape(image.prompt or "An earlier picture")}"></button>'
        for image in images
    )
    return f'<div class="eis-recent"><span class="eis-label">Recent</span><div class="eis-strip">{buttons}</div></div>'


def state_badge(status: str) -> str:
    """A job's state in a frame of its colour."""
    tones = {"running": "eis-go", "succeeded": "eis-good", "failed": "eis-bad"}
    return badge(STATUS_WORDS.get(status, str(status)), tones.get(status, ""))
