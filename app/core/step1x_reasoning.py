"""Step1X-Edit's reasoning: an instruction rewritten, a picture judged, and the verdict after which a run tries again.

The tags of a verdict and the caps of a score are those of the published model (arXiv 2511.22625). What must never
happen: a run that asks for ever. Each stage is asked at most `MOST_ASKS` times and then skipped, and said to be.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from app.core.capability import Context, Editor

MOST_ASKS = 3
TAGS = {"<#Success>": "success", "<#Failed>": "failed", "<#Reflection>": "reflection", "<#Others>": "others"}
THINK = "<#Think>"
HAN = re.compile(r"[\u4e00-\u9fff]")

REWRITER = "You turn wishes for a change of a picture into clear editing instructions."
REWRITE = (
    "The picture is to be changed as this wish says: {instruction}\n"
    "Say the same as one plain instruction that names what is changed, where it is and what is done to it; if it asks "
    "for reasoning, work out what will be seen. At most three actions, in sentences without numbers. Text that is to "
    "be written stands in double quotes. A wish that is clear already stays as it is. Answer in {language}, with the "
    "instruction alone."
)
DESCRIBER = "You describe pictures precisely, and nothing that is not seen."
DESCRIBE = (
    "The picture is to be changed by this instruction: {instruction}\n"
    "Describe in {language}, in a few sentences, what the finished picture must show: what is asked for as it is "
    "asked, everything else as it is now. Answer with the description alone."
)
JUDGE = "You compare pictures with texts and answer in strict JSON alone."
COMPARE = (
    "Does the picture fulfil the instruction, and does it fit the description?\nInstruction: {instruction}\n"
    "Description: {description}\n"
    'Answer with one JSON object with the keys "meets_instruction" ("yes", "partial" or "no"), "major_conflicts", '
    '"minor_conflicts", "hallucinations", "omissions" (whole numbers), "raw_score" (0 to 10) and "reason" (short, in '
    "{language})."
)
REVIEWER = "You review edited pictures and keep exactly to the form that is asked for."
REVIEW = (
    "The first picture was to be changed by this instruction: {instruction}\nThe second one is the result. An earlier "
    "score was {score} of 10: {reason}\n"
    "Is the result right, free of artifacts, and are the parts that the instruction does not name as they were? Answer "
    "in one of three forms, and nothing else:\n"
    "<#Think> your reasons <#Success>\n"
    "<#Think> your reasons <#Reflection> an instruction that corrects the second picture and repeats nothing that is "
    "done already\n"
    "<#Think> your reasons <#Failed>\n"
    "The last means that the second picture cannot be corrected."
)
CRITIC = "You rate edited pictures and answer in the JSON that is asked for."
RATE_EDIT = (
    "The second picture is the first one after this instruction: {instruction}\nRate from 0 to 10 how well the "
    "instruction was carried out, and from 0 to 10 how much of the rest stayed as it was. Answer with "
    '{{"score": [first, second], "reasoning": "short"}}.'
)
RATE_PICTURE = (
    "Rate the picture from 0 to 10 for how natural it looks, and from 0 to 10 for how free it is of artifacts. Answer "
    'with {"score": [first, second], "reasoning": "short"}.'
)

Parsed = TypeVar("Parsed")


class Unreadable(Exception):
    """An answer that is not in the form that was asked for."""


@dataclass(frozen=True)
class Verdict:
    """`kind` is one of success, failed, reflection, others; `instruction` corrects the picture at a reflection."""

    kind: str
    instruction: str | None = None


@dataclass(frozen=True)
class Tried:
    """One try: its picture, the verdict on it (None: not readable) and how it was rated (None: not readable)."""

    image: Image.Image
    verdict: Verdict | None
    rating: float | None


class Reasoner:
    """Asks an editor's model, stage by stage, and tells each answer."""

    def __init__(self, editor: Editor, context: Context, generator: Any) -> None:
        self.notes: list[str] = []
        self._editor = editor
        self._context = context
        self._generator = generator

    def think(self, image: Image.Image, instruction: str) -> str:
        """The instruction rewritten; itself where no answer could be used."""
        asked = REWRITE.format(instruction=instruction, language=language_of(instruction))
        return self._ask("rewritten-instruction", REWRITER, asked, [image], read_words, 256) or instruction

    def reflect(self, original: Image.Image, edited: Image.Image, instruction: str, attempt: int) -> Tried:
        """What the model makes of a try."""
        language = language_of(instruction)
        told = {"attempt": attempt}
        asked = DESCRIBE.format(instruction=instruction, language=language)
        description = self._ask("description", DESCRIBER, asked, [original], read_words, 384, **told)
        asked = COMPARE.format(instruction=instruction, description=description or "none", language=language)
        score = self._ask("judgement", JUDGE, asked, [edited], read_judgement, 384, **told) or {}
        asked = REVIEW.format(
            instruction=instruction, score=score.get("score", "unknown"), reason=score.get("reason", "unknown")
        )
        verdict = self._ask("verdict", REVIEWER, asked, [original, edited], read_verdict, 384, **told)
        asked = RATE_EDIT.format(instruction=instruction)
        edit = self._ask("rating-of-the-edit", CRITIC, asked, [original, edited], read_scores, 256, **told)
        picture = self._ask("rating-of-the-picture", CRITIC, RATE_PICTURE, [edited], read_scores, 256, **told)
        rating = min(edit) * min(picture) if edit and picture else None
        return Tried(edited, verdict, rating)

    def _ask(
        self,
        stage: str,
        system: str,
        text: str,
        images: Sequence[Image.Image],
        read: Callable[[str], Parsed],
        max_new_tokens: int,
        **told: Any,
    ) -> Parsed | None:
        """A stage's answer, read; None where it could not be, after so many asks."""
        answer = ""
        for _ in range(MOST_ASKS):
            answer = self._editor.say(
                text, images, system=system, generator=self._generator, max_new_tokens=max_new_tokens
            )
            try:
                found = read(answer)
            except Unreadable:
                continue
            self._context.tell_stage(stage, answer, **told)
            return found
        self._context.tell_stage(stage, answer, skipped=True, **told)
        of_try = f" of try {told['attempt']}" if "attempt" in told else ""
        name = stage.replace("-", " ")
        self.notes.append(f"The {name}{of_try} could not be read in {MOST_ASKS} answers, so that stage was skipped.")
        return None


def language_of(text: str) -> str:
    """The language to answer in: Chinese from two of its letters on."""
    return "Chinese" if len(HAN.findall(text)) > 1 else "English"


def read_words(answer: str) -> str:
    """The answer itself, if it says anything."""
    if not any(letter.isalnum() for letter in answer):
        raise Unreadable
    return answer.strip()


def read_json(answer: str) -> dict[str, Any]:
    """The JSON object in an answer."""
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        data = json.loads(found.group(0)) if found else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise Unreadable
    return data


def read_judgement(answer: str) -> dict[str, Any]:
    """`score` (0 to 10, with the caps of what is amiss) and `reason`."""
    data = read_json(answer)
    try:
        counts = {name: int(data.get(name) or 0) for name in ("major_conflicts", "hallucinations", "omissions")}
        score = float(data["raw_score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Unreadable from None
    if not score == score or score < 0:
        raise Unreadable
    score = min(score * 10 if score <= 1 else score, 10.0)
    meets = str(data.get("meets_instruction", "")).strip().lower()
    caps = [{"no": 2.0, "partial": 5.0}.get(meets, 10.0)]
    caps.append(5.0 if counts["major_conflicts"] >= 2 else 8.0 if counts["major_conflicts"] else 10.0)
    caps.append(7.0 if counts["hallucinations"] or counts["omissions"] else 10.0)
    if meets != "yes" or any(counts.values()):
        caps.append(8.99)
    return {"score": round(min(score, *caps), 2), "reason": str(data.get("reason", "")).strip()}


def read_verdict(answer: str) -> Verdict:
    """One tag after the thoughts; a reflection brings an instruction."""
    thought = answer.find(THINK)
    found = [tag for tag in TAGS for _ in range(answer.count(tag))]
    if thought < 0 or len(found) != 1 or answer.find(found[0]) < thought:
        raise Unreadable
    kind = TAGS[found[0]]
    if kind != "reflection":
        return Verdict(kind)
    instruction = answer.partition(found[0])[2].strip()
    return Verdict(kind, read_words(instruction))


def read_scores(answer: str) -> tuple[float, float]:
    """Two numbers from 0 to 10."""
    scores = read_json(answer).get("score")
    if not isinstance(scores, list) or len(scores) != 2:
        raise Unreadable
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 10 for one in scores):
        raise Unreadable
    return float(scores[0]), float(scores[1])


def best_of(tries: Sequence[Tried]) -> int:
    """Which try is shown: the best rated; of equals one that succeeded, and then the later."""

    def place(at: int) -> tuple[float, bool, int]:
        tried = tries[at]
        succeeded = tried.verdict is not None and tried.verdict.kind == "success"
        return (-1.0 if tried.rating is None else tried.rating, succeeded, at)

    return max(range(len(tries)), key=place)
