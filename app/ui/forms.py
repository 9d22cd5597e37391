"""A Request class becomes a form: one table says which widget a field's kind or type gets.

A form reads its widgets into the JSON that `Service.submit` takes, and shows such JSON again.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gradio as gr
from pydantic import ValidationError

from app.core.capability import Capability
from app.ui.control_rows import control_rows
from app.ui.controls import (
    CLEAR_BY_ITSELF,
    WIDEST_SLIDER,
    Control,
    Question,
    addition,
    bounds,
    choice,
    controlnets,
    embeddings,
    given_way,
    literal_values,
    loras,
    model,
    number,
    prompt,
    seed,
    size,
    text,
    tick,
)
from app.ui.dataset_controls import dataset, sources
from app.ui.list_controls import lines, numbers, several
from app.ui.model_choices import ModelChoices
from app.ui.picture_controls import picture, pictures

IN_SIGHT = {
    "kind", "strength", "tagger", "control_type", "keep_lines", "trigger_word", "thinking", "reflection",
    "id_scale", "align", "paste_changes",
}  # fmt: skip
"""Knobs that stand beside the others although the usual rule would put them under Advanced: they say what is made."""

ADVANCED = {"second_pass_strength", "mask_blur", "seam"}
ADVANCED_PICTURES = {"source_images"}
"""Pictures for some models alone, which would stand in the way of everybody else."""
PICTURES = {"image", "images", "mask"}
WORDS_AND_PICTURES = {"prompt", *PICTURES}
LAST_KNOBS = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "num_images_per_prompt", "seed", "loras")


def members(annotation: Any) -> set[Any]:
    """The types that a value may have: those of a union, or the one."""
    return set(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else {annotation}


KINDS: dict[str, Callable[[Question], Control]] = {
    "prompt": prompt,
    "model": model,
    "addition": addition,
    "loras": loras,
    "controlnets": controlnets,
    "embeddings": embeddings,
    "seed": seed,
    "size": size,
    "image": picture,
    "images": pictures,
    "faces": numbers,
    "mask": picture,
}
NAMES: dict[str, Callable[[Question], Control]] = {
    "control_image": control_rows,
    "images": dataset,
    "source_images": sources,
}
"""Fields with a widget of their own, which covers those that hold a list beside them."""


def is_list_of(annotation: Any, kind: Any) -> bool:
    """Whether the annotation is a tuple of such values; `Literal` stands for any of its words."""
    inner = bare(get_args(annotation)[0]) if get_origin(annotation) is tuple else None
    return get_origin(inner) is kind or inner is kind


TYPES: tuple[tuple[Callable[[Any], bool], Callable[[Question], Control]], ...] = (
    (lambda annotation: is_list_of(annotation, Literal), several),
    (lambda annotation: is_list_of(annotation, float), numbers),
    (lambda annotation: is_list_of(annotation, str), lines),
    (lambda annotation: bool(literal_values(annotation)), choice),
    (lambda annotation: bool in members(annotation), tick),
    (lambda annotation: bool({int, float} & members(annotation)), number),
    (lambda annotation: str in members(annotation), text),
)


def kinds(wish: Any) -> dict[str, str | None]:
    """Field name -> kind, in the order of the class; that of `MaskImage | None` is the mask's."""
    return {name: extra_of(wish, name).get("kind") for name in wish.model_fields}


def extra_of(wish: Any, name: str) -> dict[str, Any]:
    """What a field says to whoever lays out a form; `MaskImage | None` says what `MaskImage` does."""
    info = wish.model_fields[name]
    inner = [note for part in get_args(info.annotation) for note in getattr(part, "__metadata__", ())]
    extras = [getattr(note, "json_schema_extra", None) for note in (info, *inner)]
    return next((extra for extra in extras if isinstance(extra, dict) and "kind" in extra), {})


def bare(annotation: Any) -> Any:
    """The annotation without its notes: `Annotated[int, ...] | None` is `int | None`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(bare(part) for part in get_args(annotation))]  # noqa: UP007 (built at run time)
    return annotation


def question_of(
    wish: Any, name: str, choices: ModelChoices, unserved: Mapping[str, str] = MappingProxyType({})
) -> Question:
    """What the class says about one field."""
    info = wish.model_fields[name]
    limits = {}
    for item in info.metadata:
        for limit in ("ge", "gt", "le", "lt", "multiple_of", "max_length", "min_length"):
            if getattr(item, limit, None) is not None:
                limits[limit] = getattr(item, limit)
    annotation = bare(info.annotation)
    mask = next((other for other, kind in kinds(wish).items() if kind == "mask"), None)
    required = mask is not None and wish.model_fields[mask].is_required()
    face = next((other for other in wish.model_fields if extra_of(wish, other).get("of") == name), None)
    pointing = name == "image" and "points" in kinds(wish).values()
    nullable = NoneType in get_args(annotation)
    extra = info.json_schema_extra
    other = extra.get("only_with") if isinstance(extra, dict) else None
    told = (mask, required, face, pointing, unserved, other)
    return Question(name, info, annotation, nullable, limits, choices, *told)


def builder_of(question: Question, kind: str | None) -> Callable[[Question], Control]:
    """The table's answer; a field that no line serves is a mistake of the capability, said when the page is built."""
    if question.name in NAMES and kind == "images":
        return NAMES[question.name]
    if kind is not None and kind in KINDS:
        return KINDS[kind]
    for serves, build in TYPES:
        if serves(question.annotation):
            return build
    raise TypeError(f"No widget serves the field {question.name!r} ({question.annotation}, kind {kind!r}).")


def is_advanced(question: Question, kind: str | None) -> bool:
    """Whether a field stands under Advanced: optional things beyond the usual knobs."""
    if question.name in CLEAR_BY_ITSELF | IN_SIGHT or question.info.is_required():
        return False
    if kind in {*WORDS_AND_PICTURES, "model", "size"}:
        return False
    if question.name in ADVANCED or question.nullable:
        return True
    return not ({int, float} & {question.annotation})


class Form:
    """The form of one capability. Its three groups are laid out by whoever builds the page."""

    def __init__(self, capability: Capability, choices: ModelChoices, devices: Collection[str] | None = None) -> None:
        self.capability = capability
        self.choices = choices
        self.controls: list[Control] = []
        wish = capability.request
        by_kind = kinds(wish)
        unserved = capability.unserved(devices)
        questions = {name: question_of(wish, name, choices, unserved.get(name, {})) for name in wish.model_fields}
        self._pending = [
            (group_of(questions[name], by_kind[name]), questions[name], by_kind[name]) for name in wish.model_fields
        ]

    def build(self, group: Literal["words", "knobs", "advanced"]) -> None:
        """Lay out one group where the caller's Gradio context stands."""
        covered = {name for control in self.controls for name in control.fields}
        questions = [
            (question, kind) for own, question, kind in self._pending if own == group and question.name not in covered
        ]
        if group == "words":
            questions.sort(key=lambda item: word_rank(*item))
        elif group == "knobs":
            questions.sort(key=lambda item: knob_rank(*item))
        for boxes, run in groupby(questions, key=lambda item: group == "knobs" and is_box(*item)):
            if boxes:
                with gr.Row(elem_classes=["eis-numbers"]):
                    self.add(run)
            else:
                self.add(run)

    def add(self, questions: Iterable[tuple[Question, str | None]]) -> None:
        """Make the controls of these fields; one that a control before them covers already is passed over."""
        for question, kind in questions:
            if not any(question.name in control.fields for control in self.controls):
                self.controls.append(builder_of(question, kind)(question))

    def has(self, group: Literal["words", "knobs", "advanced"]) -> bool:
        """Whether any field stands in the group."""
        return any(own == group for own, _, _ in self._pending)

    @property
    def widgets(self) -> list[Any]:
        """Every widget, in the order in which `read` and `show` speak of them."""
        return [widget for control in self.controls for widget in control.widgets]

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The request's JSON; a mask is still the painted data URI."""
        payload: dict[str, Any] = {}
        at = 0
        for control in self.controls:
            count = len(control.widgets)
            payload.update(control.read(*values[at : at + count]))
            at += count
        return payload

    def show(self, request: Mapping[str, Any]) -> list[Any]:
        """Updates that make the form say this request; pictures stay as they are."""
        return [update for control in self.controls for update in control.show(request)]

    def refresh(self, model: str) -> list[Any]:
        """Updates that say what empty means for this model, and which models there are."""
        updates: list[Any] = []
        for control in self.controls:
            updates += control.refresh(model) if control.refresh else [gr.skip() for _ in control.widgets]
        return updates

    def sensible(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What of a wish from anywhere this form can show: fields that it has, values that they take, no pictures."""
        wish = self.capability.request
        by_kind = kinds(wish)
        known = {name: said[name] for name in wish.model_fields if name in said and by_kind[name] not in PICTURES}
        try:
            wish.model_validate(known)
        except ValidationError as error:
            wrong = {entry["loc"][0] for entry in error.errors(include_input=False) if entry["loc"]}
            return {name: value for name, value in known.items() if name not in wrong}
        return known

    def settled(self, request: Mapping[str, Any]) -> list[Any]:
        """Updates that make the form say this request, and what empty means for the model that it names."""
        model = self.choices.known(str(request.get("model") or "auto"))
        return [{**hint, **said} for hint, said in zip(self.refresh(model), self.show(request), strict=True)]

    def after_models_changed(self, chosen: str, gone: Collection[str]) -> list[Any]:
        """Updates after a pull or a removal: the chosen model's own hints, auto where it has gone."""
        kept = "auto" if chosen in gone else self.choices.known(chosen)
        updates = self.refresh(kept)
        if kept != chosen:
            at = self.widgets.index(self.widget("model"))
            updates[at : at + 2] = given_way(self.choices, chosen)
        return updates

    def widget(self, name: str) -> Any | None:
        """The (first) widget of a field."""
        return next((control.widgets[0] for control in self.controls if name in control.fields), None)

    @property
    def pictures(self) -> dict[str, Any]:
        """Field -> the widget that takes a picture for it."""
        return {name: control.widgets[at] for control in self.controls for name, at in control.pictures.items()}

    @property
    def picture_inputs(self) -> list[Any]:
        """Every widget that takes a picture."""
        taking = [control for control in self.controls if control.pictures]
        return [widget for control in taking for widget in control.widgets if isinstance(widget, gr.HTML)]

    @property
    def masks(self) -> dict[str, str]:
        """Field of a picture -> the field of the mask that is painted on it."""
        return {control.fields[0]: control.mask for control in self.controls if control.mask}

    @property
    def thing_picker(self) -> Any | None:
        """The widget in which a thing is clicked."""
        return next((control.widgets[0] for control in self.controls if control.pointing), None)

    @property
    def face_pickers(self) -> dict[str, Any]:
        """Field of a picture -> the widget in which one of its faces is chosen; `field.1` is that of its second."""
        return {
            f"{control.fields[0]}.{at}" if at else control.fields[0]: widget
            for control in self.controls
            if control.face
            for at, widget in enumerate(control.widgets)
        }


def word_rank(question: Question, kind: str | None) -> float:
    """First the picture that is changed, then those that say how, the needed before the others; then the words."""
    rank = {"image": 1.0, "mask": 1.0, "images": 2.0}.get(kind or "", 3.0)
    if kind in {"image", "mask"} and not question.info.is_required():
        return rank + 0.5
    return 0.0 if question.name == "image" else rank


def knob_rank(question: Question, kind: str | None) -> int:
    """The model and the size first, then what the capability has of its own, then what all of them have."""
    if kind in ("model", "size"):
        return -1
    return LAST_KNOBS.index(question.name) + 1 if question.name in LAST_KNOBS else 0


def is_box(question: Question, kind: str | None) -> bool:
    """Whether a field is a narrow box that shares its line with others."""
    if builder_of(question, kind) is not number:
        return False
    low, high = bounds(question)
    return question.nullable or None in (low, high) or high - low > WIDEST_SLIDER


def group_of(question: Question, kind: str | None) -> Literal["words", "knobs", "advanced"]:
    """Where a field stands on the page."""
    if question.name in ADVANCED_PICTURES:
        return "advanced"
    if kind in WORDS_AND_PICTURES:
        return "words"
    return "advanced" if is_advanced(question, kind) else "knobs"
