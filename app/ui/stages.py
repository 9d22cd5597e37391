"""What the stages of a job came to, one under the other; a model's answer in a form is said in words."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.core.jobs import Job

FENCE = re.compile(r"^```\w*$", re.MULTILINE)
OBJECT = re.compile(r"\{.*\}", re.DOTALL)
TAGS = {
    "<#Think>": "",
    "<#Success>": "\nIt is right.",
    "<#Reflection>": "\nTo be corrected: ",
    "<#Failed>": "\nIt failed and cannot be corrected.",
    "<#Others>": "\nNo verdict.",
}
"""Of a verdict, as Step1X-Edit writes them."""


def stages_in(job: Job) -> Sequence[Mapping[str, Any]]:
    """What the job told of its stages, however it ended."""
    return ((job.result or {}).get("data") or {}).get("stages") or ()


def told(stages: Sequence[Mapping[str, Any]]) -> str:
    """A list of stages; nothing where there are none."""
    if not stages:
        return ""
    return f'<ol class="eis-stages" aria-label="Stages">{"".join(map(_stage, stages))}</ol>'


def _stage(stage: Mapping[str, Any]) -> str:
    title, text = str(stage.get("stage", "")).replace("-", " "), str(stage.get("text", ""))
    title = f"Try {stage['attempt']}: {title}" if stage.get("attempt") else title.capitalize()
    if stage.get("skipped"):
        return (
            f'<li class="eis-skipped"><strong>{escape(title)} (skipped, not readable)</strong>'
            f"<span>{escape(text)}</span></li>"
        )
    return f"<li><strong>{escape(title)}</strong><span>{escape(in_words(text))}</span></li>"


def in_words(answer: str) -> str:
    """The answer without tags, fences and braces; as it is where it has none."""
    said = _object_in(answer)
    if said is not None:
        return "\n".join(f"{str(name).replace('_', ' ').capitalize()}: {_value(value)}" for name, value in said.items())
    for tag, words in TAGS.items():
        answer = re.sub(rf"\s*{re.escape(tag)}\s*", lambda _, words=words: words, answer)
    return answer.strip()


def _object_in(answer: str) -> dict[str, Any] | None:
    """The JSON object that is all that an answer says."""
    found = OBJECT.fullmatch(FENCE.sub("", answer).strip())
    try:
        data = json.loads(found.group(0)) if found else None
    except (ValueError, RecursionError):
        return None
    return data or None


def _value(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, int | float | str) for one in value):
        return " and ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
