"""Chains in the engine: what follows a job is made with its end, checked at the door, and ends with what fails."""

import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.core import crash_points
from app.core.batch_store import BatchStore
from app.core.batching import Wish
from app.core.chains import LINKS_LIMIT, PICTURE_TO_COME, why_nothing_follows
from app.core.job_store import JobStore
from app.core.jobs import Batch, Job, JobStatus, new_id
from app.core.service import Service
from app.errors import Conflict, InvalidRequest, MaskMismatch, UnknownImage
from tests.api.conftest import picture
from tests.engine.conftest import end_of, new_job, options, until

STEPS = {"step": 4, "steps": 4}
COPY = {"capability": "test/copy"}


def link(**changes: object) -> dict:
    return {"capability": "test/copy", "request": {"mask_image": None}, "model": None, "max_attempts": 3, **changes}


def made(count: int) -> dict:
    size = {"width": 8, "height": 8, "bytes": 1, "sha256": "0" * 64, "media_type": "image/png", "seed": 1}
    return {"images": [{"id": new_id(), **size} for _ in range(count)], "data": {}, "notes": [], "model": None}


def chain_end(service: Service, job: Job) -> list[Job]:
    """Every job of a chain once all have ended, in the order in which they were made."""
    until(lambda: service.batch(job.batch_id).status.is_terminal)
    return service.jobs_of_batch(job.batch_id)


def inserted(store: JobStore, **changes: object) -> Job:
    """A chain of three links as the service accepts it."""
    batch = Batch(new_id(), changes.get("owner", ""), time.time(), 1)
    job = new_job(batch_id=batch.id, then=[link(), link(model="last")], **changes)
    return store.insert(job, batch=batch)


# ---- the store


def test_the_next_link_is_made_with_the_end_of_the_one_before(store: JobStore) -> None:
    job = inserted(store, owner="ann", priority=7, callback_url="https://example.org/told")
    assert store.claim(job.id, device="cpu") is not None
    assert [entry.id for entry in store.waiting()] == []
    result = made(2)
    ended = store.succeed(job.id, 1, result, **STEPS)
    assert ended == store.get(job.id)
    waiting = [store.get(entry.id) for entry in store.waiting()]
    assert sorted(ended.followed_by) == sorted(one.id for one in waiting)
    assert sorted(one.request["image"] for one in waiting) == sorted(one["id"] for one in result["images"])
    for one in waiting:
        assert (one.owner, one.priority, one.callback_url) == ("ann", 7, "https://example.org/told")
        assert (one.batch_id, one.follows, one.capability) == (job.batch_id, job.id, "test/copy")
        assert one.then == [link(model="last")]
    last = store.get(ended.followed_by[0])
    store.claim(last.id, device="cpu")
    followers = store.succeed(last.id, 1, made(1), **STEPS).followed_by
    assert (store.get(followers[0]).model, store.get(followers[0]).then) == ("last", None)
    batches = BatchStore(store)
    assert [one.id for one in batches.jobs_of(job.batch_id)] == [job.id, *ended.followed_by, *followers]
    # Three links; the first is done, and the second for one of its two pictures.
    assert batches.ended_shares([job.batch_id])[job.batch_id] == pytest.approx(1 / 3 + 1 / 3 / 2)


def test_an_old_attempt_makes_nothing_that_follows(store: JobStore) -> None:
    job = inserted(store)
    store.claim(job.id, device="cpu")
    store.lose(job.id, 1, lambda attempt: 0.0, reason="gone")
    assert store.succeed(job.id, 1, made(1), **STEPS) is None
    assert [entry.id for entry in store.waiting()] == [job.id]


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_link_that_does_not_succeed_ends_the_rest_and_goes_on_when_it_is_tried_again(
    store: JobStore, how: str
) -> None:
    job = inserted(store)
    store.claim(job.id, device="cpu")
    if how == "failed":
        ended = store.fail(job.id, 1, {"code": "internal", "message": "It broke."}, **STEPS)
    else:
        store.cancel(job.id)
        ended = store.cancelled(job.id, 1, **STEPS)
    assert how in why_nothing_follows(ended)
    assert store.waiting() == [] and ended.followed_by is None
    assert BatchStore(store).ended_shares([job.batch_id]) == {job.batch_id: 1.0}
    again = store.retry(job.id, attempts=3)
    assert why_nothing_follows(again) is None
    store.claim(job.id, device="cpu")
    assert len(store.succeed(job.id, 2, made(1), **STEPS).followed_by) == 1


def test_a_cancel_that_came_too_late_for_the_worker_still_ends_the_chain(store: JobStore) -> None:
    job = inserted(store)
    store.claim(job.id, device="cpu")
    BatchStore(store).cancel(job.batch_id)
    ended = store.succeed(job.id, 1, made(2), **STEPS)
    assert ended.status is JobStatus.SUCCEEDED
    followers = [store.get(one) for one in ended.followed_by]
    assert [one.status for one in followers] == [JobStatus.CANCELLED] * 2
    assert store.history(followers[0].id)[-1]["reason"] == "the job before it was to be cancelled"
    assert store.waiting() == []
    assert BatchStore(store).ended_shares([job.batch_id])[job.batch_id] == pytest.approx(1.0)


def test_a_run_without_a_picture_has_nothing_that_follows(store: JobStore) -> None:
    job = inserted(store)
    store.claim(job.id, device="cpu")
    ended = store.succeed(job.id, 1, made(0), **STEPS)
    assert "no picture" in why_nothing_follows(ended)
    assert BatchStore(store).ended_shares([job.batch_id]) == {job.batch_id: 1.0}


def test_a_picture_that_a_follow_up_names_stays(store: JobStore) -> None:
    mask = new_id()
    job = new_job(then=[link(request={"mask_image": mask})])
    store.insert(job)
    with pytest.raises(Conflict):
        store.images.remove(mask, owner="", sha256="0" * 64)
    store.cancel(job.id)
    store.images.remove(mask, owner="", sha256="0" * 64)
    with pytest.raises(UnknownImage):
        store.retry(job.id, attempts=3)
    with pytest.raises(UnknownImage):
        store.insert(replace(job, id=new_id()))


def test_a_store_of_the_third_version_learns_of_chains(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(f"sqlite:///{path}")
    old = store.insert(new_job())
    store.close()
    with sqlite3.connect(path) as database:
        for column in ("then", "follows", "followed_by", "share"):
            database.execute(f'ALTER TABLE jobs DROP COLUMN "{column}"')
        database.execute("UPDATE meta SET value = '3' WHERE name = 'schema_version'")
    store = JobStore(f"sqlite:///{path}")
    try:
        assert store.get(old.id) == old
        job = inserted(store)
        assert store.get(job.id) == job
    finally:
        store.close()


# ---- the service


def test_a_chain_runs_to_its_end_as_one_batch(service: Service) -> None:
    wish = {"seed": 3, "num_images_per_prompt": 2}
    job = service.submit("test/paint", wish, then=[COPY, COPY], priority=6, owner="ann")
    assert service.batch(job.batch_id, "ann").total == 1
    until(lambda: service.batch(job.batch_id, "ann").status.is_terminal)
    view = service.batch(job.batch_id, "ann")
    jobs = service.jobs_of_batch(job.batch_id, "ann")
    assert (view.status, view.progress, view.total) == (JobStatus.SUCCEEDED, 1.0, 5)
    assert {one.priority for one in jobs} == {6}
    first = jobs[0]
    second = [one for one in jobs if one.follows == first.id]
    assert [one.request["image"] for one in second] == [image["id"] for image in first.result["images"]]
    for one in second:
        (third,) = one.followed_by
        source = one.result["images"][0]
        recipe = service.storage.metadata(service.get(third, "ann").result["images"][0]["id"])["recipe"]
        assert recipe["inputs"]["image"] == {"id": source["id"], "sha256": source["sha256"]}
        assert recipe["request"]["image"] == source["id"]


def test_progress_never_goes_back(service: Service) -> None:
    wish = {"seed": 3, "num_images_per_prompt": 3, "num_inference_steps": 20, "step_seconds": 0.01}
    job = service.submit("test/paint", wish, then=[COPY, COPY])
    seen = [0.0]
    while not (view := service.batch(job.batch_id)).status.is_terminal:
        seen.append(view.progress)
        time.sleep(0.005)
    seen.append(view.progress)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert any(0 < share < 1 / 3 for share in seen), "the steps of the first link do not count"


def test_what_fails_in_the_middle_is_said(service: Service) -> None:
    """The mask is of another size than the picture, which nobody could know at the door."""
    mask = service.upload(picture((40, 30)), kind="mask").id
    job = service.submit("test/paint", {"seed": 1}, then=[{**COPY, "mask_image": mask}, COPY])
    first, second = chain_end(service, job)
    assert (first.status, second.status) == (JobStatus.SUCCEEDED, JobStatus.FAILED)
    assert (second.error["code"], second.error["details"]["field"]) == (MaskMismatch.code, "mask_image")
    assert "failed" in why_nothing_follows(second)
    view = service.batch(job.batch_id)
    assert (view.status, view.progress, view.total) == (JobStatus.FAILED, 1.0, 2)


def test_a_cancelled_batch_ends_the_whole_chain(service: Service) -> None:
    job = service.submit("test/paint", {"seed": 1, "num_inference_steps": 500, "step_seconds": 0.01}, then=[COPY])
    until(lambda: service.get(job.id).step > 0)
    service.cancel_batch(job.batch_id)
    end_of(service, job.id)
    assert [one.status for one in chain_end(service, job)] == [JobStatus.CANCELLED]
    assert service.batch(job.batch_id).status is JobStatus.CANCELLED


def test_a_batch_of_chains(service: Service) -> None:
    wishes = [Wish("test/paint", {"seed": seed}, then=[COPY]) for seed in range(3)] + [Wish("test/paint", {"seed": 9})]
    batch, _ = service.submit_batch(wishes, idempotency_key="k")
    assert service.submit_batch(wishes, idempotency_key="k") == (batch, False)
    with pytest.raises(Conflict):
        service.submit_batch([replace(wish, then=None) for wish in wishes], idempotency_key="k")
    until(lambda: service.batch(batch.id).status.is_terminal)
    view = service.batch(batch.id)
    assert (batch.size, view.total, view.progress, view.status) == (4, 7, 1.0, JobStatus.SUCCEEDED)


def test_a_key_knows_the_follow_ups(service: Service) -> None:
    job = service.submit("test/paint", {"seed": 1}, then=[COPY], idempotency_key="k")
    assert service.submit("test/paint", {"seed": 1}, then=[COPY], idempotency_key="k").id == job.id
    for other in (None, [COPY, COPY]):
        with pytest.raises(Conflict):
            service.submit("test/paint", {"seed": 1}, then=other, idempotency_key="k")
    assert service.list_batches()[1] == 1


@pytest.mark.parametrize(
    ("then", "field", "words"),
    [
        ("upscale", "then", "a list"),
        ([COPY] * (LINKS_LIMIT + 1), "then", "8 follow-ups"),
        (["test/copy"], "then.0", "an object"),
        ([{"scale": 2}], "then.0.capability", "Name the capability"),
        ([COPY, {"capability": "test/nothing"}], "then.1.capability", "no handler"),
        ([{"capability": "test/paint"}], "then.0.capability", "takes no picture"),
        ([{**COPY, "image": PICTURE_TO_COME}], "then.0.image", "leave it out"),
        ([COPY, {**COPY, "colour": "red"}], "then.1.colour", "then.1.colour"),
        ([{**COPY, "mask_image": "z" * 26}], "then.0", "no picture"),
    ],
)
def test_a_chain_that_could_only_fail_is_refused_at_the_door(
    service: Service, then: object, field: str, words: str
) -> None:
    with pytest.raises((InvalidRequest, UnknownImage), match=words) as refusal:
        service.submit("test/paint", {"seed": 1}, then=then)
    assert refusal.value.details["field"] == field
    assert str(refusal.value.message).startswith("then")
    assert service.list_jobs()[1] == service.list_batches()[1] == 0


def test_the_picture_to_come_is_none_that_a_job_may_name(service: Service) -> None:
    with pytest.raises(UnknownImage):
        service.submit("test/copy", {"image": PICTURE_TO_COME})


# ---- deaths


def chain_front(home: str, crash_at: str) -> None:
    """A front process that takes one chain and works until all of it is done."""
    os.environ[crash_points.VARIABLE] = crash_at
    service = Service(options(Path(home)))
    service.start()
    wish = {"seed": 3, "num_images_per_prompt": 2}
    job = service.submit("test/paint", wish, then=[COPY, COPY], idempotency_key="k")
    until(lambda: service.batch(job.batch_id).status.is_terminal, 60)
    service.stop(5.0)


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("point", ["insert", "claim", "rename", "done"])
def test_a_chain_outlives_a_death_at_each_point(point: str, tmp_path: Path) -> None:
    """The first time the point is met, the second, ...: the next process finds the chain as whole as it was."""
    deaths = 0
    for count in range(1, 12):
        home = tmp_path / str(count)
        home.mkdir()
        if die_at(home, f"{point}:{count}") == 0:
            break
        deaths += 1
        assert die_at(home, "") == 0
        store = JobStore(f"sqlite:///{home / 'jobs.sqlite'}")
        try:
            jobs, total = store.list_jobs(limit=100)
            assert total == 5, "a link was lost or made twice"
            assert all(job.status is JobStatus.SUCCEEDED for job in jobs)
            followed = [job_id for job in jobs for job_id in job.followed_by or ()]
            assert sorted(followed) == sorted(job.id for job in jobs if job.follows)
            assert sum(job.share for job in jobs) == pytest.approx(1.0)
            for job in jobs:
                assert sum(entry["after"] == "succeeded" for entry in store.history(job.id)) == 1
        finally:
            store.close()
    assert deaths >= (1 if point == "insert" else 5), "the point was not met in every job"


def die_at(home: Path, point: str) -> int:
    """Run the front in a process of its own with this crash point; answers its status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.engine.front"])
    process = context.Process(target=chain_front, args=(str(home), point))
    process.start()
    process.join(120)
    assert process.exitcode in {0, 137}
    return process.exitcode


def test_two_servers_share_a_chain(postgres_url: str, tmp_path: Path, make_service: Callable[..., Service]) -> None:
    """Whichever server ends a link, each may take the next one up."""
    first = make_service(home=tmp_path, database_url=postgres_url)
    second = make_service(home=tmp_path, database_url=postgres_url)
    jobs = [first.submit("test/paint", {"seed": seed}, then=[COPY, COPY]) for seed in range(4)]
    for job in jobs:
        until(lambda job=job: second.batch(job.batch_id).status.is_terminal)
        assert first.batch(job.batch_id).total == 3
        assert second.batch(job.batch_id).status is JobStatus.SUCCEEDED
