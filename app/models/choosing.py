"""Which model serves where a request names none: the best that is installed, else the line that fetches one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import WeightsMissing
from app.models.spec import ModelSpec

FACES = "faces"
"""The task of a face pack, which serves by itself and under every model that it is a part of."""


@dataclass(frozen=True)
class ModelRow:
    """A model and where it stands.

    `path` is the folder (diffusers layout) or the file to open; None where the model or one of its parts is missing,
    and where the model is code alone.
    `sha256` is that of its largest file, as checked when it was installed.
    """

    spec: ModelSpec
    installed: bool
    path: Path | None
    bytes_on_disk: int
    sha256: str | None = None


def choose(
    rows: Sequence[ModelRow], tasks: Iterable[str], additions: Sequence[str] = (), named: Sequence[ModelSpec] = ()
) -> ModelRow:
    """The installed model of the highest rank that serves one of the tasks and for which every addition is installed.

    Models that all of the `named` additions were made for go before others, whatever their rank, and then those that
    serve an earlier one of the tasks. Where no installed model has them all, `WeightsMissing` names what fetches the
    addition for the best of them.
    """
    order = list(tasks)
    wanted = set(order)
    serving = sorted(
        (row for row in rows if row.installed and wanted & set(row.spec.tasks)),
        key=lambda row: (
            all(spec.fits(row.spec) for spec in named),
            -min(order.index(task) for task in wanted & set(row.spec.tasks)),
            row.spec.rank,
        ),
        reverse=True,
    )
    if not serving:
        names = " or ".join(order)
        raise WeightsMissing(
            f"No installed model serves {names}{_line(rows, lambda spec: bool(wanted & set(spec.tasks)))}."
        )
    for row in serving:
        if all(_installed_additions(rows, addition, row.spec) for addition in additions):
            return row
    for addition in additions:
        if not _installed_additions(rows, addition, serving[0].spec):
            raise _lack(rows, wanted, addition, serving[0].spec)
    raise AssertionError("the best model lacks no addition")


def _lack(rows: Sequence[ModelRow], tasks: set[str], addition: str, best: ModelSpec) -> WeightsMissing:
    """What fetches the addition for the best base; where none is known for it, a base and what goes on that."""
    if _known_additions(rows, addition, best):
        return _missing(rows, addition, best)
    bases = [row.spec for row in rows if tasks & set(row.spec.tasks) and row.spec.is_pullable]
    for base in bases:
        known = _known_additions(rows, addition, base)
        if known:
            lines = [f"eis models pull {base.id}", f"eis models pull {known[0].id}"]
            return WeightsMissing(
                f"Nothing that is known serves {addition} on the model {best.id!r}; "
                f"`{lines[0]}` and `{lines[1]}` fetch a model and what goes on it.",
                model=known[0].id,
                command=" && ".join(lines),
            )
    return _missing(rows, addition, best)


def _known_additions(rows: Sequence[ModelRow], task: str, base: ModelSpec) -> list[ModelSpec]:
    """What could be fetched for this task on this base, the best first."""
    known = [row.spec for row in rows if task in row.spec.tasks and row.spec.fits(base) and row.spec.is_pullable]
    return sorted(known, key=lambda spec: _rank_on(spec, base), reverse=True)


def choose_addition(rows: Sequence[ModelRow], task: str, base: ModelSpec) -> ModelRow:
    """The best installed addition that serves this task on this base; `WeightsMissing` names what fetches one."""
    fitting = _installed_additions(rows, task, base)
    if fitting:
        return max(fitting, key=lambda row: _rank_on(row.spec, base))
    raise _missing(rows, task, base)


def _missing(rows: Sequence[ModelRow], task: str, base: ModelSpec) -> WeightsMissing:
    known = _known_additions(rows, task, base)
    if not known:
        return WeightsMissing(f"Nothing that is known serves {task} on the model {base.id!r}.", model=base.id)
    best = known[0]
    return WeightsMissing(
        f"Nothing that is installed serves {task} on the model {base.id!r}; `eis models pull {best.id}` fetches what "
        "does.",
        model=best.id,
        command=f"eis models pull {best.id}",
    )


def _installed_additions(rows: Sequence[ModelRow], task: str, base: ModelSpec) -> list[ModelRow]:
    return [row for row in rows if row.installed and task in row.spec.tasks and row.spec.fits(base)]


def _rank_on(spec: ModelSpec, base: ModelSpec) -> tuple[bool, int]:
    return spec.options.get("best_on") == base.id, spec.rank


def _line(rows: Sequence[ModelRow], serves: Callable[[ModelSpec], bool]) -> str:
    for row in rows:
        if row.spec.is_pullable and serves(row.spec):
            return f"; `eis models pull {row.spec.id}` fetches one"
    return ""
