"""One capability on the page: its form, the stage beside it, and what happens between a click and a picture."""

import asyncio
import base64
import binascii
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import gradio as gr

from app.core.capability import Capability
from app.core.jobs import Job, JobStatus
from app.errors import InvalidRequest, NotFound, ServiceError
from app.ui import findings, people, stage
from app.ui.before_after import Before
from app.ui.face_finding import FaceFinder, after_choice
from app.ui.following import follow_ups, link_title, then_control
from app.ui.forms import Form, kinds
from app.ui.model_choices import ModelChoices
from app.ui.parts import part
from app.ui.session import Session, owner_of, require_own, warn
from app.ui.wording import GREETINGS, VERBS, in_words

SECONDS_BETWEEN_UPDATES = 0.08
RECENT = 12
ENHANCE = "enhance"
"""The tab whose results are first seen beside what they were made of."""
FOUND_JOBS = 20
"""Jobs of each state that a form takes up again when the page is opened."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
"""What every listener says: no Gradio spinner over our own, and nothing of the page in the public API.

The empty list matters as much: Gradio tells each message of any listener to every component that some listener would
show progress on, and looks through the whole page for each of them, so that a page with many forms stood still.
"""

IN_TURN: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}
"""What every listener says that draws forms from the state of the models: one of them after the other.

Side by side, an answer that was made from an older state could arrive last and stay.
"""


class Panel:
    """The tab of one capability."""

    def __init__(self, service: Any, capability: Capability, session: gr.State, kept: gr.BrowserState) -> None:
        self.service = service
        self.capability = capability
        self.name = capability.name
        self.session = session
        self.kept = kept
        self.targets: list[tuple[str, str]] = []
        self.prompt_targets: list[tuple[str, str]] = []
        additions = (capability.additions, capability.optional_additions)
        self.choices = ModelChoices(service.models, capability.needs, *additions)
        self.form = Form(capability, self.choices, service.devices.known_names())
        with gr.Row(elem_classes=["eis-panel"]):
            with gr.Column(elem_classes=["eis-words-column"]):
                gr.HTML(f'<p class="eis-summary">{capability.summary}</p>', apply_default_css=False)
                self.form.build("words")
                self.then = then_control(capability, service.catalog)
                style = {"variant": "primary", "size": "lg", "elem_classes": ["eis-generate"]}
                self.generate = gr.Button(VERBS.get(self.name, "Generate"), elem_id=f"generate-{self.slug}", **style)
            with gr.Column(elem_classes=["eis-stage"], elem_id=f"stage-{self.slug}"):
                self.stage = part(stage.nothing_yet(GREETINGS.get(self.name) or self.form.choices.greeting()))
                self.recent = part("")
            if self.form.has("knobs") or self.form.has("advanced"):
                with gr.Column(elem_classes=["eis-knobs"]):
                    self.form.build("knobs")
                    if self.form.has("advanced"):
                        with gr.Accordion("Advanced", open=False, elem_classes=["eis-advanced"]):
                            self.form.build("advanced")

    @property
    def slug(self) -> str:
        """The name as an element id."""
        return self.name.replace("/", "-")

    def connect(self) -> None:
        """Attach the listeners; called once every tab stands."""
        following = {"fn": self.follow, "inputs": [self.session], "outputs": [self.stage, self.recent]}
        settings = {**QUIET, "trigger_mode": "multiple", "concurrency_limit": None}
        self.generate.click(
            self.enqueue,
            [self.session, *self.form.widgets, *self.then_widgets],
            [self.stage, self.kept],
            **settings,
        ).then(**following, **settings)
        pickers = list(self.form.face_pickers.values())
        acting = {
            "fn": self.act,
            "inputs": [self.session, *pickers],
            "outputs": [self.stage, *self.seed_widgets, *pickers],
        }
        FaceFinder(self.service, self.form).connect(settings)
        self.stage.act(**acting, **settings).then(**following, **settings)
        self.recent.act(**acting, **settings)
        model = self.form.widget("model")
        if model is not None:
            # Not `change`: whoever sets the model by code has also said what the form shall show for it.
            # A choice made while the one before is being answered counts: the last of them is asked for.
            model.input(self.form.refresh, model, self.form.widgets, trigger_mode="always_last", **IN_TURN, **QUIET)

    @property
    def restorable(self) -> list[Any]:
        """Everything that `restored` may update."""
        return [self.stage, self.recent, *self.form.widgets]

    @property
    def seed_widgets(self) -> list[Any]:
        """The seed's box, where the form has one."""
        widget = self.form.widget("seed")
        return [widget] if widget is not None else []

    @property
    def then_widgets(self) -> list[Any]:
        """The ticks for what follows, where the form has them."""
        return [self.then] if self.then is not None else []

    # ---- from a click to a job ---------------------------------------------------------------------------------

    async def enqueue(self, request: gr.Request, session: Session, *values: Any) -> tuple[Any, Any]:
        """Submit what the form says. A refusal is told and leaves the form as it is."""
        owner = owner_of(request)
        *values, then = values if self.then is not None else (*values, None)
        try:
            payload = self.form.read(values)
            job = await asyncio.to_thread(self.submit, payload, owner, follow_ups(then))
        except ServiceError as error:
            if self.name not in session.followed:
                return stage.refused(*self.in_words_of_the_form(error)), gr.skip()
            # The stage shows a job on its way.
            warn(self.in_words_of_the_form(error)[0], "Not accepted")
            return gr.skip(), gr.skip()
        session.expect(self.name, job.id)
        kept = drawn(self.form, values, payload, job)
        if self.name in session.followed:
            return gr.skip(), kept
        return stage.working(stage.Progress(job.id)), kept

    def in_words_of_the_form(self, error: ServiceError) -> tuple[str, list[str]]:
        """What was not accepted, by the labels of the form: one line, or a title and several."""
        lines = [in_words(**entry) for entry in error.details.get("errors") or ()]
        if len(lines) < 2:
            return (lines[0] if lines else error.message), []
        return f"{len(lines)} fields are not right:", lines

    def submit(self, payload: dict[str, Any], owner: str, then: Sequence[dict[str, Any]] = ()) -> Job:
        """Blocking: painted masks become stored pictures, then the service takes the wish."""
        stored = []
        payload = dict(payload)
        try:
            for name, kind in kinds(self.capability.request).items():
                value = payload.get(name)
                if kind == "mask" and isinstance(value, str) and value.startswith("data:"):
                    picture = self.service.upload(decode_data_uri(value), kind="mask", owner=owner)
                    stored.append(picture.id)
                    payload[name] = picture.id
            return self.service.submit(self.name, payload, owner=owner, then=then)
        except ServiceError:
            for reference in stored:
                self.service.delete_image(reference, owner)
            raise

    # ---- from a job to its picture -----------------------------------------------------------------------------

    async def follow(self, session: Session, request: gr.Request) -> AsyncIterator[tuple[Any, Any]]:
        """Show this form's jobs one after the other, each to its end; only one generator of a page does so."""
        # A generator that ends without a word would empty its outputs.
        yield gr.skip(), gr.skip()
        if self.name in session.followed:
            return
        owner = owner_of(request)
        session.followed.add(self.name)
        try:
            while job_id := session.next(self.name):
                try:
                    async for view in self.progress_of(job_id, session, owner):
                        yield view, gr.skip()
                    job = await asyncio.to_thread(self.service.get, job_id, owner)
                    session.expect_next(self.name, job.followed_by or ())
                    view = await asyncio.to_thread(self.ended, job)
                except NotFound as error:
                    view = stage.refused(error.message)
                session.shown(self.name, job_id)
                yield view, await asyncio.to_thread(self.recent_pictures, owner)
        finally:
            session.followed.discard(self.name)

    async def progress_of(self, job_id: str, session: Session, owner: str) -> AsyncIterator[str]:
        """The stage while a job waits and runs."""
        job = await asyncio.to_thread(self.service.get, job_id, owner)
        progress = stage.Progress(job_id, link=link_title(job, self.service.catalog))
        shown = 0.0
        async for event in self.service.watch(job_id, owner, preview=True):
            progress.take(event)
            progress.behind = session.unshown.get(self.name, [])[1:]
            now = time.monotonic()
            if event.kind in {"step", "preview"} and now - shown < SECONDS_BETWEEN_UPDATES:
                continue
            if event.kind not in {"succeeded", "failed", "cancelled"}:
                shown = now
                yield stage.working(progress)

    def under_way(self, owner: str) -> list[Job]:
        """The owner's jobs of this capability that run or wait, in the order in which they came."""
        found = []
        for status in (JobStatus.RUNNING, JobStatus.QUEUED):
            found += self.service.list_jobs(owner=owner, status=status, capability=self.name, limit=FOUND_JOBS)[0]
        return sorted(found, key=lambda job: job.created)

    def ended(self, job: Job) -> str:
        """The stage after a job's end."""
        if job.status != JobStatus.SUCCEEDED:
            refused = people.refused_picture(job)
            size = self.size_of(refused[1], job.owner) if refused else None
            return people.which_face(job, people.choice_of(job, size)) if size else stage.ended_badly(job)
        if findings.are_in(job):
            found = findings.view(job, self.targets, self.prompt_targets)
            # What was found about the picture that this form has just made stands under it.
            return self.ended(self.service.get(job.follows, job.owner)) + found if job.follows else found
        metadata = {}
        for image in (job.result or {}).get("images", []):
            try:
                metadata[image["id"]] = self.service.storage.metadata(image["id"])
            except NotFound:
                continue
        if not metadata and (job.result or {}).get("images"):
            return stage.nothing_yet("The last picture was deleted.")
        before = self.before_of(job.request, job.owner)
        return stage.finished(job, metadata, self.targets, self.person_of(job), before)

    def before_of(self, request: Mapping[str, Any], owner: str) -> Before | None:
        """The owner's picture that a result was made of; None where there is none, or where it has gone."""
        reference = request.get("image")
        size = self.size_of(reference, owner) if isinstance(reference, str) else None
        return Before(reference, size, is_open=self.capability.group == ENHANCE) if size else None

    def person_of(self, job: Job) -> str | None:
        """The id of the picture with the person that a job was about; None where it has gone."""
        reference = people.reference_in(job.request)
        return reference if reference is not None and self.size_of(reference, job.owner) is not None else None

    def size_of(self, reference: str, owner: str) -> tuple[int, int] | None:
        """(width, height) of the owner's stored picture; None where it has gone."""
        try:
            require_own(self.service, reference, owner)
            return self.service.storage.size(reference)
        except NotFound:
            return None

    def recent_pictures(self, owner: str) -> str:
        """The strip of this capability's latest pictures."""
        images, _ = self.service.search_images(owner=owner, capability=self.name, limit=RECENT)
        return stage.recent(images)

    # ---- what the stage's buttons do ---------------------------------------------------------------------------

    async def act(self, session: Session, event: gr.EventData, request: gr.Request, *picked: Any) -> Any:
        """Cancel, try again, show an earlier picture, reuse a seed, choose a face; the rest is the whole page's."""
        data: Mapping[str, Any] = event._data or {}
        owner = owner_of(request)
        shown, seeds = gr.skip(), [gr.skip() for _ in self.seed_widgets]
        faces: dict[str, Any] = {}
        try:
            match data.get("action"):
                case "cancel":
                    await asyncio.to_thread(self.service.cancel, str(data["job"]), owner)
                    session.cancelled(self.name, str(data["job"]))
                case "retry":
                    job = await asyncio.to_thread(self.service.retry, str(data["job"]), owner)
                    session.expect(self.name, job.id)
                    shown = stage.working(stage.Progress(job.id))
                case "resume":
                    # The page's script asks for this when it has heard nothing of a job for a while.
                    session.expect(self.name, (await asyncio.to_thread(self.service.get, str(data["job"]), owner)).id)
                case "open":
                    shown = await asyncio.to_thread(self.opened, str(data["image"]), owner)
                case "seed":
                    seeds = [int(data["seed"]) for _ in self.seed_widgets]
                case "face":
                    values = dict(zip(self.form.face_pickers, picked, strict=True))
                    number = int(data["number"])
                    shown, faces = await asyncio.to_thread(self.chosen, str(data["job"]), number, values, owner)
        except ServiceError as error:
            warn(error.message)
        pickers = [faces.get(field, gr.skip()) for field in self.form.face_pickers]
        # A single output takes a value, several a tuple.
        return (shown, *seeds, *pickers) if seeds or pickers else shown

    def chosen(self, job_id: str, number: int, values: Mapping[str, Any], owner: str) -> tuple[str, dict[str, Any]]:
        """A face was clicked on a refused job's picture: the stage and the form say so."""
        job = self.service.get(job_id, owner)
        refused = people.refused_picture(job)
        size = self.size_of(refused[1], owner) if refused else None
        if size is None:
            raise NotFound("The picture is not there any more.")
        choice = people.choice_of(job, size)
        faces = after_choice(self.form, values, choice, number)
        return people.which_face(job, choice, number), faces

    def opened(self, reference: str, owner: str) -> str:
        """An earlier picture on the stage."""
        require_own(self.service, reference, owner)
        metadata = self.service.storage.metadata(reference)
        recipe = metadata.get("recipe") or {}
        sides = {name: metadata[name] for name in ("width", "height")}
        image = {"id": reference, **sides, "seed": picture_seed(recipe)}
        seen, at = self.people_on(reference, owner)
        view = stage.picture_view(
            image,
            metadata,
            self.targets,
            beside=seen.beside(),
            caption=seen.caption(at),
            before=self.before_of(recipe.get("request") or {}, owner),
        )
        return f'<div class="eis-result">{view}</div>'

    def people_on(self, reference: str, owner: str) -> tuple[people.People, int]:
        """What the job of an earlier picture says about the people on its pictures, and which of them this one is."""
        try:
            record = self.service.get_image(reference, owner)
            job = self.service.get(record.job_id or "", owner)
        except NotFound:
            return people.People(), 0
        return people.People.of(job, self.person_of(job)), record.position

    # ---- after a refresh ---------------------------------------------------------------------------------------

    def restored(self, session: Session, kept: Any, owner: str) -> dict[Any, Any]:
        """Blocking: updates that bring back the form as this browser knew it, and the jobs as the service knows them.

        What runs or waits is shown in any case; the newest end only where the form was used before.
        """
        used = isinstance(kept, Mapping) and bool(kept)
        # Somebody who was quick has pressed Generate by now: what the stage follows already is not begun anew.
        begun = self.name in session.followed or session.next(self.name) is not None
        for job in self.under_way(owner):
            session.expect(self.name, job.id)
        updates = self.form.refresh("auto")
        if used:
            pictures = {name: kept.get(name) for name in self.form.pictures}
            updates = self.form.settled({**self.form.sensible(kept), **pictures})
        found = dict(zip(self.form.widgets, updates, strict=True))
        found[self.recent] = self.recent_pictures(owner)
        if begun:
            return found
        if running := session.next(self.name):
            found[self.stage] = stage.working(stage.Progress(running), resume=True)
        elif used and (newest := self.service.list_jobs(owner=owner, capability=self.name, limit=1)[0]):
            found[self.stage] = self.ended(newest[0])
        return found


def drawn(form: Form, values: tuple[Any, ...], payload: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """What the form says, fit for the browser's small memory: pictures as their widgets hold them, masks as ids."""
    said = dict(payload)
    widgets = form.widgets
    for name, widget in form.pictures.items():
        said[name] = values[widgets.index(widget)]
        if name in form.masks and said[name]:
            said[name] = {**said[name], "mask": job.request.get(form.masks[name])}
        if isinstance(said[name], Mapping):
            # Masks that were not chosen would not fit the browser's small memory.
            said[name] = {key: value for key, value in said[name].items() if key != "masks"}
    for name, kind in kinds(form.capability.request).items():
        if kind == "mask":
            said.pop(name, None)
    return said


def picture_seed(recipe: Mapping[str, Any]) -> int | None:
    """The seed of the one picture that a recipe belongs to."""
    seed = (recipe.get("request") or {}).get("seed")
    return None if seed is None else (int(seed) + int(recipe.get("position") or 0)) % 2**32


def decode_data_uri(value: str) -> bytes:
    """The bytes of a base64 data URI."""
    try:
        return base64.b64decode(value.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("The mask could not be read.") from None
