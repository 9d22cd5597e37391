"""What A1111 reads as an instruction is refused at the door in a sentence; what this service reads itself is not."""

import contextlib
import time

import pytest
from pydantic import ValidationError

from app.core.text_to_image import TextToImageRequest


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a car <lora:pixel-art:0.8>", "in `loras`"),
        ("a car <LORA:pixel art>", "in `loras`"),
        ("a <lyco:x:1:0.5> car", "in `loras`"),
        ("<hypernet:x:1>", "in `loras`"),
        ("a [cat:dog:0.5]", "prompt editing"),
        ("a [cat:10]", "prompt editing"),
        ("a [cat::.5 ]", "prompt editing"),
        ("a [big (red:1.2) [cat]:dog:0.5]", "prompt editing"),
        ("a [cat|dog]", "prompt editing"),
        ("a [[cat]|dog|mouse]", "prompt editing"),
    ],
)
def test_instructions_of_other_programs_are_refused(field, text, said):
    with pytest.raises(ValidationError, match=said):
        TextToImageRequest(**{"prompt": "a"} | {field: text})


@pytest.mark.parametrize(
    "text",
    ["(cat:1.2) [dog]", "[(cat:1.2)]", r"a \[cat|dog\]", r"\[cat:dog:0.5\]", "cat | dog", "at 10:30", "a <b> c", ""],
)
def test_what_is_read_here_or_plain_is_not(text):
    assert TextToImageRequest(prompt=text, negative_prompt=text).prompt == text


@pytest.mark.parametrize("text", ["[" * 9_999, "|" * 9_999, "[|" * 4_999, ":" * 9_999, "<lora:" * 1_666, "[:1" * 3_333])
def test_long_nonsense_is_read_in_a_moment(text):
    begun = time.process_time()
    with contextlib.suppress(ValidationError):
        TextToImageRequest(prompt=text)
    assert time.process_time() - begun < 0.5
