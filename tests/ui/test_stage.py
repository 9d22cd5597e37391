"""What the stage and the lists say, and that nothing which a person wrote becomes markup."""

from types import SimpleNamespace

import pytest

from app.core.jobs import Job, JobEvent, JobStatus
from app.errors import InvalidRequest
from app.ui import people, stage, stages
from app.ui.before_after import Before
from app.ui.gallery import tile
from app.ui.panel import decode_data_uri, picture_seed
from app.ui.session import Session
from app.ui.wording import button, chooser, duration, in_words, size

EVIL = '<img src=x onerror="alert(1)">'


def job(status: JobStatus, **facts) -> Job:
    settings = {"request": {"prompt": EVIL}, "priority": 5, "created": 0.0, **facts}
    return Job("j" * 26, "text-to-image", status=status, **settings)


def test_progress_follows_the_events():
    progress = stage.Progress("j" * 26)
    assert "Waiting" in stage.working(progress)
    progress.take(JobEvent("j", "queued", {"position": 0}))
    assert "Next in line" in stage.working(progress)
    progress.take(JobEvent("j", "queued", {"position": 3}))
    assert "3 before it in line" in stage.working(progress)
    progress.take(JobEvent("j", "started", {}))
    assert "Starting" in stage.working(progress)
    progress.take(JobEvent("j", "step", {"step": 3, "steps": 12, "seconds_left": 4.5}))
    progress.take(JobEvent("j", "preview", {"image": "data:image/jpeg;base64,AAAA"}))
    shown = stage.working(progress)
    assert "Step 3 of 12 · 4.5 s left" in shown
    assert 'aria-valuenow="3"' in shown and "width:25.0%" in shown
    assert 'src="data:image/jpeg;base64,AAAA"' in shown
    assert f'data-job="{"j" * 26}"' in shown
    progress.take(JobEvent("j", "requeued", {}))
    assert "Waiting" in stage.working(progress)


def test_stages_are_shown_while_they_happen_and_however_it_ends():
    told = [
        {"stage": "rewritten-instruction", "text": EVIL},
        {"stage": "verdict", "attempt": 2, "text": "", "skipped": True},
    ]
    progress = stage.Progress("j" * 26)
    progress.take(JobEvent("j", "stages", {"stages": told}))
    result = {"images": [], "data": {"stages": told}, "notes": []}
    for shown in (
        stage.working(progress),
        stage.ended_badly(job(JobStatus.CANCELLED, result=result)),
        stage.ended_badly(job(JobStatus.FAILED, result=result, error={"code": "x", "message": "no"})),
    ):
        assert "Rewritten instruction" in shown and "Try 2: verdict" in shown and shown.count("eis-skipped") == 1
        assert EVIL not in shown and "&lt;img" in shown
    progress.take(JobEvent("j", "started", {}))
    assert "eis-stages" not in stage.working(progress)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "Stopped before it began."),
        ({"started": 1.0}, "Stopped before its first step."),
        ({"started": 1.0, "step": 2, "steps": 9}, "Stopped at step 2 of 9."),
    ],
)
def test_a_cancelled_job_says_how_far_it_came(facts, words):
    assert words in stage.ended_badly(job(JobStatus.CANCELLED, **facts))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Paint {it} green.", "Paint {it} green."),
        ('{"score": [6, 7.5], "reasoning": "fine"}', "Score: 6 and 7.5\nReasoning: fine"),
        ('```json\n{"meets_instruction": "yes", "omissions": 0}\n```', "Meets instruction: yes\nOmissions: 0"),
        ("<#Think> good\n<#Success>", "good\nIt is right."),
        ("<#Think> almost <#Reflection> green wheels", "almost\nTo be corrected: green wheels"),
        ("<#Think> ruined <#Failed>", "ruined\nIt failed and cannot be corrected."),
    ],
)
def test_an_answer_in_a_form_is_said_in_words(answer, words):
    assert stages.in_words(answer) == words
    both = [{"stage": "a", "text": answer}, {"stage": "b", "text": answer, "skipped": True}]
    again, skipped, _ = stages.told(both).split("</li>")
    assert "skipped" not in again and "B (skipped, not readable)" in skipped


def test_a_refusal_names_the_field_and_speaks_of_no_strings():
    assert in_words("name", "String should have at least 1 character") == "Name must not be empty"
    assert in_words("prompt", "String should have at most 9 characters") == "Prompt must have at most 9 characters"
    assert in_words("seed", "Input should be a valid integer") == "Seed must be a valid integer"
    assert in_words("image", "choose a picture first.") == "Picture: choose a picture first."
    assert in_words("prompt", "name the LoRA in `loras`") == "Prompt: name the LoRA in “LoRAs”"


def test_a_refusal_has_labels_and_commands_and_no_backticks():
    told = "Nothing for `ip_adapter_model`: `eis models pull ip-adapter` fetches it."
    for shown in (
        stage.refused(told, []),
        stage.ended_badly(job(JobStatus.FAILED, error={"code": "x", "message": told})),
    ):
        assert "Nothing for “IP-Adapter”: “eis models pull ip-adapter” fetches it." in shown


def test_nothing_written_by_a_person_becomes_markup():
    images = [{"id": "0" * 26, "width": 8, "height": 8, "seed": 1}]
    metadata = {"0" * 26: {"infotext": EVIL, "recipe": {"request": {"prompt": EVIL, "scheduler": EVIL}, "model": EVIL}}}
    made = job(JobStatus.SUCCEEDED, result={"images": images, "notes": [EVIL]}, model=EVIL)
    failed = job(JobStatus.FAILED, error={"code": "x", "message": EVIL})
    record = SimpleNamespace(id="0" * 26, prompt=EVIL, seed=1)
    texts = [
        stage.finished(made, metadata, [("a", EVIL)]),
        stage.ended_badly(failed),
        stage.refused(EVIL, [EVIL]),
        stage.recent([record]),
        tile(record),
        button(EVIL, "act", job=EVIL),
        chooser(EVIL, "send", [(EVIL, EVIL)], image=EVIL),
    ]
    for text in texts:
        assert "<img src=x" not in text
        assert "&lt;img src=x" in text


def test_several_pictures_get_a_strip_and_only_the_first_is_open():
    images = [{"id": str(n) * 26, "width": 8, "height": 8, "seed": n} for n in range(3)]
    shown = stage.finished(job(JobStatus.SUCCEEDED, result={"images": images}), {}, [])
    assert shown.count('data-client="pick"') == 3
    assert shown.count(" hidden>") == 2


def test_a_cancelled_job_says_where_it_stopped():
    assert "Stopped at step 2 of 9." in stage.ended_badly(job(JobStatus.CANCELLED, step=2, steps=9))
    assert "Stopped before it began." in stage.ended_badly(job(JobStatus.CANCELLED))


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (61_000_000, "61 MB"), (6_938_078_334, "6.9 GB")])
def test_sizes_read_well(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.84, "0.8 s"), (42.2, "42 s"), (125, "2 min 5 s"), (7300, "2 h 1 min")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_the_seed_of_one_picture_of_several():
    assert picture_seed({"request": {"seed": 2**32 - 1}, "position": 2}) == 1
    assert picture_seed({}) is None


def test_a_mask_that_is_no_base64_is_refused():
    assert decode_data_uri("data:image/png;base64,QUJD") == b"ABC"
    with pytest.raises(InvalidRequest):
        decode_data_uri("data:image/png;base64,***")


def test_a_session_shows_its_jobs_in_order_and_leaves_out_what_was_cancelled_in_line():
    session = Session()
    for job_id in ("a", "b", "c"):
        session.expect("slow", job_id)
    session.cancelled("slow", "b")
    session.cancelled("slow", "a")
    assert session.next("slow") == "a", "the job on the stage is shown to its end"
    session.shown("slow", "a")
    assert session.next("slow") == "c"
    session.shown("slow", "c")
    session.shown("slow", "c")
    assert session.next("slow") is None
    assert session.next("other") is None


REFUSED = {
    "code": "face_not_chosen",
    "message": EVIL,
    "details": {"field": "face_image", "faces": [{"box": [-10, 20, 110, 140]}, {"box": [150, 60, 200, 110]}]},
}


def refusal(field="face_image", number=None, **facts):
    error = {**REFUSED, "details": {**REFUSED["details"], "field": field, "number": number}}
    named = {"face_image": "0" * 26, "pose_image": "1" * 26, "face_images": ["2" * 26, "3" * 26]}
    return job(JobStatus.FAILED, request={**named, **facts}, error=error)


def test_a_refusal_asks_with_a_button_inside_the_picture_for_each_face():
    refused = refusal()
    choice = people.choice_of(refused, (200, 160))
    asked = people.which_face(refused, choice)
    assert asked.count('data-action="face"') == 2 and "The picture shows 2 faces" in asked
    assert "left:0.00%;top:12.50%;width:55.00%;height:75.00%" in asked, "it is cut off at the picture's edge"
    chosen = people.which_face(refused, choice, 1)
    assert chosen.count('aria-pressed="true"') == 1 and "Face 1 is chosen" in chosen
    told = people.which_face(refusal(face_index=7), choice)
    assert "&lt;img src=x" in told and "<img src=x" not in told, "a number that fits none is told in its own words"


def test_only_a_picture_for_whose_faces_there_is_a_number_asks():
    assert people.refused_picture(refusal()) == ("face_image", "0" * 26)
    assert people.refused_picture(refusal("pose_image")) == ("pose_image", "1" * 26)
    assert people.refused_picture(refusal("ip_adapter_images")) is None
    assert people.refused_picture(refusal("face_images", number=1)) == ("face_images", "3" * 26)
    assert people.refused_picture(job(JobStatus.FAILED, error={"code": "no_face_found", "message": "x"})) is None


def test_a_picture_says_how_alike_and_in_which_pose_and_the_sheet_says_neither():
    images = [{"id": str(n) * 26, "width": 8, "height": 8, "seed": n} for n in range(3)]
    data = {"identity_similarity": [0.871, None], "poses": ["front", "left"], "grid": 2}
    made = job(JobStatus.SUCCEEDED, result={"images": images, "data": data})
    shown = stage.finished(made, {}, [], reference="9" * 26)
    made_strictly = job(
        JobStatus.SUCCEEDED, result={"images": images, "data": data | {"identity_thresholds": [0.9, 0.5]}}
    )
    assert "similar face 0.87" in stage.finished(made_strictly, {}, []), "the face pack says from where faces are one"
    assert "same face 0.87" in shown and "no face seen" in shown and shown.count("All poses") == 2
    assert shown.count('class="eis-beside"') == 3 and shown.count("9" * 26) == 3
    assert 'class="eis-beside"' not in stage.finished(made, {}, []), "the person's picture has gone"
    plain = stage.finished(job(JobStatus.SUCCEEDED, result={"images": images, "data": {}}), {}, [], reference="9" * 26)
    assert "eis-alike" not in plain and "eis-beside" not in plain


def test_a_picture_of_nobody_is_told_in_words():
    made = job(JobStatus.SUCCEEDED, result={"images": [], "data": {"size": [8, 8], "faces": []}})
    assert "No face was found" in stage.finished(made, {}, [])


def finished_of(size, before):
    image = {"id": "b" * 26, "width": size[0], "height": size[1], "seed": None}
    done = job(JobStatus.SUCCEEDED, request={"image": "a" * 26}, result={"images": [image], "notes": [], "data": {}})
    return stage.finished(done, {image["id"]: {"bytes": 9}}, [], before=before)


def test_a_result_of_its_pictures_shape_has_the_slider_and_another_has_none():
    closed = finished_of((200, 100), Before("a" * 26, (400, 201)))
    assert closed.count('class="eis-slider" hidden') == 1 and 'data-client="slider" aria-pressed="false"' in closed
    assert f"/images/{'a' * 26}" in closed and 'type="range"' in closed
    open_at_once = finished_of((200, 100), Before("a" * 26, (100, 50), is_open=True))
    assert 'class="eis-slider" style' in open_at_once and 'aria-pressed="true"' in open_at_once
    for none in (finished_of((200, 100), Before("a" * 26, (100, 100))), finished_of((200, 100), None)):
        assert "eis-slider" not in none and "Before and after" not in none
