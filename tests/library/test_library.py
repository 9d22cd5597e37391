"""What the library answers, adds, removes and finds damaged."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from app.errors import Conflict, InvalidRequest, NotFound, UnknownModel, WeightsMissing
from app.models import catalog, installing
from app.models.catalog_controls import CONTROLNETS
from app.models.catalog_editing import EDITING
from app.models.catalog_qwen import QWEN
from app.models.inspect_file import PICKLES
from app.models.installed import Installed, dump, load
from app.models.installing import is_slug, slug
from app.models.library import ModelLibrary
from app.models.licences import licence_notes
from app.models.spec import Licence
from tests.library.hub_server import HubServer

Maker = Callable[..., ModelLibrary]


def write_lora(file: Path, seed: int = 0) -> Path:
    generator = numpy.random.default_rng(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    state = {
        f"{stem}.lora_down.weight": generator.standard_normal((4, 768), dtype=numpy.float32),
        f"{stem}.lora_up.weight": generator.standard_normal((320, 4), dtype=numpy.float32),
        f"{stem}.alpha": numpy.array(4.0, dtype=numpy.float32),
    }
    save_file(state, file)
    return file


def write_folder(folder: Path) -> Path:
    """A diffusers folder with everything that recognition reads."""
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    classes = {
        "unet": "diffusers",
        "vae": "diffusers",
        "text_encoder": "transformers",
        "tokenizer": "transformers",
        "scheduler": "diffusers",
    }
    for name, library in classes.items():
        (folder / name).mkdir(parents=True)
        index[name] = [library, "Some"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "config.json").write_text(json.dumps({"in_channels": 4, "sample_size": 96}))
    (folder / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8, 8, 8]}))
    weights = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for name, stem in weights.items():
        save_file({"w": numpy.zeros(100, dtype=numpy.float32)}, folder / name / f"{stem}.fp16.safetensors")
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "README.md").write_text("hello")
    (folder / "unet" / "old.bin").write_bytes(b"\x80\x04.")
    (folder / "code.py").write_text("raise SystemExit")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token.json").write_text("{}")
    return folder


def test_a_file_on_the_models_disk_needs_no_room_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write_lora(tmp_path / "style.safetensors")
    usage = shutil.disk_usage(tmp_path)._replace(free=installing.RESERVED_BYTES + 10)
    monkeypatch.setattr(installing.shutil, "disk_usage", lambda path: usage)
    assert ModelLibrary(tmp_path).add(file).installed


UNPINNED = {
    "cosxl-edit",
    "depth-anything-v2-small",
    "ecomid",
    "instruct-pix2pix",
    "qwen2.5-vl-7b",
    "rtdetr-r50vd",
    "step1x-edit-v1p0",
    "step1x-edit-v1p1",
    "step1x-edit-v1p2",
    "vitpose-base",
    "wd-eva02-large-tagger-v3",
    "wd-vit-large-tagger-v3",
    "wd-vit-tagger-v3",
    *(spec.id for spec in QWEN),
    *(spec.id for spec in CONTROLNETS if spec.id not in {"controlnet-openpose-sd15", "controlnet-union-sdxl"}),
}
"""Whose commit and bytes no public source states: they are pinned by the first pull."""
LIMITING = ("RAIL", "Fair AI")
"""Licences that allow commercial use and limit use all the same."""
STORED_KINDS = ("/*", ".json", ".safetensors", ".gguf", ".onnx", ".csv")


def test_the_catalogs_rows_hold_together():
    ids = [spec.id for spec in catalog.CATALOG]
    assert len(ids) == len(set(ids)) >= 38
    for spec in catalog.CATALOG:
        assert is_slug(spec.id) and spec.title and spec.description and spec.licence.name
        assert spec.is_pullable != spec.comes_along
        pinned = re.fullmatch(r"[0-9a-f]{40}", spec.revision)
        assert spec.comes_along or spec.sources or bool(pinned) != (spec.id in UNPINNED), f"{spec.id} is not pinned"
        assert set(spec.parts) <= set(ids) - {spec.id}
        assert spec.kind != "checkpoint" or (spec.tasks and spec.recommended)
        limits = any(word in spec.licence.name for word in LIMITING)
        assert spec.licence.ask == (limits or not spec.licence.commercial)
        names = (*spec.files, *(source.path for source in spec.sources))
        for name in names:
            assert name.endswith((*STORED_KINDS, *PICKLES)), name
        assert set(spec.stored_as) <= set(names)
        for name, digest in spec.sha256.items():
            assert name in spec.files and re.fullmatch(r"[0-9a-f]{64}", digest)
        weights = [name for name in names if name.endswith((".safetensors", ".gguf", ".onnx", *PICKLES))]
        assert spec.comes_along or weights or (spec.parts and not names)
        if spec.kind in ("faces", "image-encoder", "identity", "ip-adapter") and spec.repo:
            assert set(weights) - set(spec.sha256) <= {"pulid_v1.bin", "diffusion_pytorch_model.safetensors"}
        if spec.options.get("layout") == "diffusers" and spec.kind == "checkpoint" and not spec.embedded:
            owns_vae = any(name.startswith("vae/") and name.endswith(".safetensors") for name in spec.files)
            assert owns_vae != ("sdxl-vae-fp16-fix" in spec.parts), "exactly one autoencoder"


def test_every_adapters_row_names_the_encoder_that_is_its_part():
    rows = {spec.id: spec for spec in catalog.CATALOG}
    adapters = [spec for spec in rows.values() if spec.kind == "ip-adapter" and spec.tasks]
    assert len(adapters) >= 12
    for spec in adapters:
        assert spec.options["projection"] in {"plain", "plus", "full", "faceid", "faceid-plus"}
        assert spec.options["encoder"] in spec.parts
        assert rows[spec.options["encoder"]].kind in {"image-encoder", "faces"}
        if spec.options["projection"].startswith("faceid"):
            assert rows[spec.options["faces"]].kind == "faces" and spec.options["faces"] in spec.parts


def test_what_must_not_be_sold_is_said():
    rows = {spec.id: spec for spec in catalog.CATALOG}
    assert licence_notes([rows["sdxl"], rows["pulid"], rows["ip-adapter-plus-sdxl"]]) == []
    notes = licence_notes([rows["pulid"], rows["antelopev2"], rows["instantid"], rows["buffalo_l"], rows["antelopev2"]])
    assert len(notes) == 2 and "antelopev2, buffalo_l" in notes[0] and "no commercial use" in notes[0]
    assert "instantid" in notes[1] and rows["instantid"].licence.url in notes[1]
    assert not licence_notes([dataclasses.replace(rows["sdxl"], licence=Licence("not stated", "", commercial=False))])


def test_pocket_is_what_auto_means_on_a_fresh_machine(tmp_path: Path):
    library = ModelLibrary(tmp_path)
    row = library.get("pocket")
    assert row.spec.embedded and set(row.spec.tasks) == {"text-to-image", "image-to-image", "inpaint"}
    if row.installed:
        assert library.choose(["text-to-image"]).spec.id == "pocket"
        assert row.spec.bytes == row.bytes_on_disk > 0 and (row.path / "model_index.json").is_file()
        hashes = {hashlib.sha256(file.read_bytes()).hexdigest() for file in row.path.rglob("*.safetensors")}
        assert row.sha256 in hashes
    assert not (tmp_path / "models").exists(), "asking made a folder"


def test_questions_are_answered_by_name_and_task(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    assert [row.spec.id for row in library.rows()] == ["base", "fast", "painter", "vae"]
    for name in ("nothing", "../base", "base/", "", "x" * 300, "BASE"):
        with pytest.raises(UnknownModel):
            library.get(name)
    with pytest.raises(InvalidRequest, match="does not serve text-to-image"):
        library.require("painter", task="text-to-image")
    with pytest.raises(WeightsMissing, match=r"`eis models pull base` fetches it") as caught:
        library.require("base", task="inpaint")
    assert caught.value.details["command"] == "eis models pull base"
    with pytest.raises(WeightsMissing, match="eis models pull"):
        library.choose(["inpaint"])
    library.pull("fast", accept_licence=True)
    assert library.choose(["inpaint", "other"]).spec.id == "fast"
    with pytest.raises(WeightsMissing):
        library.choose(["upscale"])


def test_a_model_whose_part_is_missing_is_not_installed(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    library.pull("base")
    installing.shutil.rmtree(tmp_path / "models" / "vae")
    row = library.get("base")
    assert not row.installed and row.path is None and row.bytes_on_disk > 0
    hub.seen.clear()
    assert library.pull("base").installed
    assert all("/maker/vae/" in seen.path for seen in hub.seen), "only the part was fetched again"


def test_another_process_sees_a_model_as_soon_as_it_stands(hub: HubServer, library_at: Maker, tmp_path: Path):
    """A reader that asked before the pull, and goes on asking, needs no restart; and no half model is ever seen."""
    program = (
        "import sys, pathlib, tests.library.conftest as c\n"
        "from app.models.library import ModelLibrary\n"
        "library = ModelLibrary(pathlib.Path(sys.argv[1]), catalog=c.CATALOG)\n"
        "print(library.get('vae').installed, flush=True)\n"
        "for line in sys.stdin:\n"
        "    row = library.get('vae')\n"
        "    print(row.installed, row.path is not None and (row.path / 'config.json').is_file(), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        ask = lambda: (reader.stdin.write("?\n"), reader.stdin.flush(), reader.stdout.readline().strip())[2]  # noqa: E731
        assert reader.stdout.readline().strip() == "False"
        library = library_at(tmp_path)
        library.pull("vae", progress=lambda done, total: (ask() == "False False") or pytest.fail("seen too early"))
        assert ask() == "True True"
        library.remove("vae")
        assert ask() == "False False"
        reader.stdin.close()


def test_removing_gives_the_bytes_back_and_keeps_what_others_need(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    library.pull("fast", accept_licence=True)
    with pytest.raises(Conflict, match="part of fast"):
        library.remove("base")
    with pytest.raises(Conflict, match="part of base, fast"):
        library.remove("vae")
    library.remove("fast")
    assert [row.installed for row in library.rows()] == [False] * 4
    left = sum(path.stat().st_size for path in (tmp_path / "models").rglob("*") if path.is_file())
    assert left < 2000, "only pins and locks stay"
    with pytest.raises(Conflict, match="not installed"):
        library.remove("fast")


def test_a_part_that_was_wanted_for_itself_stays(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    library.pull("base")
    library.pull("vae")
    library.remove("base")
    assert library.get("vae").installed
    library.remove("vae")
    assert not library.get("vae").installed


def test_an_unfinished_pull_can_be_thrown_away(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        library.pull("vae", progress=lambda done, total: done > 100_000 and (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.rglob("*.part"))
    library.remove("vae")
    assert not list(tmp_path.rglob("*.part"))


def test_a_reader_keeps_its_open_file_while_the_model_goes(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    path = library.pull("vae").path / "diffusion_pytorch_model.safetensors"
    with path.open("rb") as file:
        library.remove("vae")
        assert file.read() == hub.repos["maker/vae"]["diffusion_pytorch_model.safetensors"]
    assert not path.exists()


def test_the_embedded_model_stays(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="comes with the service"):
        ModelLibrary(tmp_path).remove("pocket")


def test_a_damaged_model_is_found(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    row = library.pull("base")
    weights = row.path / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (row.path / "tokenizer" / "vocab.json").unlink()
    assert library.verify("base") == ["tokenizer/vocab.json", "unet/diffusion_pytorch_model.fp16.safetensors"]


def test_a_broken_record_is_a_missing_model_and_pull_mends_it(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    library.pull("vae")
    for text in ("", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "spec": 3}'):
        (tmp_path / "models" / "vae" / "model.json").write_text(text)
        assert not library.get("vae").installed, text
    assert library.pull("vae").installed


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_lora_is_added_by_link_or_copy_and_the_original_may_go(tmp_path: Path, monkeypatch, other_disk: bool):
    def refuse(source: object, target: object) -> None:
        raise OSError(installing.errno.EXDEV, "another disk")

    if other_disk:
        monkeypatch.setattr(os, "link", refuse)
    file = write_lora(tmp_path / "mine" / "My Style (v2).safetensors")
    data = file.read_bytes()
    library = ModelLibrary(tmp_path / "home")
    heard = []
    row = library.add(file, progress=lambda done, total: heard.append((done, total)), licence="CC BY 4.0")
    assert (row.spec.id, row.spec.title, row.spec.kind, row.spec.family) == (
        "my-style-v2",
        "My Style (v2)",
        "lora",
        "sd15",
    )
    assert row.installed and row.spec.licence.name == "CC BY 4.0" and row.sha256 == hashlib.sha256(data).hexdigest()
    assert row.path.name == "weights.safetensors", "no text of a user in the library's file names"
    assert row.path.samefile(file) != other_disk
    assert heard[-1] == (len(data), len(data))
    file.unlink()
    assert row.path.read_bytes() == data
    assert library.rows()[-1].spec == row.spec
    assert library.verify("my-style-v2") == []
    library.remove("my-style-v2")
    with pytest.raises(UnknownModel):
        library.get("my-style-v2")


def test_adding_twice_is_adding_once_and_another_file_needs_another_id(tmp_path: Path):
    library = ModelLibrary(tmp_path / "home")
    first = library.add(write_lora(tmp_path / "style.safetensors"))
    assert library.add(tmp_path / "style.safetensors").spec == first.spec
    other = write_lora(tmp_path / "b" / "style.safetensors", seed=1)
    with pytest.raises(Conflict, match="choose another id"):
        library.add(other)
    assert library.add(other, id="style-2", title="Second").spec.title == "Second"
    assert library.get("style").path.read_bytes() == (tmp_path / "style.safetensors").read_bytes()
    assert not list((tmp_path / "home" / "models" / ".staging").iterdir())


def test_ids_are_slugs_and_the_catalogs_are_its_own(tmp_path: Path):
    library = ModelLibrary(tmp_path / "home")
    file = write_lora(tmp_path / "style.safetensors")
    for name in ("auto", "../x", "a b", "Ä", ".hidden", "A", "", "x" * 81, "a/b"):
        with pytest.raises(InvalidRequest):
            library.add(file, id=name)
    with pytest.raises(Conflict, match="catalog"):
        library.add(file, id="sdxl")
    with pytest.raises(InvalidRequest, match="is a lora, not a checkpoint"):
        library.add(file, kind="checkpoint")
    with pytest.raises(NotFound):
        library.add(tmp_path / "missing.safetensors")
    assert slug("Größe 3.5 (fp16)") == "gr-e-3.5-fp16" and not is_slug(slug("日本"))


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin", "CKPT", "pkl"])
def test_a_pickle_is_refused_with_a_sentence(tmp_path: Path, suffix: str):
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(b"\x80\x04\x95cposix\nsystem\n")
    with pytest.raises(InvalidRequest, match=r"is a pickle.*Get the \.safetensors version"):
        ModelLibrary(tmp_path / "home").add(file)


def test_a_diffusers_folder_is_added_without_its_code_and_pickles(tmp_path: Path):
    library = ModelLibrary(tmp_path / "home")
    folder = write_folder(tmp_path / "My Model")
    blob = tmp_path / "blob"
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").rename(blob)
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").symlink_to(blob)
    row = library.add(folder)
    assert (row.spec.id, row.spec.kind, row.spec.family) == ("my-model", "checkpoint", "sd15")
    assert row.spec.options == {"layout": "diffusers", "variant": "fp16"}
    assert (row.spec.recommended.width, row.spec.recommended.height) == (768, 768)
    files = {path.relative_to(row.path).as_posix() for path in row.path.rglob("*") if path.is_file()}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files and "tokenizer/vocab.json" in files
    assert not [name for name in files if name.endswith((".py", ".bin", ".md", "token.json"))]
    assert not [path for path in row.path.rglob("*") if path.is_symlink()], "what a link points to may move"
    assert library.choose(["inpaint"]).spec.id == "my-model"


def test_a_textual_inversion_is_called_by_its_key_its_id_or_its_file(tmp_path: Path):
    library = ModelLibrary(tmp_path / "home")
    vectors = numpy.ones((2, 768), dtype=numpy.float32)
    save_file({"emb_params": vectors}, tmp_path / "EasyNegative.safetensors")
    save_file({"<cat>": vectors}, tmp_path / "cat.safetensors")
    assert library.add(tmp_path / "EasyNegative.safetensors").spec.options["token"] == "EasyNegative"
    assert library.add(tmp_path / "EasyNegative.safetensors", id="bad").spec.options["token"] == "bad"
    assert library.add(tmp_path / "cat.safetensors").spec.options["token"] == "<cat>"


def test_importing_and_asking_needs_neither_torch_nor_a_network(tmp_path: Path):
    program = (
        "import socket, sys, pathlib\n"
        "def no(*a, **k): raise SystemExit('the network was asked')\n"
        "socket.getaddrinfo = socket.create_connection = no\n"
        "from app.models.library import ModelLibrary\n"
        "library = ModelLibrary(pathlib.Path(sys.argv[1]), hub_url='https://hub.invalid')\n"
        "library.rows()\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)


def test_a_step1x_edit_of_an_earlier_record_is_of_fluxs_family():
    spec = dataclasses.replace(next(row for row in EDITING if row.id == "step1x-edit-v1p2"), family="other")
    record = dump(Installed(spec, "added", "files", {}))
    assert load(record).spec.family == "flux"
    assert load(dump(Installed(dataclasses.replace(spec, loader="x:y"), "added", "files", {}))).spec.family == "other"
