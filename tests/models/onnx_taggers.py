"""Tiny taggers as ONNX files: each tag's score is a known sum over the picture's mean colours."""

import csv
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS = (
    ("general", 9), ("sensitive", 9), ("blue_sky", 0), ("green_grass", 0), ("red_(colour)", 0), ("saber_(fate)", 4),
)  # fmt: skip
WEIGHTS = np.array(
    [[0, 0, 0], [-9, -9, -9], [9, -9, -9], [-9, 9, -9], [-9, -9, 9], [-9, -9, 9]], np.float32
) / np.float32(255)
BIAS = np.array([3, -3, -1, -1, -1, 0], np.float32)


def make_tagger(folder: Path, *, side: int = 32, batch: int | str = "n", rows=ROWS) -> Path:
    """A folder of model.onnx and selected_tags.csv; the scores are those of `scores_by_hand`."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, side, side, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, len(WEIGHTS)])],
        [numpy_helper.from_array(WEIGHTS.T.copy(), "weights"), numpy_helper.from_array(BIAS, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    with (folder / "selected_tags.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("tag_id", "name", "category", "count"))
        table.writerows((number, name, category, 1) for number, (name, category) in enumerate(rows))
    return folder


def scores_by_hand(pictures: np.ndarray) -> np.ndarray:
    """[n, tags] of pictures [n, side, side, 3], blue first."""
    logits = pictures.mean((1, 2)) @ WEIGHTS.T + BIAS
    return 1 / (1 + np.exp(-logits))
