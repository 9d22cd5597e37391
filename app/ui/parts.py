"""The page's own building blocks: HTML whose buttons report to Python, and the inputs that Gradio has no widget for.

Every value crosses as small JSON. A picture crosses as the id that `POST /api/v1/images` answered, so neither this
process nor Gradio's cache ever holds an unchecked file. (Functions, not subclasses: Gradio writes a stub file beside
the source of every subclass of a component.)
"""

import json
from typing import Any

import gradio as gr

from app.errors import InvalidRequest

FLAT = " eis-flat"


def part(value: str = "", **settings: Any) -> gr.HTML:
    """HTML written by Python; a click on an element with `data-action` arrives at `.act` listeners as its data."""
    script = "eis.part(element, (data) => trigger('act', data))"
    return gr.HTML(value, js_on_load=script, apply_default_css=False, **settings)


def own_input(kind: str, script: str, value: Any = None, **options: Any) -> gr.HTML:
    """An input that the page's script draws into an empty element; its value is JSON."""
    return gr.HTML(
        value,
        html_template=f'<div class="{kind}"></div>',
        js_on_load=f"eis.{script}(element, props, watch, {json.dumps(options)}, (data) => trigger('act', data))",
        apply_default_css=False,
    )


def picture_picker(title: str, *, optional: bool = False) -> gr.HTML:
    """A picture: `{"image": id, "width", "height"}`, or null. Drop, choose, or paste.

    Where its file says how it was made, buttons report `take` (into this form) and `settings` (as it was made). An
    `optional` one is flat while it is empty.
    """
    return own_input(f"eis-picker{FLAT if optional else ''}", "picker", title=title)


def face_picker(title: str, *, optional: bool = False) -> gr.HTML:
    """A picture of people: `{"image", "width", "height", "faces", "chosen", "told"}`, or null.

    `faces` (each with its `box`) are framed on the picture, `chosen` is the number of the one that was clicked, `told`
    a line for the person. A button reports `faces` where they are not known yet.
    """
    return own_input(f"eis-picker eis-face-picker{FLAT if optional else ''}", "facePicker", title=title)


def thing_picker(title: str) -> gr.HTML:
    """A picture in which a thing is clicked: `{"image", "width", "height", "clicks", "box", "masks", "mask"}`, or null.

    `clicks` are [x, y, 1 or 0 where the place does not belong to it] and `box` [left, top, right, bottom] in pixels;
    of `masks` (each with `mask`, a PNG data URI, and `score`) the one at `chosen` is `mask`, which may also be a stored
    picture's id. Reports `segment` when a mask is to be looked for, `share` when others shall show the same.
    """
    return own_input("eis-picker eis-thing-picker", "thingPicker", title=title)


def mask_painter(title: str) -> gr.HTML:
    """A picture and the mask painted on it: `{"image", "width", "height", "mask"}`, or null.

    The mask is painted at the picture's own size, white on black, and crosses as a PNG data URI when Generate is
    pressed. One that is stored already is its id, and stays it until it is painted on; no mask is null.
    """
    return own_input("eis-picker eis-painter", "painter", title=title)


def weighted_models(title: str, options: list[dict[str, str]], limit: int, word: str) -> gr.HTML:
    """Additions with weights: `{"options": [{"id", "title"}], "rows": [{"model", "weight"}]}`; `word` names one."""
    return own_input("eis-loras", "loras", {"options": options, "rows": []}, title=title, limit=limit, word=word)


def model_list() -> gr.HTML:
    """The list of models, drawn from the REST routes; it reports `act` and what has gone when that changed."""
    return gr.HTML(
        None,
        html_template='<div class="eis-models"></div>',
        js_on_load="eis.models(element, props, watch, (gone) => trigger('act', {action: 'changed', gone}))",
        apply_default_css=False,
        elem_id="model-list",
    )


def number_box(title: str, value: float | None = None, **settings: Any) -> gr.Textbox:
    """A number that may be left empty. (Gradio's own number box shows 0 for an empty value.)"""
    settings.setdefault("min_width", 90)
    return gr.Textbox(number_text(value), label=title, lines=1, max_lines=1, elem_classes=["eis-number"], **settings)


def number_text(value: Any) -> str:
    """What a number box shows for a value; nothing for None."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def parse_number(title: str, typed: str | None, *, whole: bool) -> float | None:
    """The number that was typed; None for an empty box."""
    text = (typed or "").strip().replace(",", ".")
    if not text:
        return None
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise InvalidRequest(f"{title}: {text[:20]!r} is not {kind}.") from None
