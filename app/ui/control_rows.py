"""The widget of control pictures: each with what it shows, its network, how strictly and how long it is followed."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import gradio as gr

from app.core.control_fields import ControlType, Preprocess
from app.errors import InvalidRequest
from app.ui.controls import Control, Question
from app.ui.parts import picture_picker
from app.ui.wording import label

ROWS = 3
TITLES = ("Control picture", "Second control picture", "Third control picture")
WAYS = {"auto": "if needed", "on": "always drawn", "off": "as it is"}
LISTS: dict[str, Any] = {
    "control_type": "canny",
    "preprocess": "auto",
    "controlnet_model": "auto",
    "controlnet_conditioning_scale": 1.0,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
}
"""Field -> what its widget shows at first, in the order of a row's widgets after the picture."""

WIDGETS = 1 + len(LISTS)


def control_rows(question: Question) -> Control:
    """Several control pictures in order; a row without a picture is left out."""
    name, choices = question.name, question.choices

    def entries(model: str) -> list[tuple[str, str]]:
        installed = choices.additions("controlnet", model)
        return [("auto · the best for the type", "auto"), *((row["title"], row["id"]) for row in installed)]

    widgets: list[Any] = []
    for number in range(ROWS):
        if number == 0:
            widgets += _row(number, entries("auto"))
        else:
            with gr.Accordion(TITLES[number], open=False, elem_classes=["eis-advanced"]):
                widgets += _row(number, entries("auto"))

    def read(*values: Any) -> dict[str, Any]:
        every = [values[at : at + WIDGETS] for at in range(0, len(values), WIDGETS)]
        rows = [row for row in every if row[0] and row[0].get("image")]
        if not rows:
            raise InvalidRequest(f"{question.label}: choose a picture first.", field=name)
        pictures, *lists = zip(*rows, strict=True)
        said = {field: list(values) for field, values in zip(LISTS, lists, strict=True)}
        return {name: [picture["image"] for picture in pictures], **said}

    def show(request: Mapping[str, Any]) -> list[Any]:
        picture = request.get(name)
        first = gr.update(value=picture) if isinstance(picture, Mapping) else gr.skip()
        said = [_padded(request.get(field), default) for field, default in LISTS.items()]
        updates: list[Any] = []
        for number, values in enumerate(zip(*said, strict=True)):
            updates += [first if number == 0 else gr.skip(), *(gr.update(value=value) for value in values)]
        return updates

    def refresh(model: str) -> list[Any]:
        at = 1 + list(LISTS).index("controlnet_model")
        return [
            gr.update(choices=entries(model)) if place % WIDGETS == at else gr.skip() for place in range(len(widgets))
        ]

    return Control((name, *LISTS), widgets, read, show, refresh, pictures={name: 0})


def _padded(values: Sequence[Any] | None, default: Any) -> list[Any]:
    """One value for each row: those that are said, and what stands in an unused row."""
    said = list(values or ())[:ROWS]
    return [*said, *[default] * (ROWS - len(said))]


def _row(number: int, models: list[tuple[str, str]]) -> list[Any]:
    picker = picture_picker(TITLES[number], optional=number > 0)
    with gr.Row():
        kind = gr.Dropdown(list(get_args(ControlType)), value=LISTS["control_type"], label=label("control_type"))
        ways = [(WAYS[way], way) for way in get_args(Preprocess)]
        way = gr.Dropdown(ways, value=LISTS["preprocess"], label=label("preprocess"))
    model = gr.Dropdown(models, value=LISTS["controlnet_model"], label=label("controlnet_model"))
    scale = gr.Slider(
        0, 2, value=LISTS["controlnet_conditioning_scale"], step=0.05, label=label("controlnet_conditioning_scale")
    )
    with gr.Row():
        sides = [
            gr.Slider(0, 1, value=LISTS[field], step=0.05, label=label(field))
            for field in ("control_guidance_start", "control_guidance_end")
        ]
    return [picker, kind, way, model, scale, *sides]
