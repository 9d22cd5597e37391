"""What identity models, IP-Adapters, face stacks and image encoders are recognised as, and how a user's own come in."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from app.errors import Conflict, InvalidRequest
from app.models import catalog, installing
from app.models.inspect_file import inspect
from app.models.library import ModelLibrary
from tests.library.test_inspect_file import sparse

Shapes = dict[str, tuple[int, ...]]
ROWS = {spec.id: spec for spec in catalog.CATALOG}
WIDTH = {"sd15": 768, "sdxl": 2048}


def pulid(version: str) -> Shapes:
    shapes: Shapes = {"id_adapter_attn_layers.1.id_to_k.weight": (640, 2048)}
    shapes["id_adapter_attn_layers.1.id_to_v.weight"] = (640, 2048)
    shapes |= {f"id_adapter.mapping_{layer}.0.weight": (1024, 1024) for layer in range(5)}
    if version == "1":
        shapes |= {f"id_adapter.mapping_patch_{layer}.0.weight": (1024, 1024) for layer in range(5)}
        return shapes | {"id_adapter.body.0.weight": (1024, 1280)}
    shapes |= {"id_adapter.latents": (1, 32, 1024), "id_adapter.proj_out": (1024, 2048)}
    return shapes | {"id_adapter.id_embedding_mapping.0.weight": (1024, 1280)}


def published_as_adapter(shapes: Shapes) -> Shapes:
    """The same under the names that the community publishes it with."""
    renamed = {}
    for name, shape in shapes.items():
        name = name.replace("id_adapter_attn_layers.", "ip_adapter.").replace("id_adapter.", "image_proj.")
        renamed[name.replace("id_to_k", "to_k_ip").replace("id_to_v", "to_v_ip")] = shape
    return renamed


def adapter(family: str, projection: Shapes) -> Shapes:
    keys = {f"ip_adapter.1.to_{part}_ip.weight": (320, WIDTH[family]) for part in "kv"}
    return keys | {f"image_proj.{name}": shape for name, shape in projection.items()}


ADAPTERS = {
    "plain": ("sd15", {"proj.weight": (3072, 1024), "norm.weight": (768,)}, "plain", ("clip-vit-h",)),
    "plain with bigG": ("sdxl", {"proj.weight": (8192, 1280), "norm.weight": (2048,)}, "plain", ("clip-vit-bigg",)),
    "plain for SDXL": ("sdxl", {"proj.weight": (8192, 1024), "norm.weight": (2048,)}, "plain", ("clip-vit-h",)),
    "plus": ("sd15", {"latents": (1, 16, 768), "proj_in.weight": (768, 1280)}, "plus", ("clip-vit-h",)),
    "plus for SDXL": ("sdxl", {"latents": (1, 16, 1280), "proj_in.weight": (1280, 1280)}, "plus", ("clip-vit-h",)),
    "plus with bigG": ("sdxl", {"latents": (1, 16, 1280), "proj_in.weight": (1280, 1664)}, "plus", ("clip-vit-bigg",)),
    "full face": ("sd15", {"proj.0.weight": (1280, 1280), "proj.3.weight": (768,)}, "full", ("clip-vit-h",)),
    "faceid": ("sd15", {"proj.0.weight": (1024, 512), "norm.weight": (768,)}, "faceid", ("buffalo_l",)),
    "faceid for SDXL": ("sdxl", {"proj.0.weight": (1024, 512), "norm.weight": (2048,)}, "faceid", ("buffalo_l",)),
    "faceid plus": (
        "sd15",
        {"proj.0.weight": (1024, 512), "perceiver_resampler.proj_in.weight": (768, 1280)},
        "faceid-plus",
        ("buffalo_l", "clip-vit-h"),
    ),
}


@pytest.mark.parametrize("case", list(ADAPTERS))
def test_ip_adapters_tell_their_form_their_family_and_their_encoder(tmp_path: Path, case: str):
    family, projection, form, parts = ADAPTERS[case]
    found = inspect(sparse(tmp_path / "mine.safetensors", adapter(family, projection)))
    assert (found.kind, found.family, found.tasks) == ("ip-adapter", family, ("ip-adapter",))
    assert (found.options["projection"], found.parts) == (form, parts)
    assert found.options["encoder"] == parts[-1] and found.loader == "app.models.ip_adapter:load"
    assert found.options.get("faces") == ("buffalo_l" if form.startswith("faceid") else None)
    assert (found.licence is not None) == form.startswith("faceid")


def test_the_second_faceid_plus_is_told_by_its_name_alone(tmp_path: Path):
    shapes = adapter("sd15", {"perceiver_resampler.proj_in.weight": (768, 1280), "proj.0.weight": (1024, 512)})
    first = inspect(sparse(tmp_path / "ip-adapter-faceid-plus_sd15.safetensors", shapes))
    second = inspect(sparse(tmp_path / "ip-adapter-faceid-plusv2_sd15.safetensors", shapes))
    assert "shortcut" not in first.options and second.options["shortcut"] == "true"
    assert ROWS["ip-adapter-faceid-plusv2-sd15"].options["shortcut"] == "true"


def test_every_published_adapter_is_recognised_as_its_row_says(tmp_path: Path):
    """The rows' options and the recognition must not disagree: both choose the encoder."""
    by_form = {(family, form, parts): projection for family, projection, form, parts in ADAPTERS.values()}
    seen = 0
    for spec in ROWS.values():
        if spec.kind != "ip-adapter" or not spec.tasks or spec.embedded:
            continue
        projection = by_form[spec.family, spec.options["projection"], spec.parts]
        found = inspect(sparse(tmp_path / f"{spec.id}.safetensors", adapter(spec.family, projection)))
        assert found.options == spec.options and found.parts == spec.parts and found.loader == spec.loader
        seen += 1
    assert seen == 12


@pytest.mark.parametrize("version", ["1", "1.1"])
@pytest.mark.parametrize("community", [False, True])
def test_both_pulids_are_told_apart_under_both_kinds_of_names(tmp_path: Path, version: str, community: bool):
    shapes = pulid(version)
    found = inspect(sparse(tmp_path / "a.safetensors", published_as_adapter(shapes) if community else shapes))
    assert (found.kind, found.family, found.tasks, found.options["version"]) == (
        "identity",
        "sdxl",
        ("pulid",),
        version,
    )
    assert found.parts == ROWS["pulid"].parts == ROWS["pulid-v1"].parts and found.loader == "app.models.pulid:load"
    if community:
        assert sorted(found.renamed.values()) == sorted(shapes)
    else:
        assert found.renamed is None


def network() -> Shapes:
    return {
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "add_embedding.linear_1.weight": (1280, 2816),
    }


REFUSED = {
    "PuLID for FLUX": ({"pulid_ca.0.to_q.weight": (2048, 3072), "pulid_encoder.latents": (1, 32, 1024)}, "FLUX"),
    "half a PuLID": ({"id_adapter.body.0.weight": (1024, 1280)}, "only a part of a PuLID"),
    "both PuLIDs": (pulid("1") | pulid("1.1"), "neither its v1 nor its v1.1"),
    "InstantID's adapter": (
        adapter("sdxl", {"latents": (1, 16, 1280), "proj_in.weight": (1280, 512)}),
        "beside ControlNetModel",
    ),
    "Kolors": ({"ip_adapter.1.to_k_ip.weight": (640, 4096), "image_proj.proj.weight": (1, 1024)}, "another family"),
    "a small encoder's": (adapter("sd15", {"proj.weight": (3072, 768)}), "width 768"),
    "no projection": (adapter("sd15", {"something.weight": (3, 3)}), "no form"),
    "a whole CLIP": (
        {"visual.blocks.0.attn.inner_attn_ln.weight": (1024,), "text.positional_embedding": (77, 768)},
        "half that sees",
    ),
    "another EVA": (
        {"visual.blocks.0.attn.inner_attn_ln.weight": (768,), "visual.cls_token": (1, 1, 768)},
        "another size",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_not_served_is_refused_with_its_name(tmp_path: Path, case: str):
    shapes, word = REFUSED[case]
    with pytest.raises(InvalidRequest, match=word):
        inspect(sparse(tmp_path / "a.safetensors", shapes))


def test_a_community_pulid_comes_in_under_pulids_own_names(tmp_path: Path):
    generator = numpy.random.default_rng(0)
    names = list(published_as_adapter(pulid("1")))
    content = {name: generator.standard_normal((2, 3), dtype=numpy.float32) for name in names}
    save_file(content, tmp_path / "ip-adapter_pulid_sdxl.safetensors")
    library = ModelLibrary(tmp_path / "home")
    row = library.add(tmp_path / "ip-adapter_pulid_sdxl.safetensors", id="mine")
    assert not row.installed and row.spec.parts == ROWS["pulid-v1"].parts, "it works once its parts are there"
    assert library.is_pullable("mine"), "a pull brings its parts"
    strange = ModelLibrary(tmp_path / "home", catalog=(ROWS["sdxl"],))
    assert strange.licences_to_accept("mine") == [] and not strange.is_pullable("mine")
    with pytest.raises(InvalidRequest, match="cannot be pulled"):
        strange.pull("mine")
    stored = load_file(tmp_path / "home" / "models" / "mine" / "files" / "weights.safetensors")
    assert sorted(stored) == sorted(pulid("1"))
    assert numpy.array_equal(stored["id_adapter.body.0.weight"], content["image_proj.body.0.weight"])
    assert numpy.array_equal(stored["id_adapter_attn_layers.1.id_to_v.weight"], content["ip_adapter.1.to_v_ip.weight"])
    assert library.add(tmp_path / "ip-adapter_pulid_sdxl.safetensors", id="mine").spec == row.spec


def face_pack(folder: Path, *names: str) -> tuple[Path, dict[str, str]]:
    folder.mkdir(parents=True)
    for name in names or ROWS["antelopev2"].files:
        (folder / name).write_bytes(f"a network called {name}".encode())
    return folder, {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("nested", [False, True])
def test_an_antelopev2_folder_takes_the_catalogs_row(tmp_path: Path, nested: bool):
    folder, known = face_pack(tmp_path / "antelopev2" / "antelopev2" if nested else tmp_path / "antelopev2")
    spec = dataclasses.replace(ROWS["antelopev2"], sha256=known)
    library = ModelLibrary(tmp_path / "home", catalog=(spec, ROWS["pulid"]))
    with pytest.raises(Conflict, match="non-commercial research only") as asked:
        library.add(tmp_path / "antelopev2")
    assert asked.value.details["licences"][0]["commercial"] is False
    assert library.licences_of_file(tmp_path / "antelopev2") == [spec.licence]
    with pytest.raises(InvalidRequest, match="added under that id"):
        library.add(tmp_path / "antelopev2", id="mine", accept_licence=True)
    row = library.add(tmp_path / "antelopev2", accept_licence=True)
    assert row.installed and row.spec == spec and row.path == tmp_path / "home" / "models" / "antelopev2" / "files"
    assert sorted(path.name for path in row.path.iterdir()) == sorted(spec.files)
    record = json.loads((row.path.parent / "model.json").read_text())
    assert record["origin"] == "added" and record["licence_accepted"] is True
    assert library.add(tmp_path / "antelopev2").spec == spec and library.licences_of_file(tmp_path / "antelopev2") == []
    library.remove("antelopev2")
    (folder / "glintr100.onnx").write_bytes(b"another network")
    with pytest.raises(
        InvalidRequest, match=r"'glintr100\.onnx' has other bytes than the 'antelopev2' that is published"
    ):
        library.add(tmp_path / "antelopev2", accept_licence=True)
    assert not library.get("antelopev2").installed


def test_other_folders_of_onnx_files_are_refused(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="neither insightface's antelopev2 nor its buffalo_l"):
        inspect(face_pack(tmp_path / "small", "det_500m.onnx", "w600k_mbf.onnx")[0])
    with pytest.raises(InvalidRequest, match=r"antelopev2 lacks scrfd_10g_bnkps\.onnx, 1k3d68\.onnx"):
        inspect(face_pack(tmp_path / "half", "glintr100.onnx")[0])
    names = [Path(name).name for name in ROWS["buffalo_l"].files]
    assert inspect(face_pack(tmp_path / "buffalo", *names)[0]).stands_for == "buffalo_l"


def test_image_encoders_and_facexlib_take_the_catalogs_rows(tmp_path: Path):
    eva = {
        "visual.blocks.0.attn.inner_attn_ln.weight": (1024,),
        "visual.cls_token": (1, 1, 1024),
        "visual.pos_embed": (1, 577, 1024),
    }
    library = ModelLibrary(tmp_path / "home")
    row = library.add(sparse(tmp_path / "eva.safetensors", eva))
    assert row.spec.id == "eva02-clip-l-336" and row.installed and row.path.name == "weights.safetensors"
    for name in ("retinaface_resnet50", "parsing_bisenet", "parsing_parsenet"):
        with pytest.raises(InvalidRequest):
            library.add(tmp_path / "facexlib") if (tmp_path / "facexlib").exists() else inspect(tmp_path / "facexlib")
        sparse(tmp_path / "facexlib" / f"{name}.safetensors", {"w": (3,)})
    row = library.add(tmp_path / "facexlib")
    assert row.spec.id == "facexlib" and row.installed and len(list(row.path.iterdir())) == 3
    for encoder, width, pooled in (("clip-vit-h", 1280, 1024), ("clip-vit-bigg", 1664, 1280)):
        folder = tmp_path / encoder
        sparse(folder / "model.safetensors", {"visual_projection.weight": (pooled, width)})
        (folder / "config.json").write_text("{}")
        assert inspect(folder).stands_for == encoder
    known = hashlib.sha256((tmp_path / "clip-vit-h" / "model.safetensors").read_bytes()).hexdigest()
    spec = dataclasses.replace(ROWS["clip-vit-h"], sha256={"models/image_encoder/model.safetensors": known})
    row = ModelLibrary(tmp_path / "other", catalog=(spec,)).add(tmp_path / "clip-vit-h")
    assert row.spec.id == "clip-vit-h" and sorted(path.name for path in row.path.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    with pytest.raises(InvalidRequest, match="other bytes"):
        library.add(tmp_path / "clip-vit-h")


def test_an_instantid_folder_is_an_identity_of_its_own(tmp_path: Path):
    folder = tmp_path / "My InstantID"
    sparse(
        folder / "ip-adapter.safetensors", adapter("sdxl", {"latents": (1, 16, 1280), "proj_in.weight": (1280, 512)})
    )
    with pytest.raises(InvalidRequest, match="lacks ControlNetModel"):
        inspect(folder)
    sparse(folder / "ControlNetModel" / "diffusion_pytorch_model.safetensors", network())
    (folder / "ControlNetModel" / "config.json").write_text("{}")
    (folder / "examples").mkdir()
    (folder / "examples" / "note.txt").write_text("hello")
    library = ModelLibrary(tmp_path / "home")
    with pytest.raises(Conflict, match="research only"):
        library.add(folder)
    row = library.add(folder, accept_licence=True)
    assert (row.spec.id, row.spec.kind, row.spec.tasks) == ("my-instantid", "identity", ("instantid",))
    assert row.spec.parts == ("antelopev2",) and row.spec.loader == "app.models.instantid:load"
    stored = library.folder / "my-instantid" / "files"
    assert sorted(path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()) == [
        "ControlNetModel/config.json",
        "ControlNetModel/diffusion_pytorch_model.safetensors",
        "ip-adapter.safetensors",
    ]


def test_a_controlnet_is_ecomids_where_its_owner_says_so(tmp_path: Path):
    file = sparse(tmp_path / "ecom.safetensors", network())
    library = ModelLibrary(tmp_path / "home")
    assert library.add(file, id="plain").spec.kind == "controlnet"
    row = library.add(file, id="mine", kind="identity")
    assert (row.spec.tasks, row.spec.parts) == (("ecomid",), ("pulid-v1", "instantid"))
    stored = library.folder / "mine" / "files"
    assert sorted(path.name for path in stored.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert (stored / "config.json").read_text() == ROWS["ecomid"].written["config.json"]
    other = {name: shape for name, shape in network().items() if not name.startswith("add_embedding")}
    with pytest.raises(InvalidRequest, match="for SDXL"):
        library.add(sparse(tmp_path / "sd15.safetensors", other), kind="identity")


def test_an_adapter_of_ones_own_works_once_its_encoder_is_there(tmp_path: Path):
    encoder = tmp_path / "clip"
    sparse(encoder / "model.safetensors", {"visual_projection.weight": (1024, 1280)})
    (encoder / "config.json").write_text("{}")
    rows = (dataclasses.replace(ROWS["clip-vit-h"], sha256={}), ROWS["sd15"])
    library = ModelLibrary(tmp_path / "home", catalog=rows)
    file = sparse(tmp_path / "mine.safetensors", adapter("sd15", ADAPTERS["plus"][1]))
    assert not library.add(file).installed
    library.add(encoder)
    assert library.choose_addition("ip-adapter", library.get("sd15")).spec.id == "mine"
    with pytest.raises(Conflict, match="part of mine"):
        library.remove("clip-vit-h")
    assert installing.is_slug("mine")
