"""The widgets of a form's fields: each builder here turns one question into a control.

A null-able number is an empty box whose placeholder says what empty means; a bounded number that always has a value is
a slider. Builders lay their widgets out where the caller's Gradio context stands.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic.fields import FieldInfo

from app.ui.model_choices import ModelChoices, size_presets
from app.ui.parts import number_box, number_text, parse_number, part, weighted_models
from app.ui.wording import button, label, without_backticks

LEFT_OUT = object()
"""What a widget reads when its field shall not stand in the request at all, so that the default holds."""

CLEAR_BY_ITSELF = {
    "guidance_scale", "height", "loras", "num_images_per_prompt", "num_inference_steps", "seed", "true_cfg_scale",
    "width",
}  # fmt: skip
"""Fields whose label needs no sentence under it."""

WIDEST_SLIDER = 1000
FROM_THE_MODEL = "what the model's row recommends"


@dataclass
class Control:
    """One or two fields on the form: their widgets, how to read them, and how to show a value."""

    fields: tuple[str, ...]
    widgets: list[Any]
    read: Callable[..., dict[str, Any]]
    show: Callable[[Mapping[str, Any]], list[Any]]
    refresh: Callable[[str], list[Any]] | None = None
    pictures: dict[str, int] = field(default_factory=dict)
    """Field of a picture -> which of the widgets takes it."""
    mask: str | None = None
    """The field of the mask that is painted on the picture."""
    face: str | None = None
    """The field that says which face of the picture is meant."""
    pointing: bool = False
    """Whether a thing is clicked in the picture."""
    notes: list[Any] = field(default_factory=list)
    """Widgets that hold a button which leads to the Models tab."""


@dataclass
class Question:
    """Everything that a builder may know about a field."""

    name: str
    info: FieldInfo
    annotation: Any
    nullable: bool
    limits: dict[str, Any]
    choices: ModelChoices
    mask: str | None = None
    """The request's mask field, for the picture that it is painted on."""
    mask_required: bool = False
    face: str | None = None
    """The request's field that chooses one of the picture's faces."""
    pointing: bool = False
    """Whether the request has fields for where a thing of the picture is."""
    unserved: Mapping[str, str] = field(default_factory=dict)
    """Words of a choice that cannot be served here, each with what is lacking."""
    only_with: str | None = None
    """The field (of words, or a tick) without which this one says nothing, and is not shown."""

    @property
    def label(self) -> str:
        return self.info.title or label(self.name)

    @property
    def description(self) -> str:
        """The field's sentence without the part that explains null."""
        return (self.info.description or "").partition("null:")[0].rstrip(" ;.") + "."

    @property
    def empty_means(self) -> str:
        """What null means, in the field's own words."""
        return (self.info.description or "").partition("null:")[2].partition(",")[0].strip(" .") or "none"


def same(value: Any) -> Any:
    """The value itself."""
    return value


def plain(
    question: Question, widget: Any, to_value: Callable[[Any], Any] = same, to_text: Callable[[Any], Any] = same
) -> Control:
    """A control of one field and one widget whose value is the field's."""
    name = question.name
    default = None if question.info.is_required() else question.info.default

    def read(value: Any) -> dict[str, Any]:
        value = to_value(value)
        return {} if value is LEFT_OUT else {name: value}

    def show(request: Mapping[str, Any]) -> list[Any]:
        return [gr.update(value=to_text(request.get(name, default)))]

    return Control((name,), [widget], read, show)


def prompt(question: Question) -> Control:
    main = question.name == "prompt"
    widget = gr.Textbox(
        "" if question.info.is_required() else question.info.default or "",
        label=question.label,
        lines=3 if main else 1,
        max_lines=12 if main else 6,
        placeholder=question.description.partition(";")[0].rstrip("."),
        elem_classes=["eis-prompt"] if main else [f"eis-field-{question.name}"],
    )
    nothing = None if question.nullable else ""
    return plain(question, widget, lambda value: value or nothing, lambda value: value or "")


def number(question: Question) -> Control:
    """A bounded number: a box when it may be empty, else a slider."""
    whole = float not in (question.annotation, *get_args(question.annotation))
    low, high = bounds(question)
    step = question.limits.get("multiple_of") or (1 if whole else 0.01 if (high or 99) <= 1 else 0.1)
    name, choices = question.name, question.choices
    if not question.nullable and None not in (low, high) and high - low <= WIDEST_SLIDER:
        slider = gr.Slider(
            low if "ge" in question.limits else low + step,
            high,
            value=question.info.default,
            step=step,
            label=question.label,
            info=question.description if name not in CLEAR_BY_ITSELF else None,
            elem_classes=[f"eis-with-{question.only_with}"] if question.only_with else [],
        )
        return plain(question, slider)

    default = None if question.info.is_required() else question.info.default

    def placeholder(model: str) -> str:
        if not question.nullable:
            return "" if default is None else f"{default:g}"
        if FROM_THE_MODEL in question.empty_means:
            return choices.automatic(model, name)
        return question.empty_means

    hint = None if name in CLEAR_BY_ITSELF else question.description
    box = number_box(question.label, default, placeholder=placeholder("auto"), info=hint)

    def value_of(typed: str) -> Any:
        value = parse_number(question.label, typed, whole=whole)
        return LEFT_OUT if value is None and not question.nullable else value

    control = plain(question, box, value_of, number_text)
    control.refresh = lambda model: [gr.update(placeholder=placeholder(model))]
    return control


def bounds(question: Question) -> tuple[Any, Any]:
    """The lowest and the highest value, each None where there is none."""
    limits = question.limits
    return limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))


def choice(question: Question) -> Control:
    """A Literal: a dropdown, with what null means as its first entry."""
    values = [value for part in literal_values(question.annotation) for value in part]
    name, choices = question.name, question.choices

    def entries(model: str) -> list[tuple[str, str]]:
        words = [(f"{value} · not here" if value in question.unserved else str(value), value) for value in values]
        if not question.nullable:
            return words
        automatic = FROM_THE_MODEL in question.empty_means
        return [(choices.automatic(model, name) if automatic else question.empty_means, ""), *words]

    widget = gr.Dropdown(
        entries("auto"),
        value="" if question.info.default is None else question.info.default,
        label=question.label,
        info=" ".join([question.description, *(f"{word} {lack}." for word, lack in question.unserved.items())]),
    )
    control = plain(question, widget, lambda value: value or None)
    control.show = lambda request: [gr.update(value=request.get(name) or "")]
    if question.nullable:
        control.refresh = lambda model: [gr.update(choices=entries(model))]
    return control


def tick(question: Question) -> Control:
    widget = gr.Checkbox(
        value=question.info.default,
        label=question.label,
        info=question.description,
        elem_classes=[f"eis-field-{question.name}"],
    )
    return plain(question, widget)


def text(question: Question) -> Control:
    default = "" if question.info.is_required() else question.info.get_default() or ""
    widget = gr.Textbox(label=question.label, info=question.description, value=default)
    return plain(question, widget, lambda value: value or (None if question.nullable else ""))


def seed(question: Question) -> Control:
    with gr.Row(elem_classes=["eis-seed"]):
        box = number_box(question.label, placeholder="random")
        random = gr.Button("Random", size="sm", scale=0, min_width=86, elem_classes=["eis-random"])
    random.click(None, outputs=box, js="() => ''", queue=False, api_visibility="private")
    return plain(question, box, lambda typed: parse_number(question.label, typed, whole=True), number_text)


def size(question: Question) -> Control:
    """Width and height with presets made from the model's own size."""
    choices = question.choices
    presets = gr.Dropdown(
        size_presets(choices.recommended("auto")), value="", label="Size", elem_classes=["eis-size-preset"]
    )
    with gr.Row():
        boxes = [number_box(label(name), placeholder=choices.automatic("auto", name)) for name in ("width", "height")]
    presets.input(
        None,
        inputs=presets,
        outputs=boxes,
        js="(preset) => preset ? preset.split('x') : ['', '']",
        queue=False,
        api_visibility="private",
    )

    def read(_preset: str, width: str, height: str) -> dict[str, Any]:
        sides = {"width": width, "height": height}
        return {name: parse_number(label(name), typed, whole=True) for name, typed in sides.items()}

    def show(request: Mapping[str, Any]) -> list[Any]:
        return [gr.update(value=""), *(gr.update(value=number_text(request.get(name))) for name in ("width", "height"))]

    def refresh(model: str) -> list[Any]:
        words = [gr.update(placeholder=choices.automatic(model, name)) for name in ("width", "height")]
        return [gr.update(choices=size_presets(choices.recommended(model))), *words]

    return Control(("width", "height"), [presets, *boxes], read, show, refresh)


def model(question: Question) -> Control:
    widget = gr.Dropdown(question.choices.entries(), value=question.info.get_default() or "auto", label=question.label)
    note = part(missing_note(question.choices, "auto"))
    name = question.name

    def show(request: Mapping[str, Any]) -> list[Any]:
        wished = request.get(name) or "auto"
        if question.choices.known(wished) != wished:
            return given_way(question.choices, wished)
        return [gr.update(value=wished), gr.update(value=missing_note(question.choices, wished))]

    return Control(
        (name,),
        [widget, note],
        lambda value, _note: {name: value or "auto"},
        show,
        lambda chosen: [
            gr.update(choices=question.choices.entries()),
            gr.update(value=missing_note(question.choices, chosen)),
        ],
        notes=[note],
    )


def addition(question: Question) -> Control:
    """A model that goes on the chosen one: auto, or one of those that are installed and fit."""
    name, choices = question.name, question.choices
    widget = gr.Dropdown(choices.fitting(name, "auto"), value="auto", label=question.label, info=question.description)
    control = plain(question, widget, lambda value: value or "auto")

    def known(wished: str, model: str) -> str:
        return wished if any(id == wished for _, id in choices.fitting(name, model)) else "auto"

    control.show = lambda request: [
        gr.update(value=known(request.get(name) or "auto", str(request.get("model") or "auto")))
    ]
    control.refresh = lambda model: [gr.update(choices=choices.fitting(name, model))]
    return control


def given_way(choices: ModelChoices, model: str) -> list[Any]:
    """Updates of the model's two widgets when auto takes the place of a model that is not there."""
    lost = f'<p class="eis-note">{escape(model)} is not installed here; auto stands in its place.</p>'
    note = lost + missing_note(choices, "auto")
    return [gr.update(choices=choices.entries(), value="auto"), gr.update(value=note)]


def missing_note(choices: ModelChoices, model: str) -> str:
    """The line under the dropdown when the chosen model is not installed."""
    text = without_backticks(choices.missing_note(model))
    return f'<p class="eis-note">{escape(text)} {button("Open Models", "models")}</p>' if text else ""


def loras(question: Question) -> Control:
    return weighted_rows(question, "lora", "LoRA")


def controlnets(question: Question) -> Control:
    return weighted_rows(question, "controlnet", "ControlNet")


def weighted_rows(question: Question, kind: str, word: str) -> Control:
    """Models of one kind, each with its weight; `word` is what a person calls one."""
    name, choices = question.name, question.choices
    most = question.limits.get("max_length", 8)
    widget = weighted_models(question.label, choices.additions(kind, "auto"), most, word)

    def read(value: Mapping[str, Any] | None) -> dict[str, Any]:
        rows = (value or {}).get("rows") or []
        return {name: [{"model": str(row["model"]), "weight": float(row["weight"])} for row in rows]}

    def show(request: Mapping[str, Any]) -> list[Any]:
        rows = [{"weight": 1.0, **row} for row in request.get(name) or ()]
        model = choices.known(request.get("model") or "auto")
        return [gr.update(value={"options": choices.additions(kind, model), "rows": rows})]

    def refresh(model: str) -> list[Any]:
        return [gr.update(value={"options": choices.additions(kind, model)})]

    return Control((name,), [widget], read, show, refresh)


def embeddings(question: Question) -> Control:
    def offered() -> dict[str, Any]:
        entries = [(row["title"], row["id"]) for row in question.choices.additions("embedding")]
        info = question.description if entries else "None is installed. The Models tab adds one."
        return {"choices": entries, "info": info, "interactive": bool(entries)}

    widget = gr.Dropdown(value=[], multiselect=True, label=question.label, **offered())
    control = plain(question, widget, lambda value: list(value or ()))
    control.show = lambda request: [gr.update(value=list(request.get(question.name) or ()))]
    control.refresh = lambda _model: [gr.update(**offered())]
    return control


def literal_values(annotation: Any) -> list[tuple[Any, ...]]:
    """The values of the Literals inside an annotation."""
    if get_origin(annotation) is Literal:
        return [get_args(annotation)]
    return [found for part in get_args(annotation) for found in literal_values(part)]
