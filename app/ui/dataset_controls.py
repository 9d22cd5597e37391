"""The widget of a training's pictures: many at once, each with its caption."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from app.errors import InvalidRequest
from app.ui.controls import Control, Question
from app.ui.parts import own_input

CAPTIONS = "captions"


def dataset(question: Question) -> Control:
    """Pictures and captions: `{"pictures": [{"image", "name", "caption"}]}`. What a job had is shown again."""
    name = question.name
    widget = _pictures(question, "Pictures", captioned=True)

    def read(value: Mapping[str, Any] | None) -> dict[str, Any]:
        found = [picture for picture in (value or {}).get("pictures") or () if picture.get("image")]
        if not found:
            raise InvalidRequest("Pictures: choose some first.", field=name)
        captions = [str(picture.get("caption") or "") for picture in found]
        said = {name: [picture["image"] for picture in found]}
        return said | ({CAPTIONS: captions} if any(captions) else {})

    def show(request: Mapping[str, Any]) -> list[Any]:
        images = request.get(name)
        if not images:
            return [gr.skip()]
        captions = request.get(CAPTIONS) or [""] * len(images)
        rows = [
            {"image": image, "name": "", "caption": caption} for image, caption in zip(images, captions, strict=False)
        ]
        return [gr.update(value={"pictures": rows})]

    return Control((name, CAPTIONS), [widget], read, show)


def sources(question: Question) -> Control:
    """What each of the pictures was made from, in their order."""
    name = question.name
    widget = _pictures(question, question.label, captioned=False)

    def read(value: Mapping[str, Any] | None) -> dict[str, Any]:
        found = [picture["image"] for picture in (value or {}).get("pictures") or () if picture.get("image")]
        return {name: found} if found else {}

    def show(request: Mapping[str, Any]) -> list[Any]:
        rows = [{"image": image, "name": "", "caption": ""} for image in request.get(name) or ()]
        return [gr.update(value={"pictures": rows})]

    return Control((name,), [widget], read, show)


def _pictures(question: Question, title: str, *, captioned: bool) -> Any:
    told = {"title": title, "limit": question.limits["max_length"], "captioned": captioned}
    return own_input("eis-dataset", "dataset", {"pictures": []}, **told)
