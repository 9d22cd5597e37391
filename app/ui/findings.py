"""What the stage shows of answers that are words: tags as chips to choose from, and what a web search found."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app.core.jobs import Job
from app.ui.wording import badge, chooser, empty, thumbnail_url

CATEGORIES = {"character": "Characters", "general": "Shown"}
RATING_TONES = {"general": "eis-good", "sensitive": "eis-wait", "questionable": "eis-bad", "explicit": "eis-bad"}

Targets = Sequence[tuple[str, str]]


def are_in(job: Job) -> bool:
    """Whether a finished job's answer is one of these."""
    data = (job.result or {}).get("data") or {}
    return job.capability in {"tag-image", "web-search"} and bool({"pictures", "results"} & set(data))


def view(job: Job, targets: Targets, prompt_targets: Targets) -> str:
    """The answer, with what can be done with it."""
    data = job.result["data"]
    body = (
        tags(job, data["pictures"], prompt_targets)
        if "pictures" in data
        else wall(job, data["results"], targets) + grounding(data.get("grounding"), prompt_targets)
    )
    notes = "".join(f'<p class="eis-note">{escape(note)}</p>' for note in job.result.get("notes", []))
    return f'<div class="eis-result eis-findings" data-job="{job.id}">{body}{notes}</div>'


def tags(job: Job, pictures: Sequence[Mapping[str, Any]], prompt_targets: Targets) -> str:
    """A card for each picture: its chips by category, its caption, and where that can go."""
    return "".join(tag_card(job, number, picture, prompt_targets) for number, picture in enumerate(pictures))


def tag_card(job: Job, number: int, picture: Mapping[str, Any], prompt_targets: Targets) -> str:
    """One picture's tags; the page's script keeps the caption in step with the chips."""
    anchor = f"caption-{job.id}-{number}"
    found = picture["tags"]
    order = [*(name for name in CATEGORIES if name in found), *(name for name in found if name not in CATEGORIES)]
    groups = [chips("Put first", [{"tag": word, "score": None} for word in job.request.get("prepend") or ()])]
    groups += [chips(CATEGORIES.get(name, f"Category {name}"), found[name]) for name in order]
    rating = picture.get("rating")
    end = [{"tag": rating, "score": None}] if rating and job.request.get("rating_in_caption") else []
    groups += [chips("Rating", end), chips("Added", (), added=True)]
    said = badge(escape(str(rating)), RATING_TONES.get(str(rating), "")) if rating else ""
    caption = picture["caption"]
    return (
        f'<section class="eis-tagged" aria-label="Tags of picture {number + 1}">'
        f'<img loading="lazy" src="{thumbnail_url(picture["image"])}" alt="Picture {number + 1}">'
        f'<div class="eis-tagged-words">{"".join(groups)}'
        f'<label class="eis-add-tag"><span class="eis-label">Add a tag</span>'
        f'<input type="text" maxlength="200" placeholder="Type, then Enter"></label>'
        f'<div class="eis-bar">{said}'
        f'<button type="button" class="eis-button" data-client="copy" data-source="{anchor}">Copy</button>'
        f"{chooser('Use as prompt …', 'prompt', prompt_targets, text=caption)}</div>"
        f'<p class="eis-words eis-caption" id="{anchor}">{escape(caption)}</p></div></section>'
    )


def wall(job: Job, results: Sequence[Mapping[str, Any]], targets: Targets) -> str:
    """The results of a search: pictures by way of this service alone, pages by their words."""
    cards = "".join(result_card(job, number, result, targets) for number, result in enumerate(results))
    if not results:
        return f'<div class="eis-frame">{empty("Nothing was found", "Try fewer or other words.")}</div>'
    return f'<div class="eis-wall" role="list">{cards}</div>'


def result_card(job: Job, number: int, result: Mapping[str, Any], targets: Targets) -> str:
    """One result: what it shows, where it stands, under which licence, and what it can be used for."""
    picture, use = "", ""
    if result.get("image_url"):
        source = f"api/v1/jobs/{job.id}/results/{number}/thumbnail"
        picture = f'<img loading="lazy" src="{source}" alt="{escape(result["title"])}">'
        use = chooser("Use as reference …", "reference", targets, job=job.id, number=number)
    size = f"{result['width']} × {result['height']}" if result.get("width") and result.get("height") else ""
    facts = " · ".join(escape(fact) for fact in (result["source"], size) if fact)
    licence = f"<p>Licence: {escape(result['licence'])}</p>" if result.get("licence") else ""
    words = f"<p>{escape(result['text'])}</p>" if result.get("text") and not picture else ""
    return (
        f'<article class="eis-found" role="listitem">{picture}'
        f'<a href="{escape(result["url"])}" target="_blank" rel="noopener noreferrer nofollow">'
        f"{escape(result['title'])}</a><p>{facts}</p>{licence}{words}{use}</article>"
    )


def grounding(found: Mapping[str, Any] | None, prompt_targets: Targets) -> str:
    """The prompt with facts in it, to be looked at and changed before it is used."""
    if not found:
        return ""
    facts = "".join(f"<li>{escape(fact['text'])} <i>({escape(fact['source'])})</i></li>" for fact in found["facts"])
    told = f"<details><summary>Where the facts stand</summary><ul>{facts}</ul></details>" if facts else ""
    prompt = found["prompt"]
    return (
        f'<section class="eis-grounding"><label><span class="eis-label">Prompt with facts</span>'
        f"<textarea>{escape(prompt)}</textarea></label>{told}"
        f'<div class="eis-bar">{chooser("Use as prompt …", "prompt", prompt_targets, text=prompt)}</div></section>'
    )


def chips(title: str, found: Sequence[Mapping[str, Any]], *, added: bool = False) -> str:
    """Tags of one kind: a click takes one out of the caption, another brings it back."""
    if not found and not added:
        return ""
    items = "".join(chip(str(one["tag"]), one["score"]) for one in found)
    mark = " data-added hidden" if added else ""
    return (
        f'<div class="eis-chip-group"{mark}><span class="eis-label">{escape(title)}</span>'
        f'<div class="eis-chips">{items}</div></div>'
    )


def chip(word: str, score: float | None) -> str:
    """One tag."""
    sure = "" if score is None else f"<i>{score:.2f}</i>"
    return (
        f'<button type="button" class="eis-chip" data-client="tag" data-word="{escape(word)}" aria-pressed="true" '
        f'title="Click to take it out">{escape(word)}{sure}</button>'
    )
