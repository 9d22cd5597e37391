"""Facts of what a web search found, chosen by rule: sentences that speak of what was asked, made fit for a prompt."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_FACTS = 4
SHORTEST, LONGEST = 25, 220
LONGEST_PROMPT = 900
SAME = 0.6
"""Share of a sentence's words that another one holds too, from which both say the same."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\s*(?:\.\.\.|…)\s*|\s+[|•·–—]\s+")
_BRACKETED = re.compile(r"[(\[<{][^()\[\]<>{}]*[)\]>}]")
_WORD = re.compile(r"[^\W_]{2,}")
# Words that say nothing of what is asked for.
_EMPTY = frozenset({
    "a", "an", "and", "are", "as", "at", "by", "for", "from", "how", "in", "is", "it", "of", "on", "or", "the", "to",
    "was", "what", "when", "where", "which", "who", "why", "with",
})  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One sentence and where it stands."""

    text: str
    url: str
    source: str


def facts_in(query: str, results: Sequence[Mapping[str, Any]]) -> list[Fact]:
    """The sentences that hold most of the query's words, at most two of a source, none that repeats another."""
    wanted = words_of(query)
    scored: list[tuple[float, int, Fact]] = []
    for rank, result in enumerate(results):
        for sentence in sentences(str(result.get("text") or "")):
            shared = len(wanted & words_of(sentence)) / max(1, len(wanted))
            if shared:
                scored.append((-shared, rank, Fact(sentence, str(result["url"]), str(result["source"]))))
    chosen: list[Fact] = []
    for _, _, fact in sorted(scored, key=lambda one: one[:2]):
        is_new = all(overlap(fact.text, other.text) < SAME for other in chosen)
        if is_new and sum(other.source == fact.source for other in chosen) < 2:
            chosen.append(fact)
        if len(chosen) == MOST_FACTS:
            break
    return chosen


def grounded(prompt: str, facts: Iterable[Fact]) -> str:
    """The prompt with the facts behind it, no longer than a prompt should be."""
    text = prompt.strip().rstrip(".")
    for fact in facts:
        longer = f"{text}. {fact.text.rstrip('.')}"
        if len(longer) > LONGEST_PROMPT:
            break
        text = longer
    return text


def sentences(text: str) -> list[str]:
    """Whole sentences of a fair length; brackets are left out, because they weigh words in a prompt."""
    plain = re.sub(r"[()\[\]<>{}|\\]", " ", _BRACKETED.sub(" ", text))
    found = [re.sub(r"\s+", " ", sentence).strip(" .,;:-") for sentence in _SENTENCE.split(plain)]
    return [re.sub(r"\s+([,.;:!?])", r"\1", one) for one in found if SHORTEST <= len(one) <= LONGEST]


def words_of(text: str) -> frozenset[str]:
    """Its words in small letters, an English plural's s left out."""
    found = (word.casefold() for word in _WORD.findall(text))
    return frozenset(word.removesuffix("s") if len(word) > 3 else word for word in found if word not in _EMPTY)


def overlap(one: str, other: str) -> float:
    """How much of the shorter sentence stands in the other."""
    first, second = words_of(one), words_of(other)
    return len(first & second) / max(1, min(len(first), len(second)))
