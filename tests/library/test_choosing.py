"""What `auto` and an addition without a name mean: the best that is installed and fits, or the line that fetches it."""

import dataclasses
from pathlib import Path

import pytest

from app.errors import WeightsMissing
from app.models import catalog, choosing
from app.models.choosing import ModelRow
from app.models.library import ModelLibrary

TASK = ["text-to-image"]
ROWS = {spec.id: ModelRow(spec, False, None, 0) for spec in catalog.CATALOG}


def rows(*installed: str) -> list[ModelRow]:
    """The catalog with these installed and nothing else."""
    return [dataclasses.replace(row, installed=id in installed) for id, row in ROWS.items()]


def missing(found: pytest.ExceptionInfo[WeightsMissing]) -> str:
    return found.value.details["command"]


def test_auto_is_the_best_checkpoint_that_has_every_addition():
    assert choosing.choose(rows("pocket", "sdxl", "sd15"), TASK).spec.id == "sdxl"
    both = rows("pocket", "pocket-pulid", "sdxl", "realvisxl-v5", "pulid")
    assert choosing.choose(both, TASK, ["pulid"]).spec.id == "realvisxl-v5"
    assert choosing.choose(rows("pocket", "pocket-pulid", "sdxl"), TASK, ["pulid"]).spec.id == "pocket"
    assert choosing.choose(rows("pocket", "sd15", "ip-adapter-sd15", "sdxl"), TASK, ["ip-adapter"]).spec.id == "sd15"


def test_auto_serves_the_first_of_several_tasks_whatever_the_rank():
    both = rows("pocket", "qwen-image-edit-2511")
    assert ROWS["qwen-image-edit-2511"].spec.rank > ROWS["pocket"].spec.rank
    assert choosing.choose(both, ("text-to-image", "qwen-edit")).spec.id == "pocket"
    assert choosing.choose(both, ("qwen-edit", "text-to-image")).spec.id == "qwen-image-edit-2511"
    assert choosing.choose(rows("qwen-image-edit-2511"), ("text-to-image", "qwen-edit")).spec.family == "qwen-image"


def test_auto_without_an_addition_names_what_the_best_checkpoint_lacks():
    with pytest.raises(WeightsMissing) as found:
        choosing.choose(rows("pocket", "sdxl", "sd15"), TASK, ["ip-adapter"])
    assert missing(found) == "eis models pull ip-adapter-plus-sdxl"
    with pytest.raises(WeightsMissing) as found:
        choosing.choose(rows("sdxl", "instantid"), TASK, ["instantid", "ecomid"])
    assert missing(found) == "eis models pull ecomid"


def test_an_addition_fits_its_family_and_pocket_only_its_own():
    def addition(task: str, base: str, *installed: str) -> str:
        return choosing.choose_addition(rows(*installed), task, ROWS[base].spec).spec.id

    everything = tuple(ROWS)
    assert addition("pulid", "sdxl", *everything) == "pulid"
    assert addition("pulid", "pocket", *everything) == "pocket-pulid"
    assert addition("ecomid", "pocket", *everything) == "pocket-ecomid"
    assert addition("ip-adapter", "sd15", *everything) == "ip-adapter-plus-sd15"
    assert addition("ip-adapter", "sdxl", "ip-adapter-sdxl", "ip-adapter-sd15") == "ip-adapter-sdxl"
    with pytest.raises(WeightsMissing) as found:
        addition("pulid", "sdxl", "pocket-pulid")
    assert missing(found) == "eis models pull pulid"
    with pytest.raises(WeightsMissing, match="Nothing that is known serves pulid on the model 'sd15'"):
        addition("pulid", "sd15", *everything)
    with pytest.raises(WeightsMissing, match="'pocket'") as found:
        addition("pulid", "pocket", "pulid")
    assert "command" not in found.value.details, "what comes with the service is not offered for a pull"


def test_the_first_pulid_goes_before_the_second_on_the_base_that_it_is_better_on():
    lightning = ROWS["sdxl-lightning-4step"].spec
    assert choosing.choose_addition(rows("pulid", "pulid-v1"), "pulid", lightning).spec.id == "pulid-v1"
    assert choosing.choose_addition(rows("pulid"), "pulid", lightning).spec.id == "pulid"
    with pytest.raises(WeightsMissing) as found:
        choosing.choose_addition(rows(), "pulid", lightning)
    assert missing(found) == "eis models pull pulid-v1"


def test_the_library_asks_for_additions_by_the_row_of_their_base(tmp_path: Path):
    library = ModelLibrary(tmp_path)
    with pytest.raises(WeightsMissing, match="eis models pull ip-adapter-plus-sd15"):
        library.choose_addition("ip-adapter", library.get("sd15"))
    with pytest.raises(WeightsMissing):
        library.choose(TASK, additions=["no such thing"])


def test_an_embedded_model_is_there_with_its_weights_and_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.models.library.PACKAGE_PARENT", tmp_path)
    library = ModelLibrary(tmp_path / "home")
    folder = tmp_path / "app" / "pocket" / "identity"
    assert not library.get("pocket-pulid").installed
    with pytest.raises(WeightsMissing, match="not part of this copy"):
        library.require("pocket-pulid")
    (folder / "pocket-pulid").mkdir(parents=True)
    (folder / "pocket-pulid" / "weights.safetensors").write_bytes(b"w" * 30)
    (folder / "pocket-pulid" / "note.json").write_text("{}" * 100)
    assert not library.get("pocket-pulid").installed, "its parts are missing"
    parts = {
        "pocket-faces": "detector.onnx",
        "pocket-clip": "weights.safetensors",
        "pocket-pulid-lora": "lora.safetensors",
    }
    for part, name in parts.items():
        (folder / part).mkdir()
        assert not library.get(part).installed
        (folder / part / name).write_bytes(b"w")
    row = library.require("pocket-pulid")
    assert row.path == folder / "pocket-pulid" / "weights.safetensors" and row.bytes_on_disk == 230
    assert library.get("pocket-faces").path == folder / "pocket-faces"


def test_where_nothing_goes_on_the_best_base_a_base_and_what_goes_on_it_are_named():
    """A fresh copy whose embedded base has no such addition: both lines, in order."""
    with pytest.raises(WeightsMissing) as found:
        choosing.choose(rows("pocket"), TASK, ["ecomid"])
    assert missing(found) == "eis models pull sdxl && eis models pull ecomid"
    assert "`eis models pull sdxl` and `eis models pull ecomid`" in found.value.message


def test_a_module_that_this_copy_comes_without_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing fetches it, so a list that named it would promise what cannot be had."""
    monkeypatch.setattr("app.models.library.PACKAGE_PARENT", tmp_path)
    library = ModelLibrary(tmp_path / "home")

    def listed() -> set[str]:
        return {row.spec.id for row in library.rows()}

    assert "pocket-pulid" not in listed() and {"pocket", "pocket-faces", "pulid"} <= listed()
    folder = tmp_path / "app" / "pocket" / "identity" / "pocket-pulid"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"w")
    assert "pocket-pulid" in listed()
