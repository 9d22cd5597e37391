"""What a form says about models: which there are for a capability, and what `auto` means for each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.errors import NotFound, WeightsMissing
from app.models.spec import ModelSpec, Recommended

SHAPES = (
    ("Square", 1, 1),
    ("Portrait 3:4", 3, 4),
    ("Landscape 4:3", 4, 3),
    ("Tall 9:16", 9, 16),
    ("Wide 16:9", 16, 9),
)


class ModelChoices:
    """The models that serve one capability, read from the library each time so that a pull shows at once."""

    def __init__(
        self,
        library: Any,
        tasks: Sequence[str],
        additions: Mapping[str, str] | None = None,
        optional: Mapping[str, str] | None = None,
    ) -> None:
        """For each field that names a model which goes on another, the task that it must serve.

        A wish may do without those of `optional`.
        """
        self._library = library
        self._tasks = tuple(tasks)
        self._needed = tuple((additions or {}).values())
        self._additions = {**(additions or {}), **(optional or {})}

    def entries(self) -> list[tuple[str, str]]:
        """(text, id) for the dropdown: auto, the installed, then those that a pull line would fetch."""
        checkpoints = [row for row in self._library.rows() if row.spec.kind == "checkpoint"]
        rows = [row for row in checkpoints if {*self._tasks} & {*row.spec.tasks}]
        automatic = self._automatic()
        first = f"auto · {automatic.title}" if automatic else "auto · no model is installed"
        ready = [(row.spec.title, row.spec.id) for row in rows if row.installed]
        absent = [(f"{row.spec.title} · not installed", row.spec.id) for row in rows if not row.installed]
        return [(first, "auto"), *ready, *absent]

    def known(self, model: str) -> str:
        """The model itself, or auto where the dropdown does not have it: it was removed, or was never here."""
        return model if any(id == model for _, id in self.entries()) else "auto"

    def missing_note(self, model: str) -> str:
        """How to get a model that is not installed; empty when there is nothing to say."""
        try:
            if model == "auto":
                self._choose()
            else:
                row = self._library.require(model)
                for task in self._needed:
                    self._library.choose_addition(task, row)
        except (WeightsMissing, NotFound) as error:
            return error.message
        return ""

    def greeting(self) -> str:
        """What stands where the first picture will be."""
        automatic = self._automatic()
        if automatic is not None and automatic.embedded:
            return (
                "The model that is included draws a little world: cars, boats, lamps, hearts, portraits. "
                "Try: a red car, blue background. The Models tab has larger models."
            )
        return "Your pictures appear here as they are made."

    def additions(self, kind: str, model: str | None = None) -> list[dict[str, str]]:
        """The installed LoRAs or textual inversions; of a model, those that fit its family. What has a task of its own
        belongs to another model, and comes with it.
        """
        spec = self._spec(model) if model else None
        return [
            {"id": row.spec.id, "title": row.spec.title}
            for row in self._library.rows()
            if row.spec.kind == kind and row.installed and not row.spec.tasks
            if spec is None or row.spec.family in {spec.family, "other"}
        ]

    def recommended(self, model: str) -> Recommended | None:
        """What the row of this model, or of the one that auto means, recommends."""
        spec = self._spec(model)
        return spec.recommended if spec else None

    def automatic(self, model: str, name: str) -> str:
        """The placeholder of a field that the model's row fills: `auto (18)`."""
        recommended = self.recommended(model)
        value = getattr(recommended, name, None) if recommended else None
        return "auto" if value is None else f"auto ({value:g})" if isinstance(value, float) else f"auto ({value})"

    def fitting(self, field: str, model: str) -> list[tuple[str, str]]:
        """(text, id) for a field that names an addition: auto, then the installed ones that fit the model."""
        task, base = self._additions[field], self._spec(model)
        rows = [row for row in self._library.rows() if row.installed and task in row.spec.tasks]
        if not self._tasks:  # it serves alone
            first = f"auto · {self._library.choose((task,)).spec.title}" if rows else "auto · nothing is installed"
            return [(first, "auto"), *((row.spec.title, row.spec.id) for row in rows)]
        fitting = [row for row in rows if base is not None and row.spec.fits(base)]
        first = "auto · nothing that is installed fits"
        if fitting:
            first = f"auto · {self._library.choose_addition(task, self._library.get(base.id)).spec.title}"
        return [(first, "auto"), *((row.spec.title, row.spec.id) for row in fitting)]

    def serving(self, field: str, wished: str, model: str) -> str:
        """The id of the addition that a form's field means on this model; auto where nothing that is installed fits."""
        base = self._spec(model)
        if wished != "auto" or base is None:
            return wished
        try:
            return self._library.choose_addition(self._additions[field], self._library.get(base.id)).spec.id
        except WeightsMissing:
            return "auto"

    def _choose(self) -> Any:
        return self._library.choose(self._tasks, self._needed)

    def _spec(self, model: str) -> ModelSpec | None:
        """The row of this model, or of the one that auto means; None where there is none."""
        if model == "auto":
            return self._automatic()
        try:
            return self._library.get(model).spec
        except NotFound:
            return None

    def _automatic(self) -> ModelSpec | None:
        try:
            return self._choose().spec
        except WeightsMissing:
            return None


def size_presets(recommended: Recommended | None) -> list[tuple[str, str]]:
    """Entries for the size dropdown: the model's own size, and other shapes with about as many pixels."""
    if recommended is None:
        return [("the model's own", "")]
    width, height = recommended.width, recommended.height
    step = 64 if min(width, height) >= 512 else 16
    entries = [(f"auto ({width} × {height})", "")]
    for title, across, down in SHAPES:
        scale = (width * height / (across * down)) ** 0.5
        sides = [max(step, round(part * scale / step) * step) for part in (across, down)]
        entries.append((f"{title} · {sides[0]} × {sides[1]}", f"{sides[0]}x{sides[1]}"))
    return entries
