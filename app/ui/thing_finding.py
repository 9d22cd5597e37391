"""Things clicked in a form's picture: their masks are found by a small job, and shown in every form of the group."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from app.errors import InvalidRequest, ServiceError
from app.ui.forms import Form
from app.ui.picture_controls import pointed
from app.ui.session import owner_of
from app.ui.small_jobs import answer_of

CAPABILITY = "inpaint-anything/segment"

KEPT = ("image", "width", "height", "clicks", "box", "shared")
"""What of a picker's value stays when its masks are looked for anew."""


class ThingFinder:
    """The pickers of the forms that act on one thing of a picture: they show the same picture and the same mask."""

    def __init__(self, service: Any, forms: Sequence[Form]) -> None:
        self.service = service
        self.forms = [form for form in forms if form.thing_picker is not None]

    def connect(self, settings: Mapping[str, Any]) -> None:
        """Attach a listener to each picker; its answer goes to all of them."""
        pickers = [form.thing_picker for form in self.forms]
        for at, form in enumerate(self.forms):
            told = [form.thing_picker, form.widget("segmenter")]
            form.thing_picker.act(self.finder(at), told, pickers, **settings)

    def finder(self, at: int) -> Callable[..., Any]:
        """A listener of the picker at this place; answers what each picker holds then."""

        async def find(event: gr.EventData, request: gr.Request, picked: Any, segmenter: str) -> Any:
            action = (event._data or {}).get("action")
            found: list[Any] = [gr.skip() for _ in self.forms]
            if action == "share":
                found = [gr.skip() if other == at else picked for other in range(len(self.forms))]
            elif action == "segment" and (picked or {}).get("image"):
                value = await self.looked_for(picked, segmenter, owner_of(request))
                found = [value for _ in self.forms]
            return found if len(found) > 1 else found[0]

        return find

    async def looked_for(self, picked: Mapping[str, Any], segmenter: str, owner: str) -> dict[str, Any]:
        """The picker's value with the masks of what was clicked, or with why there are none."""
        kept = {name: picked[name] for name in KEPT if name in picked}
        try:
            masks = await self.look(picked, segmenter, owner)
        except ServiceError as error:
            return {**kept, "told": error.message}
        chosen = max(range(len(masks)), key=lambda number: masks[number]["score"] or 0.0)
        return {**kept, "masks": masks, "chosen": chosen, "mask": masks[chosen]["mask"]}

    async def look(self, picked: Mapping[str, Any], segmenter: str, owner: str) -> list[dict[str, Any]]:
        """The masks that are not empty; what the job was refused for is raised as it was said."""
        wish = {"image": str(picked["image"]), "segmenter": segmenter or "auto", "inline": True, **pointed(picked)}
        told = await answer_of(self.service, CAPABILITY, wish, owner, cancelled="The search was cancelled.")
        found = [mask for mask in told["masks"] if mask["box"]]
        if not found:
            raise InvalidRequest("Nothing was found there: click another place of it, or draw a box around it.")
        return found
