"""Widgets for fields that hold several values: words out of a few, plain numbers, and lines of text."""

from typing import get_args

import gradio as gr

from app.errors import InvalidRequest
from app.ui.controls import Control, Question, literal_values, plain


def several(question: Question) -> Control:
    """Some of a few words, in the order in which they were chosen."""
    words = [word for part in get_args(question.annotation) for found in literal_values(part) for word in found]
    widget = gr.Dropdown(
        words,
        value=list(question.info.get_default() or ()),
        multiselect=True,
        label=question.label,
        info=question.description,
    )
    control = plain(question, widget, lambda value: list(value or ()))
    control.show = lambda request: [gr.update(value=list(request.get(question.name) or ()))]
    return control


def numbers(question: Question) -> Control:
    """Numbers with commas between."""
    widget = gr.Textbox(label=question.label, info=question.description, placeholder="0.8, 0.4")

    def read(typed: str) -> list[float]:
        try:
            return [float(part) for part in (typed or "").replace(";", ",").split(",") if part.strip()]
        except ValueError:
            raise InvalidRequest(f"{question.label}: write numbers with commas between.", field=question.name) from None

    control = plain(question, widget, read)
    control.show = lambda request: [gr.update(value=", ".join(f"{one:g}" for one in request.get(question.name) or ()))]
    return control


def lines(question: Question) -> Control:
    """A text on each line; empty lines count for nothing."""
    widget = gr.Textbox(label=question.label, info=question.description, lines=2, placeholder="one on each line")
    control = plain(question, widget, lambda typed: [line for line in (typed or "").splitlines() if line.strip()])
    control.show = lambda request: [gr.update(value="\n".join(request.get(question.name) or ()))]
    return control
