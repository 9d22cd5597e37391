"""Faces looked for in a form's picture, by a small job of its own, and the choice of one put into the form."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from app.errors import InvalidRequest, ServiceError
from app.ui.forms import Form
from app.ui.people import Choice
from app.ui.session import owner_of
from app.ui.small_jobs import answer_of

CAPABILITY = "detect-faces"


class FaceFinder:
    """The button Find faces of one form's pictures."""

    def __init__(self, service: Any, form: Form) -> None:
        self.service = service
        self.form = form

    def connect(self, settings: Mapping[str, Any]) -> None:
        """Attach a listener to each picture in which a face can be chosen."""
        names = ("model", *self.form.capability.additions)
        told = [widget for name in names if (widget := self.form.widget(name)) is not None]
        for picker in self.form.face_pickers.values():
            picker.act(self.finder(), [picker, *told], picker, **settings)

    def finder(self) -> Callable[..., Any]:
        """A listener that answers what the picture's widget holds then."""

        async def find(event: gr.EventData, request: gr.Request, picked: Any, *told: str) -> Any:
            if (event._data or {}).get("action") != "faces" or not (picked or {}).get("image"):
                return gr.skip()
            shown = {name: picked[name] for name in ("image", "width", "height")}
            try:
                return {**shown, "faces": await self.look(str(picked["image"]), told, owner_of(request))}
            except ServiceError as error:
                return {**shown, "told": error.message}

        return find

    async def look(self, image: str, told: tuple[str, ...], owner: str) -> list[dict[str, Any]]:
        """The faces of a stored picture; what the job was refused for is raised as it was said."""
        wish = {"image": image, "faces_model": self.faces_model(told), "draw": False}
        cancelled = "The search for faces was cancelled."
        return (await answer_of(self.service, CAPABILITY, wish, owner, cancelled=cancelled))["faces"]

    def faces_model(self, told: tuple[str, ...]) -> str:
        """What will look for the face when the wish itself runs, so that both count the faces alike."""
        additions = list(self.form.capability.additions)
        if len(told) < 2 or not additions:
            return "auto"
        return self.form.choices.serving(additions[0], told[1] or "auto", told[0] or "auto")


def after_choice(form: Form, values: Mapping[str, Any], choice: Choice, number: int) -> dict[str, Any]:
    """Picker -> what its widget holds once a face of a refused job's picture is chosen.

    `values` are what the widgets hold now. `InvalidRequest` where the form's picture is another one by now.
    """
    shown = {"image": choice.image, "width": choice.size[0], "height": choice.size[1]}
    pickers = [picker for picker in form.face_pickers if picker.partition(".")[0] == choice.field]
    if not pickers:
        # The person is the one of the picture that is changed: the number stands where another picture of it would.
        pickers, shown = [next(iter(form.face_pickers))], {"image": None}
    picker = next((one for one in pickers if (values.get(one) or {}).get("image") == shown["image"]), None)
    if picker is None:
        raise InvalidRequest("The form has another picture now; press Generate to see its faces.")
    faces = list(choice.faces) if shown["image"] else None
    return {picker: {**shown, "faces": faces, "chosen": number}}
