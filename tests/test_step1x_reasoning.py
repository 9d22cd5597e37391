"""Step1X-Edit's reasoning without its model: what is read of answers, and when a run goes on, starts anew or ends."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from app.core.step1x_edit import Step1XEditRequest, reflect
from app.core.step1x_reasoning import (
    MOST_ASKS,
    Reasoner,
    Tried,
    Unreadable,
    Verdict,
    best_of,
    language_of,
    read_judgement,
    read_scores,
    read_verdict,
)

PICTURE = Image.new("RGB", (32, 24))


class Told:
    """The part of a Context that hears stages."""

    def __init__(self):
        self.stages = []

    def tell_stage(self, stage, text, **facts):
        self.stages.append({"stage": stage, "text": text, **facts})


class Answers:
    """An editor whose model says, by what it is asked for, one answer after the other; the last one for ever."""

    def __init__(self, **answers):
        self.answers = {stage: list(said) for stage, said in answers.items()}
        self.asked = []

    def say(self, text, images=(), *, system, generator, max_new_tokens=512):
        words = {
            "clear editing": "rewrite", "describe": "describe", "compare": "compare", "review": "review",
        }  # fmt: skip
        stage = next((name for word, name in words.items() if word in system), "rate")
        self.asked.append((stage, len(images)))
        said = self.answers[stage]
        return said.pop(0) if len(said) > 1 else said[0]


GOOD = {
    "describe": ["A green car."],
    "compare": ['{"meets_instruction": "yes", "raw_score": 9.5, "reason": "it is green"}'],
    "rate": ['{"score": [8, 7], "reasoning": "fine"}'],
}


def run(editor, *, max_tries=3):
    """The tries of a reflection, and what each edit was made from."""
    told, edits = Told(), []

    def edit(image, words):
        edits.append((image, words))
        return Image.new("RGB", (32, 24), (len(edits), 0, 0))

    request = Step1XEditRequest(prompt="make it green", image="a" * 26, max_tries=max_tries)
    reasoner = Reasoner(editor, told, None)
    made = reflect(request, told, reasoner, edit, PICTURE, "make it green")
    return SimpleNamespace(made=made, edits=edits, stages=told.stages, notes=reasoner.notes)


def test_a_success_ends_it():
    found = run(Answers(**GOOD, review=["<#Think> good <#Success>"]))
    assert len(found.made) == 1 and found.made[0].rating == 49 and found.notes == []
    assert [stage["stage"] for stage in found.stages] == [
        "edit", "description", "judgement", "verdict", "rating-of-the-edit", "rating-of-the-picture",
    ]  # fmt: skip
    assert all(stage["attempt"] == 1 for stage in found.stages)


def test_a_reflection_goes_on_from_the_last_picture_and_a_failure_starts_anew():
    verdicts = ["<#Think> almost <#Reflection> make the wheels green too", "<#Think> ruined <#Failed>",
                "<#Think> good <#Success>"]  # fmt: skip
    found = run(Answers(**GOOD, review=verdicts))
    assert [words for _, words in found.edits] == ["make it green", "make the wheels green too", "make it green"]
    assert found.edits[0][0] is PICTURE and found.edits[2][0] is PICTURE
    assert found.edits[1][0].getpixel((0, 0)) == (1, 0, 0)
    assert best_of(found.made) == 2


def test_no_more_tries_than_were_asked_for():
    found = run(Answers(**GOOD, review=["<#Think> no <#Failed>"]), max_tries=2)
    assert len(found.made) == 2 == len(found.edits)


def test_what_cannot_be_read_is_asked_three_times_and_then_skipped():
    editor = Answers(describe=["..."], compare=["no json"], review=["<#Success>"], rate=["[1, 2]"])
    found = run(editor)
    assert len(found.made) == 1 and found.made[0].verdict is None and found.made[0].rating is None
    assert len(editor.asked) == 5 * MOST_ASKS
    assert [stage.get("skipped") for stage in found.stages[1:]] == [True] * 5
    assert len(found.notes) == 5 and "verdict of try 1" in found.notes[2] and "3 answers" in found.notes[2]


def test_a_second_answer_that_can_be_read_counts():
    editor = Answers(**GOOD, review=["hm", "<#Think> good <#Success>"])
    assert run(editor).notes == []
    assert [stage for stage, _ in editor.asked].count("review") == 2


def test_an_instruction_is_rewritten_or_stays():
    told = Told()
    assert Reasoner(Answers(rewrite=["Paint the car green."]), told, None).think(PICTURE, "green car pls") == (
        "Paint the car green."
    )
    assert told.stages == [{"stage": "rewritten-instruction", "text": "Paint the car green."}]
    silent = Reasoner(Answers(rewrite=[" "]), told, None)
    assert silent.think(PICTURE, "green car pls") == "green car pls"
    assert told.stages[-1]["skipped"] and "was skipped" in silent.notes[0]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("<#Think> a <#Success>", Verdict("success")),
        ("words before <#Think> a <#Failed>", Verdict("failed")),
        ("<#Think> a\n<#Reflection> move it left", Verdict("reflection", "move it left")),
        ("<#Think> a <#Others>", Verdict("others")),
    ],
)
def test_verdicts_that_are_read(answer, verdict):
    assert read_verdict(answer) == verdict


@pytest.mark.parametrize(
    "answer",
    ["", "<#Success>", "<#Success> <#Think> a", "<#Think> a", "<#Think> a <#Success> <#Failed>",
     "<#Think> a <#Success> <#Success>", "<#Think> a <#Reflection> "],
)  # fmt: skip
def test_verdicts_that_are_not(answer):
    with pytest.raises(Unreadable):
        read_verdict(answer)


@pytest.mark.parametrize(
    ("facts", "score"),
    [
        ({"meets_instruction": "yes", "raw_score": 9.5}, 9.5),
        ({"meets_instruction": "yes", "raw_score": 0.95}, 9.5),
        ({"meets_instruction": "no", "raw_score": 9}, 2),
        ({"meets_instruction": "partial", "raw_score": 9}, 5),
        ({"meets_instruction": "yes", "raw_score": 10, "major_conflicts": 1}, 8),
        ({"meets_instruction": "yes", "raw_score": 10, "major_conflicts": 2}, 5),
        ({"meets_instruction": "yes", "raw_score": 10, "omissions": 1}, 7),
        ({"meets_instruction": "perhaps", "raw_score": 10}, 8.99),
    ],
)
def test_scores_have_caps(facts, score):
    assert read_judgement(f"Here: {json.dumps(facts)}")["score"] == score


@pytest.mark.parametrize("answer", ["", "{", '{"raw_score": "high"}', '{"raw_score": NaN}', "[1]", '{"a": 1}'])
def test_judgements_that_are_not_read(answer):
    with pytest.raises(Unreadable):
        read_judgement(answer)


@pytest.mark.parametrize("answer", ['{"score": [1]}', '{"score": [1, 11]}', '{"score": [true, 1]}', '{"score": "9"}'])
def test_ratings_that_are_not_read(answer):
    with pytest.raises(Unreadable):
        read_scores(answer)
    assert read_scores('```json\n{"score": [3, 10]}\n```') == (3, 10)


def test_the_best_rated_is_shown_and_of_equals_the_success_and_then_the_later():
    good, bad = Verdict("success"), Verdict("failed")
    assert best_of([Tried(PICTURE, bad, 80), Tried(PICTURE, good, 10)]) == 0
    assert best_of([Tried(PICTURE, good, 80), Tried(PICTURE, bad, 80)]) == 0
    assert best_of([Tried(PICTURE, bad, 80), Tried(PICTURE, bad, 80)]) == 1
    assert best_of([Tried(PICTURE, None, None), Tried(PICTURE, None, 0)]) == 1


def test_the_language_is_that_of_the_instruction():
    assert language_of("make it red") == "English" and language_of("把车变成绿色") == "Chinese"
