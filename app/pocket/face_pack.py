"""The face networks as files: the ONNX pack that insightface opens, facexlib's ParseNet, the EVA02-CLIP key layout.

Weights are stored as float16 and cast when a session is opened; everything is computed in float32.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from timm.models.eva import Eva
from torch import nn

from app.pocket.face_networks import Detector

OPSET = 17
SMALLEST_CAST = 32  # numbers: what is smaller stays float32


def write_detector(network: Detector, file: Path) -> None:
    """SCRFD's layout; the input's height and width are free, in whole multiples of 64."""
    kinds = ("score", "box", "points")
    names = [f"{kind}_{stride}" for kind in kinds for stride in Detector.STRIDES]
    axes = {"input": {2: "height", 3: "width"}} | {name: {1: f"places_{name}"} for name in names}
    _write(network, torch.zeros(1, 3, 640, 640), file, names, axes)


def write_recognition(network: nn.Module, file: Path) -> None:
    _write(network, torch.zeros(1, 3, 112, 112), file, ["embedding"], {"input": {0: "n"}, "embedding": {0: "n"}})


def write_landmarks(network: nn.Module, file: Path) -> None:
    _write(network, torch.zeros(1, 3, 192, 192), file, ["points"], {"input": {0: "n"}, "points": {0: "n"}})


def write_tagger(network: nn.Module, file: Path) -> None:
    """The WD14 taggers' layout."""
    _write(network, torch.zeros(1, 448, 448, 3), file, ["output"], {"input": {0: "n"}, "output": {0: "n"}})


def write_parsing(network: nn.Module, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    save_file({name: t.half().contiguous() for name, t in state.items() if t.is_floating_point()}, file)


def write_image_encoder(network: Eva, file: Path) -> None:
    """The keys of the published EVA02-CLIP (`visual.*`), float16."""
    names = (
        ("attn.q_proj.bias", "attn.q_bias"), ("attn.v_proj.bias", "attn.v_bias"), ("attn.norm.", "attn.inner_attn_ln."),
        ("mlp.norm.", "mlp.ffn_ln."), ("mlp.fc1_g.", "mlp.w1."), ("mlp.fc1_x.", "mlp.w2."), ("mlp.fc2.", "mlp.w3."),
    )  # fmt: skip
    state = {}
    for name, tensor in network.state_dict().items():
        for ours, published in names:
            name = name.replace(ours, published)
        state[f"visual.{name}"] = tensor.half().contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)


def _write(network: nn.Module, example: torch.Tensor, file: Path, outputs: list[str], axes: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is announced to go one day
        torch.onnx.export(
            network.eval(), (example,), str(file), input_names=["input"], output_names=outputs, dynamic_axes=axes,
            opset_version=OPSET, dynamo=False,
        )  # fmt: skip
    model = onnx.load(str(file))
    _halve(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _halve(model: onnx.ModelProto) -> None:
    """Keep large weights as float16, each behind a cast."""
    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        array = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or array.size < SMALLEST_CAST:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array.astype("float16"), f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], name=f"Cast_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
