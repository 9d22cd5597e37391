"""Each name of an identity model as it is typed: what a hub with files of the published names leaves on the disk."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from app.errors import Conflict
from app.models import catalog
from app.models.library import ModelLibrary
from app.models.spec import ModelSpec
from tests.library.conftest import weights
from tests.library.hub_server import HubServer
from tests.library.test_conversion import saved

PICKLES = (".bin", ".pt", ".pth")
TENSORS = {
    "pulid_v1.bin": {"id_adapter.body.0.weight": torch.ones(2, 3)},
    "ip-adapter.bin": {
        "image_proj": {"latents": torch.ones(1, 2)},
        "ip_adapter": {"1.to_k_ip.weight": torch.ones(2, 2)},
    },
    "EVA02_CLIP_L_336_psz14_s6B.pt": {"visual.cls_token": torch.ones(1, 1, 4), "text.w": torch.ones(3)},
    "detection_Resnet50_Final.pth": {"module.body.conv1.weight": torch.ones(3)},
}


def content(name: str) -> bytes:
    """A small file of this name's kind."""
    if name.endswith(PICKLES):
        return saved(TENSORS.get(Path(name).name, {"conv.weight": torch.ones(3)}))
    return weights(len(name), 400) if name.endswith(".safetensors") else f'{{"name": "{name}"}}'.encode()


@pytest.fixture
def rows(hub: HubServer) -> tuple[ModelSpec, ...]:
    """The catalog's rows with the hub's small files behind them; their bytes are other than the published ones."""
    repos: dict[str, tuple[str, dict[str, bytes]]] = {}
    found = []
    for spec in catalog.CATALOG:
        if spec.kind not in ("faces", "image-encoder", "identity", "ip-adapter"):
            continue
        if spec.repo:
            _, files = repos.setdefault(spec.repo, (spec.revision, {}))
            files.update({name: content(name) for name in spec.files})
        sources = []
        for source in spec.sources:
            data = content(source.path)
            hub.put(f"release/{source.path}", {source.path: data})
            url = f"{hub.url}/release/{source.path}/resolve/main/{source.path}"
            sources.append(
                dataclasses.replace(source, url=url, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            )
        found.append(dataclasses.replace(spec, sha256={}, sources=tuple(sources)))
    for repo, (revision, files) in repos.items():
        hub.put(repo, files, commit=revision if len(revision) == 40 else None)
    return tuple(found)


def files_of(library: ModelLibrary, id: str) -> list[str]:
    path = library.require(id).path
    if path.is_file():
        return [path.name]
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("id", ["pulid", "ecomid", "instantid", "ip-adapter", "antelopev2", "ip-adapter-faceid-sd15"])
def test_what_is_typed_brings_everything_that_it_needs(hub, rows, library_at, tmp_path: Path, id: str):
    library = library_at(tmp_path, catalog=rows)
    if id == "ip-adapter":
        assert library.licences_to_accept(id) == []
    else:
        with pytest.raises(Conflict, match="non-commercial research only"):
            library.pull(id)
        assert hub.seen == []
    library.pull(id, accept_licence=True)
    installed = {row.spec.id for row in library.rows() if row.installed and not row.spec.embedded}
    face_reading = {"antelopev2", "facexlib", "eva02-clip-l-336"}
    assert (
        installed
        == {
            "pulid": {"pulid"} | face_reading,
            "ecomid": {"ecomid", "pulid-v1", "instantid"} | face_reading,
            "instantid": {"instantid", "antelopev2"},
            "ip-adapter": {"ip-adapter", "ip-adapter-plus-sdxl", "ip-adapter-plus-sd15", "clip-vit-h"},
            "antelopev2": {"antelopev2"},
            "ip-adapter-faceid-sd15": {"ip-adapter-faceid-sd15", "buffalo_l"},
        }[id]
    )
    layouts = {
        "pulid": ["pulid_v1.1.safetensors"],
        "pulid-v1": ["pulid_v1.safetensors"],
        "instantid": [
            "ControlNetModel/config.json",
            "ControlNetModel/diffusion_pytorch_model.safetensors",
            "ip-adapter.safetensors",
        ],
        "ecomid": ["config.json", "diffusion_pytorch_model.safetensors"],
        "antelopev2": sorted(
            ["1k3d68.onnx", "2d106det.onnx", "genderage.onnx", "glintr100.onnx", "scrfd_10g_bnkps.onnx"]
        ),
        "buffalo_l": sorted(["1k3d68.onnx", "2d106det.onnx", "genderage.onnx", "det_10g.onnx", "w600k_r50.onnx"]),
        "facexlib": ["parsing_bisenet.safetensors", "parsing_parsenet.safetensors", "retinaface_resnet50.safetensors"],
        "eva02-clip-l-336": ["EVA02_CLIP_L_336_psz14_s6B.safetensors"],
        "clip-vit-h": ["config.json", "model.safetensors"],
        "ip-adapter-plus-sdxl": ["ip-adapter-plus_sdxl_vit-h.safetensors"],
        "ip-adapter-plus-sd15": ["ip-adapter-plus_sd15.safetensors"],
        "ip-adapter-faceid-sd15": ["ip-adapter-faceid_sd15.safetensors"],
    }
    for model in installed - {"ip-adapter"}:
        assert files_of(library, model) == layouts[model], model
        assert library.verify(model) == []
    if "eva02-clip-l-336" in installed:
        assert list(load_file(library.require("eva02-clip-l-336").path)) == ["visual.cls_token"]
        assert list(load_file(library.require("facexlib").path / "retinaface_resnet50.safetensors")) == [
            "body.conv1.weight"
        ]
    if "instantid" in installed:
        adapter = load_file(library.require("instantid").path / "ip-adapter.safetensors")
        assert {name: value.dtype.name for name, value in adapter.items()} == {
            "image_proj.latents": "float16",
            "ip_adapter.1.to_k_ip.weight": "float16",
        }
        network = "ControlNetModel/diffusion_pytorch_model.safetensors"
        published = hub.repos["InstantX/InstantID"][network]
        assert (library.require("instantid").path / network).read_bytes() == published, "what is 16-bit stays as it is"
    if id == "ecomid":
        assert json.loads((library.require(id).path / "config.json").read_text())["_class_name"] == "ControlNetModel"
        network = load_file(library.require(id).path / "diffusion_pytorch_model.safetensors")
        assert {value.dtype.name for value in network.values()} == {"float16"}
    assert not [path for path in tmp_path.rglob("*") if path.suffix in PICKLES], "a pickle is left"
    library.remove(id)
    assert not [row.spec.id for row in library.rows() if row.installed and not row.spec.embedded]
