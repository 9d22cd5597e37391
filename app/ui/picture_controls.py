"""The widgets of a form's pictures: one, one with its mask, one with its faces, or several in order."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from app.errors import InvalidRequest
from app.ui.controls import Control, Question
from app.ui.parts import face_picker, mask_painter, picture_picker, thing_picker
from app.ui.wording import label

MOST_PICTURES = 4


def picture(question: Question) -> Control:
    """A picture; with the mask that is painted on it, or the face in it, when the request has a field for that."""
    name = question.name
    mask = question.mask
    if question.pointing:
        return picture_of_things(question)
    if question.face is not None and (name != "image" or mask is None):
        return picture_of_faces(question)

    def shown(request: Mapping[str, Any]) -> Any:
        value = request.get(name)
        return gr.update(value=value) if isinstance(value, Mapping) else gr.skip()

    if name != "image" or mask is None:
        widget = picture_picker(question.label, optional=not question.info.is_required())

        def read(value: Mapping[str, Any] | None) -> dict[str, Any]:
            if value and value.get("image"):
                return {name: value["image"]}
            if question.info.is_required():
                raise InvalidRequest(f"{question.label}: choose a picture first.", field=name)
            return {}

        return Control((name,), [widget], read, lambda request: [shown(request)], pictures={name: 0})

    widget = mask_painter(question.label)

    def read_both(value: Mapping[str, Any] | None) -> dict[str, Any]:
        if not value or not value.get("image"):
            if not question.info.is_required():
                return {}
            raise InvalidRequest(f"{question.label}: choose a picture first.", field=name)
        if not value.get("mask"):
            if not question.mask_required:
                return {name: value["image"]}
            raise InvalidRequest(f"{label(mask)}: paint the part to make anew, or load a mask.", field=mask)
        return {name: value["image"], mask: value["mask"]}

    return Control((name, mask), [widget], read_both, lambda request: [shown(request)], pictures={name: 0}, mask=mask)


def picture_of_faces(question: Question) -> Control:
    """A picture and which of its faces is meant; where the picture may be left out, the face is then another one's."""
    name, face = question.name, question.face
    widget = face_picker(question.label, optional=not question.info.is_required())

    def read(value: Mapping[str, Any] | None) -> dict[str, Any]:
        value = value or {}
        chosen = {} if value.get("chosen") is None else {face: value["chosen"]}
        if value.get("image"):
            return {name: value["image"], **chosen}
        if question.info.is_required():
            raise InvalidRequest(f"{question.label}: choose a picture first.", field=name)
        return chosen

    def show(request: Mapping[str, Any]) -> list[Any]:
        value = request.get(name)
        # A number belongs to its picture: without one it would choose a face of whatever stands in the form.
        return [gr.update(value={**value, "chosen": request.get(face)}) if isinstance(value, Mapping) else gr.skip()]

    return Control((name, face), [widget], read, show, pictures={name: 0}, face=face)


def picture_of_things(question: Question) -> Control:
    """A picture and the thing in it that is meant: by its mask where the request takes one, else by the clicks."""
    name, mask = question.name, question.mask
    widget = thing_picker(question.label)
    fields = (name, "points", "negative_points", "boxes", *((mask, "mask_index") if mask else ()))

    def read(value: Mapping[str, Any] | None) -> dict[str, Any]:
        value = value or {}
        if not value.get("image"):
            raise InvalidRequest(f"{question.label}: choose a picture first.", field=name)
        if mask and value.get("mask"):
            return {name: value["image"], mask: value["mask"]}
        told = pointed(value)
        if mask and not told:
            raise InvalidRequest(f"{question.label}: click the thing that is meant, or box it.", field=name)
        return {name: value["image"], **told}

    def show(request: Mapping[str, Any]) -> list[Any]:
        value = request.get(name)
        return [gr.update(value=value) if isinstance(value, Mapping) else gr.skip()]

    return Control(fields, [widget], read, show, pictures={name: 0}, mask=mask, pointing=True)


def pointed(value: Mapping[str, Any]) -> dict[str, str]:
    """What was clicked and drawn in a picture of things, as a request says it."""
    clicks = value.get("clicks") or ()
    told = {
        field: "; ".join(f"{x:g},{y:g}" for x, y, belongs in clicks if bool(belongs) == is_part)
        for field, is_part in (("points", True), ("negative_points", False))
    }
    told["boxes"] = ",".join(f"{edge:g}" for edge in value.get("box") or ())
    return {field: text for field, text in told.items() if text}


def pictures(question: Question) -> Control:
    """Several pictures in order: as many inputs as the field allows, at most `MOST_PICTURES`; empty ones are left.

    Of the empty ones the page shows the first only. Where the request has a field for it, a face is chosen in each.
    """
    name, face = question.name, question.face
    build = picture_picker if face is None else face_picker
    count = min(question.limits.get("max_length", MOST_PICTURES), MOST_PICTURES)
    required = question.info.is_required()
    with gr.Column(elem_classes=["eis-several"]):
        widgets = [
            build(f"{question.label} {number}", optional=number > 1 or not required) for number in range(1, count + 1)
        ]

    def read(*values: Mapping[str, Any] | None) -> dict[str, Any]:
        given = [value for value in values if value and value.get("image")]
        if not given and question.info.is_required():
            raise InvalidRequest(f"{question.label}: choose a picture first.", field=name)
        said = {name: [value["image"] for value in given]} if given else {}
        faces = [value.get("chosen") for value in given]
        if face is not None and any(number is not None for number in faces):
            said[face] = faces
        return said

    def show(request: Mapping[str, Any]) -> list[Any]:
        value = request.get(name)
        first = gr.update(value=value) if isinstance(value, Mapping) else gr.skip()
        return [first, *(gr.skip() for _ in widgets[1:])]

    fields = (name,) if face is None else (name, face)
    return Control(fields, widgets, read, show, pictures={name: 0}, face=face)
