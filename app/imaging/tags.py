"""Scores become tags: thresholds by category, the mean cut, how a tag is written, and the line that they make."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CATEGORIES = {0: "general", 4: "character", 9: "rating"}
"""Danbooru's numbers of categories -> their names."""

LEAST_CHARACTER_CUT = 0.15
"""The mean cut never lets a character in whose score is below this: where nobody is known all scores are near 0."""

KAOMOJI = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^",
    "o_o", "u_u", "x_x", "|_|", "||_||",
})  # fmt: skip
"""Tags that are faces made of letters: an underscore is a part of them."""


@dataclass(frozen=True)
class Label:
    """What one output of a tagger means: a tag as the tagger's makers write it, and the name of its category."""

    name: str
    category: str


@dataclass(frozen=True)
class Wish:
    """Which tags are taken and how they are written; a threshold of None is the mean cut."""

    threshold: float | None = 0.35
    character_threshold: float | None = 0.85
    underscores: bool = False
    escape: bool = False
    exclude: tuple[str, ...] = ()
    prepend: tuple[str, ...] = ()
    rating: bool = False


@dataclass(frozen=True)
class Tagged:
    """One picture's tags: name and score by category, each the surest first; the surest rating; the line."""

    tags: dict[str, list[tuple[str, float]]]
    rating: str | None
    ratings: dict[str, float]
    caption: str


def mean_cut(scores: np.ndarray) -> float:
    """The threshold in the middle of the widest gap between two scores that follow one another.

    MCut of Largeron, Moulin and Géry, "MCut: a thresholding strategy for multi-label classification" (2012).
    """
    falling = np.sort(scores)[::-1]
    if len(falling) < 2:
        return 0.0
    at = int((falling[:-1] - falling[1:]).argmax())
    return float(falling[at] + falling[at + 1]) / 2


def written(name: str, *, underscores: bool, escape: bool) -> str:
    """A tag as captions write it; `escape` protects brackets, which weigh words in a prompt."""
    text = name if underscores or name in KAOMOJI else name.replace("_", " ")
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") if escape else text


def alike(name: str) -> str:
    """How tags are compared: spelled with spaces or underscores, in large or small letters."""
    return name.strip().replace("_", " ").casefold()


def tagged(scores: np.ndarray, labels: Sequence[Label], wish: Wish) -> Tagged:
    """What scores [tags] say of one picture."""
    unwanted = {alike(name) for name in wish.exclude}
    limits = {
        "general": _limit(scores, labels, "general", wish.threshold, 0.0),
        "character": _limit(scores, labels, "character", wish.character_threshold, LEAST_CHARACTER_CUT),
    }
    tags: dict[str, list[tuple[str, float]]] = {}
    ratings: dict[str, float] = {}
    for at in np.argsort(-scores, kind="stable"):
        label, score = labels[at], round(float(scores[at]), 4)
        if label.category == "rating":
            ratings[label.name] = score
        # What is neither a character nor a rating (artists, series) counts as the things that are shown.
        elif scores[at] >= limits.get(label.category, limits["general"]) and alike(label.name) not in unwanted:
            name = written(label.name, underscores=wish.underscores, escape=wish.escape)
            tags.setdefault(label.category, []).append((name, score))
    rating = next(iter(ratings), None)
    return Tagged(tags, rating, ratings, _caption(tags, rating, wish))


def _limit(scores: np.ndarray, labels: Sequence[Label], category: str, threshold: float | None, least: float) -> float:
    if threshold is not None:
        return threshold
    return max(least, mean_cut(scores[[label.category == category for label in labels]]))


def _caption(tags: dict[str, list[tuple[str, float]]], rating: str | None, wish: Wish) -> str:
    """What is prepended, then characters, then the rest, each once."""
    order = sorted(tags, key=lambda category: (category != "character", category != "general", category))
    words = [*wish.prepend, *(name for category in order for name, _ in tags[category])]
    if wish.rating and rating:
        words.append(written(rating, underscores=wish.underscores, escape=wish.escape))
    once: dict[str, str] = {}
    for word in filter(str.strip, words):
        once.setdefault(alike(word), word.strip())
    return ", ".join(once.values())
