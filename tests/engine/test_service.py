"""The service over an inline worker: what a face may rely on."""

import asyncio
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from PIL import Image

from app.core.callbacks import CheckedUrl
from app.core.jobs import JobStatus, new_id
from app.core.service import Service
from app.errors import (
    Conflict,
    InvalidRequest,
    MaskMismatch,
    QueueFull,
    StorageFull,
    Unavailable,
    UnknownCapability,
    UnknownImage,
    UnknownJob,
    UrlNotAllowed,
    WeightsMissing,
)
from tests.engine.capabilities import squares
from tests.engine.conftest import DATABASES, end_of, options, until


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_job_becomes_pictures_with_their_recipe(service: Service) -> None:
    job = service.submit("test/paint", {"prompt": "two squares", "seed": 11, "num_images_per_prompt": 2})
    assert job.status is JobStatus.QUEUED
    done = end_of(service, job.id)
    assert (done.status, done.attempt, done.step, done.steps) == (JobStatus.SUCCEEDED, 1, 4, 4)
    assert done.result["data"] == {"squares": 64}
    assert done.result["notes"] == ["Painted."]
    assert [image["seed"] for image in done.result["images"]] == [11, 12]
    for position, image in enumerate(done.result["images"]):
        stored = service.storage.path(image["id"]).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == image["sha256"]
        assert service.storage.open(image["id"]).tobytes() == squares(11 + position).tobytes()
        metadata = service.storage.metadata(image["id"])
        assert metadata["recipe"]["request"] == done.request
        assert metadata["recipe"]["position"] == position
        assert f"Seed: {11 + position}" in metadata["infotext"]
    found, total = service.search_images(prompt="squares", seed=12)
    assert (total, found[0].job_id, found[0].position) == (1, job.id, 1)


def test_a_seed_that_is_missing_is_drawn_once(service: Service) -> None:
    seeds = {service.submit("test/paint", {}).request["seed"] for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_bad_wish_is_refused_without_an_echo(service: Service) -> None:
    secret = "my-secret-words"
    cases = [
        {"seed": secret},
        {secret[:3]: 1, "unknown": secret},
        {"num_inference_steps": 0},
        {"step_seconds": float("nan")},
        {"step_seconds": float("inf")},
        {"prompt": "\ud800"},
        {"prompt": None},
    ]
    for payload in cases:
        with pytest.raises(InvalidRequest) as refusal:
            service.submit("test/paint", payload)
        assert secret not in refusal.value.message + str(refusal.value.details)
        assert refusal.value.details["errors"][0]["field"] in {*payload}
    with pytest.raises(UnknownCapability):
        service.submit("test/none", {})
    for priority in (-1, 11):
        with pytest.raises(InvalidRequest):
            service.submit("test/paint", {}, priority=priority)
    assert service.list_jobs() == ([], 0)


def test_pictures_must_exist_belong_to_the_caller_and_fit(service: Service) -> None:
    image, mask, small = (service.upload(png(*size), owner="ann") for size in ((40, 30), (40, 30), (30, 40)))
    job = service.submit("test/copy", {"image": image.id, "mask_image": mask.id}, owner="ann")
    until(lambda: service.get(job.id, "ann").status.is_terminal)
    made = service.get(job.id, "ann").result["images"][0]
    recipe = service.storage.metadata(made["id"])["recipe"]
    assert recipe["inputs"]["image"] == {"id": image.id, "sha256": image.sha256}
    with pytest.raises(MaskMismatch, match=r"30x40.*40x30"):
        service.submit("test/copy", {"image": image.id, "mask_image": small.id}, owner="ann")
    with pytest.raises(UnknownImage):
        service.submit("test/copy", {"image": image.id}, owner="ben")
    with pytest.raises(UnknownImage):
        service.submit("test/copy", {"image": new_id()}, owner="ann")
    with pytest.raises(InvalidRequest):
        service.submit("test/copy", {"image": "../../etc/passwd"}, owner="ann")
    with pytest.raises(UnknownImage):
        service.delete_image(image.id, "ben")
    service.delete_image(image.id, "ann")
    with pytest.raises(UnknownImage):
        service.submit("test/copy", {"image": image.id}, owner="ann")


def test_owners_do_not_meet(service: Service) -> None:
    job = service.submit("test/paint", {"prompt": "x"}, owner="ann")
    until(lambda: service.get(job.id, "ann").status.is_terminal)
    for call in (service.get, service.cancel, service.retry, service.history, service.callbacks_of):
        with pytest.raises(UnknownJob):
            call(job.id, "ben")
    with pytest.raises(UnknownJob):
        asyncio.run(service.wait(job.id, 1, "ben"))
    with pytest.raises(UnknownJob):
        next(service.watch_blocking(job.id, "ben"))
    assert service.list_jobs(owner="ben") == ([], 0)
    assert service.list_jobs(owner="ann", status="succeeded")[1] == 1
    with pytest.raises(InvalidRequest):
        service.list_jobs(status="done")
    assert service.search_images(owner="ben") == ([], 0)
    image = service.get(job.id, "ann").result["images"][0]["id"]
    assert service.get_image(image, "ann").job_id == job.id
    with pytest.raises(UnknownImage):
        service.get_image(image, "ben")


def test_an_idempotency_key_counts_pictures_by_their_bytes(service: Service) -> None:
    first, same, other = (service.upload(png(*size)) for size in ((40, 30), (40, 30), (41, 30)))
    job = service.submit("test/copy", {"image": first.id}, idempotency_key="k")
    assert service.submit("test/copy", {"image": same.id}, idempotency_key="k").id == job.id
    with pytest.raises(Conflict):
        service.submit("test/copy", {"image": other.id}, idempotency_key="k")
    with pytest.raises(Conflict):
        service.submit("test/copy", {"image": first.id}, idempotency_key="k", priority=9)
    end_of(service, job.id)
    assert service.submit("test/copy", {"image": first.id}, idempotency_key="k").status is JobStatus.SUCCEEDED
    paint = service.submit("test/paint", {"seed": None}, idempotency_key="p")
    assert service.submit("test/paint", {"num_inference_steps": 4}, idempotency_key="p").id == paint.id


def test_a_replay_needs_nothing_that_was_deleted_since(service: Service) -> None:
    image, other = service.upload(png(40, 30), owner="ann"), service.upload(png(41, 30), owner="ann")
    wish = {"image": image.id}
    job = service.submit("test/copy", wish, owner="ann", idempotency_key="k")
    until(lambda: service.get(job.id, "ann").status.is_terminal)
    for reference in (image.id, other.id):
        service.delete_image(reference, "ann")
    assert service.submit("test/copy", wish, owner="ann", idempotency_key="k").id == job.id
    again = service.upload(png(40, 30), owner="ann")
    assert service.submit("test/copy", {"image": again.id}, owner="ann", idempotency_key="k").id == job.id
    with pytest.raises(Conflict):
        service.submit("test/copy", {"image": other.id}, owner="ann", idempotency_key="k")
    for owner, key in (("ann", "new"), ("ben", "k")):
        with pytest.raises(UnknownImage):
            service.submit("test/copy", wish, owner=owner, idempotency_key=key)


def test_a_replay_does_not_need_the_model_any_more(make_service: Callable[..., Service], monkeypatch) -> None:
    service = make_service(catalog="tests.engine.modelled:CATALOG", runtime="tests.engine.modelled:open_runtime")
    wish = {"prompt": "a", "num_inference_steps": 2}
    job = service.submit("test/draw", wish, idempotency_key="k")

    def refuse(*names: object, **facts: object) -> None:
        raise WeightsMissing("No model is installed.")

    monkeypatch.setattr(service.models, "choose", refuse)
    assert service.submit("test/draw", wish, idempotency_key="k").id == job.id
    with pytest.raises(WeightsMissing):
        service.submit("test/draw", wish, idempotency_key="new")


def test_a_picture_that_a_job_needs_is_not_deleted(service: Service) -> None:
    blocker = service.submit("test/paint", {"num_inference_steps": 200, "step_seconds": 0.05})
    until(lambda: service.get(blocker.id).status is JobStatus.RUNNING)
    image, mask, free = (service.upload(png(40, 30)) for _ in range(3))
    job = service.submit("test/copy", {"image": image.id, "mask_image": mask.id})
    for reference in (image.id, mask.id):
        with pytest.raises(Conflict, match="needs this picture"):
            service.delete_image(reference)
        assert service.get_image(reference).id == reference and service.storage.path(reference).is_file()
    service.delete_image(free.id)
    service.cancel(blocker.id)
    assert end_of(service, job.id).status is JobStatus.SUCCEEDED
    service.delete_image(image.id)
    assert service.search_images(kind="image")[1] == 1


def test_a_job_is_not_accepted_after_its_picture_was_deleted(service: Service, monkeypatch) -> None:
    """The deletion falls between the look at the picture and the insert; so it does before a retry by hand."""
    image = service.upload(png(40, 30))
    insert = service._store.insert

    def delete_first(*arguments: object, **facts: object) -> object:
        service.delete_image(image.id)
        return insert(*arguments, **facts)

    monkeypatch.setattr(service._store, "insert", delete_first)
    with pytest.raises(UnknownImage):
        service.submit("test/copy", {"image": image.id}, idempotency_key="k")
    assert service.list_jobs() == ([], 0)
    monkeypatch.undo()
    blocker = service.submit("test/paint", {"num_inference_steps": 200, "step_seconds": 0.05})
    other = service.upload(png(41, 30))
    job = service.submit("test/copy", {"image": other.id}, idempotency_key="k")
    service.cancel(job.id)
    service.delete_image(other.id)
    with pytest.raises(UnknownImage):
        service.retry(job.id)
    assert service.get(job.id).status is JobStatus.CANCELLED
    service.cancel(blocker.id)


def test_deletions_and_submits_at_once_never_leave_a_job_without_its_picture(service: Service) -> None:
    blocker = service.submit("test/paint", {"num_inference_steps": 1000, "step_seconds": 0.05})
    jobs, refusals = [], []
    for _ in range(30):
        image = service.upload(png(8, 8))
        start = threading.Barrier(2)

        def submit(reference: str = image.id, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                jobs.append(service.submit("test/copy", {"image": reference}))
            except UnknownImage as error:
                refusals.append(error)

        submitting = threading.Thread(target=submit)
        submitting.start()
        start.wait()
        with suppress(Conflict):
            service.delete_image(image.id)
        submitting.join()
    service.cancel(blocker.id)
    assert len(jobs) + len(refusals) == 30
    assert {end_of(service, job.id).status for job in jobs} <= {JobStatus.SUCCEEDED}


def test_errors_tell_what_they_may(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    codes = {"refusal": "invalid_request", "bug": "internal", "memory": "out_of_memory", "exit": "internal"}
    for way, code in {**codes, "not_json": "internal"}.items():
        failed = end_of(service, service.submit("test/fail", {"way": way}).id)
        attempts = 2 if way == "memory" else 1
        assert (failed.status, failed.error["code"], failed.attempt) == (JobStatus.FAILED, code, attempts)
        assert "secret" not in str(failed.error)
        assert "Traceback" not in str(failed.error)
    assert "/home/operator/secret.txt" in caplog.text
    assert end_of(service, service.submit("test/paint", {}).id).status is JobStatus.SUCCEEDED


def test_a_retry_by_hand_runs_again(service: Service) -> None:
    job = end_of(service, service.submit("test/fail", {}).id)
    again = service.retry(job.id)
    assert again.status is JobStatus.QUEUED
    assert (end_of(service, job.id).attempt, service.get(job.id).max_attempts) == (2, 4)
    done = end_of(service, service.submit("test/paint", {}).id)
    with pytest.raises(Conflict):
        service.retry(done.id)
    with pytest.raises(Conflict):
        service.cancel(done.id)


@pytest.mark.alone
def test_the_wait_is_counted_from_the_last_queueing(service: Service) -> None:
    job = service.submit("test/paint", {"num_inference_steps": 30, "step_seconds": 0.05})
    until(lambda: service.get(job.id).step >= 10)
    service.cancel(job.id)
    end_of(service, job.id)
    time.sleep(0.5)
    waited = service.statistics()["wait_seconds"]
    service.retry(job.id)
    until(lambda: service.get(job.id).status is JobStatus.RUNNING)
    until(lambda: service.get(job.id).step)
    assert service.statistics()["wait_seconds"] - waited < 0.5
    service.cancel(job.id)


def test_priority_goes_first_and_order_is_kept_within(service: Service) -> None:
    blocker = service.submit("test/paint", {"step_seconds": 0.1})
    until(lambda: service.get(blocker.id).status is JobStatus.RUNNING)
    jobs = [service.submit("test/paint", {}, priority=priority) for priority in (5, 0, 10, 5, 10)]
    assert [service.position(job.id) for job in jobs] == [2, 4, 0, 3, 1]
    ends = [end_of(service, job.id) for job in jobs]
    assert sorted(range(5), key=lambda index: ends[index].started) == [2, 4, 0, 3, 1]


def test_a_full_queue_or_disk_refuses(make_service: Callable[..., Service], tmp_path) -> None:
    service = make_service(queue_limit=3)
    blocker = service.submit("test/paint", {"step_seconds": 0.3})
    until(lambda: service.get(blocker.id).status is JobStatus.RUNNING)
    jobs = [service.submit("test/paint", {}, idempotency_key=str(index)) for index in range(3)]
    with pytest.raises(QueueFull):
        service.submit("test/paint", {})
    assert service.submit("test/paint", {}, idempotency_key="2").id == jobs[2].id
    service.cancel(jobs[0].id)
    assert service.submit("test/paint", {}).status is JobStatus.QUEUED
    full = make_service(home=tmp_path / "full", min_free_bytes=2**62)
    with pytest.raises(StorageFull):
        full.submit("test/paint", {})


@pytest.mark.alone
def test_a_cancel_ends_a_run_within_one_step(service: Service) -> None:
    job = service.submit("test/paint", {"num_inference_steps": 50, "step_seconds": 0.05})
    for event in service.watch_blocking(job.id, seconds=10):
        if event.kind == "step":
            assert event.data["step"] == 1
            break
    assert service.cancel(job.id).cancel_requested
    ended = end_of(service, job.id)
    assert ended.status is JobStatus.CANCELLED
    assert ended.step <= 2
    assert ended.steps == 50
    assert service.search_images() == ([], 0)


def test_a_cancel_while_it_waits_never_runs(service: Service) -> None:
    blocker = service.submit("test/paint", {"step_seconds": 0.1})
    job = service.submit("test/paint", {})
    assert service.cancel(job.id).status is JobStatus.CANCELLED
    assert service.cancel(job.id).status is JobStatus.CANCELLED
    end_of(service, blocker.id)
    assert [entry["after"] for entry in service.history(job.id)] == ["queued", "cancelled"]


def test_cancels_at_every_moment_of_a_short_job(service: Service) -> None:
    """Wherever a cancel falls between submit and end, the job ends and the next one runs."""
    for delay in range(40):
        job = service.submit("test/paint", {"num_inference_steps": 3, "step_seconds": 0.002})
        time.sleep(delay * 0.0006)
        try:
            service.cancel(job.id)
        except Conflict:
            assert service.get(job.id).status is JobStatus.SUCCEEDED
        assert end_of(service, job.id, 5).status in {JobStatus.CANCELLED, JobStatus.SUCCEEDED}
    assert end_of(service, service.submit("test/paint", {}).id).status is JobStatus.SUCCEEDED


@pytest.mark.alone
def test_watching_from_submit_to_end(service: Service) -> None:
    blocker = service.submit("test/paint", {"step_seconds": 0.1})
    jobs = [service.submit("test/paint", {"step_seconds": 0.03, "num_inference_steps": 6}) for _ in range(2)]
    events = list(service.watch_blocking(jobs[1].id, seconds=10))
    kinds = [event.kind for event in events]
    assert kinds[0] == "queued"
    assert kinds[-1] == "succeeded"
    positions = [event.data["position"] for event in events if event.kind == "queued"]
    assert positions == sorted(positions, reverse=True)
    assert positions[-1] == 0
    assert "started" in kinds
    steps = [event.data for event in events if event.kind == "step"]
    assert [data["step"] for data in steps] == list(range(1, 7))
    assert steps[0]["seconds_left"] is None
    assert 0.05 < steps[2]["seconds_left"] < 1
    assert len(events[-1].data["result"]["images"]) == 1
    assert [event.kind for event in service.watch_blocking(blocker.id)] == ["succeeded"]


def test_who_waits_hears_of_being_passed(service: Service) -> None:
    blocker = service.submit("test/paint", {"step_seconds": 0.3})
    until(lambda: service.get(blocker.id).status is JobStatus.RUNNING)
    job = service.submit("test/paint", {}, priority=3)
    watching = service.watch_blocking(job.id, seconds=10)
    assert next(watching).data == {"position": 0}
    service.submit("test/paint", {}, priority=4)
    assert next(event for event in watching if event.kind == "queued").data == {"position": 1}


def test_many_waiters_hold_no_thread(service: Service) -> None:
    async def wait_for_all() -> list:
        blocker = service.submit("test/paint", {"step_seconds": 0.1, "num_inference_steps": 600})
        job = service.submit("test/paint", {})
        await asyncio.to_thread(until, lambda: service.get(blocker.id).status is JobStatus.RUNNING)
        waits = [asyncio.create_task(service.wait(job.id, 60)) for _ in range(300)]
        early = await service.wait(blocker.id, 0.05)
        assert early.status is JobStatus.RUNNING
        threads.append(threading.active_count())
        service.cancel(blocker.id)
        return await asyncio.gather(*waits)

    threads: list[int] = []
    before = threading.active_count()
    ends = asyncio.run(wait_for_all())
    assert {job.status for job in ends} == {JobStatus.SUCCEEDED}
    # One is the loop's own, which waited for the blocker to begin.
    assert threads[0] <= before + 2
    assert service._watchers.watched() == []


def test_watching_on_an_event_loop_may_stop_early(service: Service) -> None:
    async def watch() -> list[str]:
        job = service.submit("test/paint", {"step_seconds": 0.05, "num_inference_steps": 4})
        early = service.watch(job.id)
        await anext(early)
        await early.aclose()
        return [event.kind async for event in service.watch(job.id)]

    kinds = asyncio.run(watch())
    assert kinds[-1] == "succeeded"
    assert kinds.count("step") >= 3
    assert service._watchers.watched() == []


def test_a_slow_watcher_reads_the_newest(service: Service) -> None:
    job = service.submit("test/paint", {"num_inference_steps": 500})
    watching = service.watch_blocking(job.id, seconds=10)
    next(watching)
    until(lambda: service.get(job.id).status.is_terminal)
    rest = list(watching)
    assert [event.kind for event in rest if event.kind == "step"].count("step") == 1
    assert rest[-1].kind == "succeeded"


def test_a_restart_goes_on_with_what_waited(tmp_path) -> None:
    first = Service(options(tmp_path))
    first.start()
    running = first.submit("test/paint", {"step_seconds": 0.02, "num_inference_steps": 50}, priority=4)
    waiting = [first.submit("test/paint", {"seed": index}, priority=index) for index in range(3)]
    until(lambda: first.get(running.id).step)
    first.stop(0.0)
    with pytest.raises(Unavailable):
        first.submit("test/paint", {})
    second = Service(options(tmp_path))
    second.start()
    ends = [end_of(second, job.id) for job in waiting]
    assert [job.status for job in ends] == [JobStatus.SUCCEEDED] * 3
    again = end_of(second, running.id)
    assert again.started < ends[2].started < ends[1].started < ends[0].started
    assert (again.status, again.attempt, again.max_attempts) == (JobStatus.SUCCEEDED, 2, 4)
    assert [entry["reason"] for entry in second.history(running.id)][2] == "the service was stopped"
    second.stop(5.0)


@pytest.mark.parametrize("was_written", [False, True])
def test_a_result_survives_a_store_that_fails_for_a_moment(
    service: Service, monkeypatch: pytest.MonkeyPatch, was_written: bool
) -> None:
    """Also when the commit reached the disk and only its answer was lost: the picture is not taken for an orphan."""
    monkeypatch.setattr("app.core.endings.STORE_PAUSE_SECONDS", 0.05)
    succeed, failures = service._store.succeed, [2]

    def fails_at_first(*arguments: object, **facts: object) -> object:
        if failures[0]:
            failures[0] -= 1
            if was_written:
                succeed(*arguments, **facts)
            raise Unavailable("The job store cannot be written just now.")
        return succeed(*arguments, **facts)

    monkeypatch.setattr(service._store, "succeed", fails_at_first)
    job = service.submit("test/paint", {"step_seconds": 0.05})
    assert list(service.watch_blocking(job.id, seconds=20))[-1].kind == "succeeded"
    done = service.get(job.id)
    assert not failures[0]
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 1)
    assert service.storage.path(done.result["images"][0]["id"]).is_file()
    assert end_of(service, service.submit("test/paint", {}).id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("was_written", [False, True])
@pytest.mark.parametrize("database", DATABASES)
def test_a_claim_survives_a_store_that_fails_for_a_moment(
    make_service: Callable[..., Service],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    database: str,
    was_written: bool,
) -> None:
    """Also when the commit reached the disk and only its answer was lost: that attempt runs, no lease is awaited."""
    monkeypatch.setattr("app.core.dispatcher.STORE_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("app.core.peers.LOOK_SECONDS", 0.05)
    url = request.getfixturevalue("postgres_url") if database == "postgres" else None
    service = make_service(database_url=url, server_lost_seconds=600.0)
    claim, failures, told = service._store.claim, [2], []

    def fails_at_first(*arguments: object, **facts: object) -> object:
        told.append(facts["again"])
        if failures[0]:
            failures[0] -= 1
            if was_written:
                claim(*arguments, **facts)
            time.sleep(0.3)  # long enough for a look at the store, which says that the job does not wait
            raise Unavailable("The job store cannot be written just now.")
        return claim(*arguments, **facts)

    monkeypatch.setattr(service._store, "claim", fails_at_first)
    job = service.submit("test/paint", {})
    done = end_of(service, job.id)
    assert (done.status, done.attempt, told) == (JobStatus.SUCCEEDED, 1, [False, True, True])
    assert [entry["after"] for entry in service.history(job.id)] == ["queued", "running", "succeeded"]
    assert end_of(service, service.submit("test/paint", {}).id).attempt == 1 and told[3:] == [False]


def test_unfinished_files_are_swept_when_they_are_old(make_service: Callable[..., Service], tmp_path) -> None:
    folder = tmp_path / "images" / "ab"
    folder.mkdir(parents=True)
    old, young = folder / "old.part", folder / "young.part"
    old.write_bytes(b"x")
    os.utime(old, (0, 0))
    young.write_bytes(b"x")
    make_service(sweep_seconds=30.0)
    until(lambda: not old.exists())
    assert young.exists()


@pytest.mark.parametrize("wrong", [{"callback_secret": "whsec_x"}, {"devices": ("gpu",)}, {"heartbeat_seconds": 30}])
def test_a_refused_start_leaves_the_home_free(make_service: Callable[..., Service], wrong: dict) -> None:
    with pytest.raises(InvalidRequest):
        make_service(**wrong)
    assert make_service().submit("test/paint", {}).status is JobStatus.QUEUED


def test_a_callback_to_this_machine_is_refused(service: Service) -> None:
    for url in ("http://127.0.0.1/x", "http://localhost:8000/", "http://2130706433/", "http://[::1]/", "ftp://a.b/"):
        with pytest.raises(UrlNotAllowed):
            service.submit("test/paint", {}, callback_url=url)
    assert service.list_jobs() == ([], 0)


def test_an_address_that_was_looked_at_is_not_looked_at_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(service._client, "check_url", seen.append)
    checked = service.check_callback("https://hooks.example.org/")
    job = service.submit("test/paint", {"num_inference_steps": 1000, "step_seconds": 1}, callback_url=checked)
    assert job.callback_url == "https://hooks.example.org/" and seen == [job.callback_url]
    service.submit("test/paint", {}, callback_url="https://hooks.example.org/2")
    assert seen == [job.callback_url, "https://hooks.example.org/2"]


def test_a_repeat_is_answered_although_its_callback_is_refused_by_now(service: Service) -> None:
    first = service.submit("test/paint", {"prompt": "a"}, idempotency_key="one")
    refused = CheckedUrl("", UrlNotAllowed("Not this one."))
    assert service.submit("test/paint", {"prompt": "a"}, idempotency_key="one", callback_url=refused).id == first.id
    with pytest.raises(UrlNotAllowed):
        service.submit("test/paint", {"prompt": "b"}, callback_url=refused)


def test_readiness_and_statistics(service: Service) -> None:
    until(lambda: service.readiness()["ready"])
    end_of(service, service.submit("test/paint", {}).id)
    end_of(service, service.submit("test/fail", {}).id)
    figures = service.statistics()
    assert figures["submitted"] == 2
    assert figures["ended"] == {"succeeded": 1, "failed": 1}
    assert figures["jobs"]["succeeded"] == 1
    assert figures["workers"][0]["device"] == "inline"
