"""Infotexts: read by A1111's own rules, and the same request comes back."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.fields import SchedulerName
from app.imaging.infotext import build_infotext, parse_infotext, request_from_infotext

SCHEDULERS = SchedulerName.__args__

REQUEST = {
    "prompt": "a (red:1.2) car,\nblue background",
    "negative_prompt": "blurry",
    "num_inference_steps": 20,
    "scheduler": "DPM++ 2M Karras",
    "guidance_scale": 7.0,
    "clip_skip": 1,
    "width": 512,
    "height": 768,
    "loras": [{"model": "pixel-art", "weight": 0.8}],
    "textual_inversions": ["moody", "unhashed"],
}


def test_the_whole_text_is_what_a1111_would_write():
    text = build_infotext(
        REQUEST,
        seed=42,
        size=(512, 768),
        model="sdxl",
        model_sha256="31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b",
        addition_sha256={"pixel-art": "ab12" * 16, "moody": "cd34" * 16},
        version="0.4.0",
    )
    assert text == (
        "a (red:1.2) car,\nblue background <lora:pixel-art:0.8>\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 512x768, "
        "Model hash: 31e35c80fc, Model: sdxl, Clip skip: 2, "
        'Lora hashes: "pixel-art: ab12ab12ab12", TI hashes: "moody: cd34cd34cd34, unhashed:", '
        "Version: Edit Image Service 0.4.0"
    )


def test_an_edit_says_how_it_was_edited():
    request = {"prompt": "x", "mask_image": "a" * 26, "padding_mask_crop": 32, "mask_blur": 4, "strength": 0.75}
    found = parse_infotext(build_infotext(request, seed=1, size=(9, 8), version="1")).parameters
    assert found["Denoising strength"] == "0.75" and found["Inpaint area"] == "Only masked"
    assert found["Masked area padding"] == "32" and found["Mask blur"] == "4"
    found = parse_infotext(build_infotext(request | {"padding_mask_crop": None}, seed=1, size=(9, 8), version="1"))
    assert found.parameters["Inpaint area"] == "Whole picture" and "Masked area padding" not in found.parameters


def test_a_second_pass_says_the_size_of_the_first():
    request = REQUEST | {"second_pass_scale": 1.5, "second_pass_strength": 0.4, "second_pass_steps": 12}
    found = parse_infotext(build_infotext(request, seed=1, size=(768, 1152), version="1")).parameters
    assert (found["Size-1"], found["Size-2"]) == ("512", "768")
    assert (found["Hires upscale"], found["Hires steps"]) == ("1.5", "12")
    assert found["Denoising strength"] == "0.4"


A1111 = """masterpiece, a girl's (beret:1.3), 8k <lora:add_detail:0.6>

second paragraph
Negative prompt: ugly, (bad:1.4)
worse
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 965400086, Size: 640x832, Model hash: 45dee52b1c, \
Model: dreamshaper_8, Denoising strength: 0.4, Clip skip: 2, Hires upscale: 2, Hires steps: 10, \
Hires upscaler: 4x-UltraSharp, Lora hashes: "add_detail: 7c6bad76eb54, other: 123", \
TI hashes: "easy, neg: c74b4e810b03", Wildcard prompt: "__a__, \\"b\\"", Version: v1.7.0"""


def test_a_text_of_a1111_is_understood():
    parsed = parse_infotext(A1111)
    assert parsed.negative_prompt == "ugly, (bad:1.4)\nworse"
    assert parsed.parameters["Lora hashes"] == "add_detail: 7c6bad76eb54, other: 123"
    assert parsed.parameters["Wildcard prompt"] == '__a__, "b"'
    assert request_from_infotext(A1111) == {
        "prompt": "masterpiece, a girl's (beret:1.3), 8k \n\nsecond paragraph",
        "negative_prompt": "ugly, (bad:1.4)\nworse",
        "num_inference_steps": 25,
        "guidance_scale": 6.5,
        "seed": 965400086,
        "width": 640,
        "height": 832,
        "scheduler": "DPM++ 2M Karras",
        "model": "dreamshaper_8",
        "clip_skip": 1,
        "second_pass_scale": 2.0,
        "second_pass_steps": 10,
        "second_pass_strength": 0.4,
        "loras": [{"model": "add_detail", "weight": 0.6}],
        "textual_inversions": ["easy, neg"],
    }


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ SDE", "Automatic", "DPM++ SDE Karras"),
        ("DPM++ 2M SDE", "Automatic", None),
        ("DPM++ 2M SDE", "Karras", "DPM++ 2M SDE Karras"),
        ("DPM++ 2M", "Uniform", "DPM++ 2M"),
        ("DPM++ 2M", None, "DPM++ 2M"),
        ("DPM++ 2M Karras", None, "DPM++ 2M Karras"),
        ("DPM2", "Automatic", None),
        ("DPM2", "Uniform", "DPM2"),
        ("Euler a", "Automatic", "Euler a"),
        ("Euler", "Karras", None),
        ("Euler", "SGM Uniform", None),
        ("PLMS", "Automatic", "PNDM"),
        ("Restart", "Automatic", None),
        ("DPM++ 3M SDE", "Exponential", None),
    ],
)
def test_a_sampler_is_read_by_a1111s_rule_or_left_out(sampler, schedule, expected):
    told = f"Steps: 20, Sampler: {sampler}, " + (f"Schedule type: {schedule}, " if schedule else "") + "Seed: 1"
    assert request_from_infotext("a car\n" + told).get("scheduler") == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_is_written_that_a1111_takes_for_ours(name):
    text = build_infotext({"prompt": "a", "scheduler": name}, seed=1, size=(8, 8), version="1")
    found = parse_infotext(text).parameters
    another_by_itself = found["Sampler"] in {"DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM2", "DPM2 a"}
    expected = "Karras" if name.endswith("Karras") else "Uniform" if another_by_itself else "Automatic"
    assert found["Schedule type"] == expected and not found["Sampler"].endswith("Karras")


@pytest.mark.parametrize("text", ["", "a car", "a car\nSteps: 20, Seed: 3", "Negative prompt:", "\n\n", "a: b, c: d"])
def test_a_text_without_three_pairs_is_all_prompt(text):
    assert parse_infotext(text).parameters == {}
    assert request_from_infotext(text)["prompt"] == ("" if text.startswith("Neg") else text.strip())


@pytest.mark.parametrize("line", ["Steps: x, Seed: -, CFG scale: y", "Steps: 20, Size: axb, Clip skip: , Seed: 1e9"])
def test_numbers_that_are_none_are_left_out(line):
    found = request_from_infotext("a car\n" + line)
    assert not {"guidance_scale", "seed", "width"} & set(found)


def a1111_parse(text):
    """A1111's rules, written from their description apart from ours: a scanner instead of a pattern."""
    *lines, last = text.strip().split("\n")
    pairs, rest = [], last
    while rest:
        key, colon, rest = rest.partition(":")
        assert colon, "a value without a key"
        rest = rest.lstrip(" ")
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:].removeprefix(",")
        else:
            value, _, rest = rest.partition(",")
        pairs.append((key.strip(), value))
    split = next((number for number, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    negative = "\n".join(lines[split:]).removeprefix("Negative prompt:").strip()
    return "\n".join(lines[:split]), negative, dict(pairs)


# Prompts as people write them: lines without blanks at their ends, none of which reads as the negative prompt's.
LINE = (
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=40)
    .map(str.strip)
    .filter(lambda line: line and not line.startswith("Negative prompt:") and "<lora:" not in line)
)
PROMPT = st.lists(LINE, min_size=1, max_size=4).map("\n".join)


@settings(deadline=None)
@given(
    prompt=PROMPT,
    negative_prompt=st.one_of(st.none(), PROMPT),
    num_inference_steps=st.integers(1, 150),
    scheduler=st.sampled_from(SCHEDULERS),
    guidance_scale=st.floats(0, 30),
    clip_skip=st.one_of(st.none(), st.integers(1, 11)),
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(8, 512).map(lambda value: 8 * value),
    height=st.integers(8, 512).map(lambda value: 8 * value),
    strength=st.one_of(st.none(), st.floats(0.01, 1)),
    model=LINE,
    textual_inversions=st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True), max_size=3),
    loras=st.lists(
        st.fixed_dictionaries(
            {
                "model": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
                "weight": st.integers(-400, 400).map(lambda value: value / 100),
            }
        ),
        max_size=3,
    ),
)
def test_what_is_built_is_read_back(**wish):
    request = {name: value for name, value in wish.items() if name not in {"seed", "model"} and value is not None}
    text = build_infotext(
        request, seed=wish["seed"], size=(wish["width"], wish["height"]), model=wish["model"], version="0.4.0"
    )
    expected = {name: value for name, value in wish.items() if value is not None and value != []}
    assert request_from_infotext(text) == expected
    prompt, negative, pairs = a1111_parse(text)
    assert prompt == wish["prompt"] + "".join(f" <lora:{x['model']}:{x['weight']:g}>" for x in wish["loras"])
    assert negative == (wish["negative_prompt"] or "")
    assert pairs == {key: value for key, value in pairs.items() if re.fullmatch(r"\w[\w \-/]+", key)}, (
        "only keys that A1111 can read"
    )
    assert pairs["Model"] == wish["model"] and pairs["Seed"] == str(wish["seed"])


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text):
    parse_infotext(text)
    request_from_infotext("x\n" + text + "\nSteps: 1, Sampler: a, Seed: 2")
