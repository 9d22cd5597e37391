"""ONNX files of the shapes of insightface's published ones, with random weights: SCRFD-10G and ArcFace's ResNet-100."""

import math
from pathlib import Path
from typing import Any

STRIDES = (8, 16, 32)


class Graph:
    """Nodes and random constants of an ONNX model, written one after another."""

    def __init__(self) -> None:
        import numpy as np

        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._random = np.random.default_rng(0)

    def constant(self, value: Any) -> str:
        """The name of a constant."""
        import numpy as np

        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def random(self, *shape: int, scale: float = 1.0) -> str:
        """The name of random weights, as large as keeps the deviation of what passes through."""
        spread = scale / math.sqrt(math.prod(shape[1:]))
        return self.constant((self._random.standard_normal(shape) * spread).astype("float32"))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of a new node's output."""
        from onnx import helper

        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def convolution(self, x: str, inner: int, outer: int, kernel: int = 3, stride: int = 1) -> str:
        """A convolution with bias, its batch norm folded in as the published files have it."""
        bias = self.constant(self._random.standard_normal(outer).astype("float32") * 0.1)
        weights = self.random(outer, inner, kernel, kernel)
        return self.node(
            "Conv", x, weights, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4
        )

    def prelu(self, x: str, width: int) -> str:
        """ArcFace's activation."""
        import numpy as np

        return self.node("PRelu", x, self.constant(np.full((width, 1, 1), 0.25, dtype=np.float32)))

    def save(self, file: Path, picture: list[Any], outputs: dict[str, list[Any]], renamed: dict[str, str]) -> None:
        """Write the model; `renamed` maps a node's output to the name it has in the file."""
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        nodes = [*self.nodes, *(helper.make_node("Identity", [old], [new]) for old, new in renamed.items())]
        graph = helper.make_graph(
            nodes,
            file.stem,
            [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, picture)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)


def write_iresnet100(file: Path) -> None:
    """[n, 3, 112, 112] -> [n, 512]: ResNet-100 as ArcFace has it, 65 million weights."""
    graph = Graph()
    x = graph.prelu(graph.convolution("input.1", 3, 64), 64)
    inner = 64
    for width, blocks in ((64, 3), (128, 13), (256, 30), (512, 3)):
        for number in range(blocks):
            stride = 2 if number == 0 else 1
            y = graph.prelu(graph.convolution(x, inner, width), width)
            y = graph.convolution(y, width, width, stride=stride)
            short = graph.convolution(x, inner, width, 1, 2) if number == 0 else x
            x = graph.node("Add", y, short)
            inner = width
    flat = graph.node("Flatten", x)
    out = graph.node("MatMul", flat, graph.random(512 * 7 * 7, 512))
    graph.save(file, [None, 3, 112, 112], {"1333": [None, 512]}, {out: "1333"})


def write_scrfd_10g(file: Path) -> None:
    """[1, 3, h, w] -> scores, boxes and points of three strides: about 10 G operations at 640x640.

    The heads are those of SCRFD; on the coarsest grid a cell that is bright and stands alone on black is a face.
    """
    import numpy as np

    graph = Graph()
    x = graph.node("Relu", graph.convolution("input.1", 3, 28, stride=2))
    x = graph.node("Relu", graph.convolution(x, 28, 28))
    x = graph.node("Relu", graph.convolution(x, 28, 56))
    x = graph.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    inner, maps = 56, []
    for stage, (width, blocks) in enumerate(((56, 3), (88, 4), (88, 2), (224, 3))):
        for number in range(blocks):
            stride = 2 if stage and number == 0 else 1
            y = graph.node("Relu", graph.convolution(x, inner, width, stride=stride))
            y = graph.convolution(y, width, width)
            short = x if inner == width and stride == 1 else graph.convolution(x, inner, width, 1, stride)
            x = graph.node("Relu", graph.node("Add", y, short))
            inner = width
        if stage:
            maps.append(graph.convolution(x, width, 56, 1))
    for level in (1, 0):
        up = graph.node(
            "Resize", maps[level + 1], "", graph.constant(np.array([1, 1, 2, 2], dtype=np.float32)), mode="nearest"
        )
        maps[level] = graph.node("Add", maps[level], up)
    maps = [graph.convolution(each, 56, 56) for each in maps]
    outputs, renamed = {}, {}
    for stride, each in zip(STRIDES, maps, strict=True):
        for _ in range(3):
            each = graph.node("Relu", graph.convolution(each, 56 if each in maps else 80, 80))
        for name, width in (("score", 1), ("box", 4), ("points", 10)):
            raw = graph.convolution(each, 80, 2 * width)
            if name == "score":
                raw = _seeing(graph, raw, stride)
            columns = graph.node("Transpose", raw, perm=[0, 2, 3, 1])
            columns = graph.node("Reshape", columns, graph.constant(np.array([-1, width], dtype=np.int64)))
            if name == "score":
                columns = graph.node("Sigmoid", columns)
            else:
                known = (
                    np.full((1, width), 1.5)
                    if name == "box"
                    else np.array([[-0.5, -0.5, 0.5, -0.5, 0, 0, -0.4, 0.5, 0.4, 0.5]])
                )
                nothing = graph.node("Mul", columns, graph.constant(np.float32(0)))
                columns = graph.node("Add", nothing, graph.constant(known.astype(np.float32)))
            outputs[f"{name}{stride}"], renamed[columns] = [None, width], f"{name}{stride}"
    order = {f"{name}{stride}": outputs[f"{name}{stride}"] for name in ("score", "box", "points") for stride in STRIDES}
    graph.save(file, [1, 3, "?", "?"], order, renamed)


def _seeing(graph: Graph, raw: str, stride: int) -> str:
    """The scores are worked out and replaced: never on the fine grids, at lone bright cells on the coarsest."""
    import numpy as np

    silenced = graph.node("Mul", raw, graph.constant(np.float32(0)))
    if stride != STRIDES[-1]:
        return graph.node("Add", silenced, graph.constant(np.float32(-20)))
    ring = np.full((2, 1, 5, 5), -8, dtype=np.float32)
    ring[:, 0, 1:4, 1:4] = 0
    ring[:, 0, 2, 2] = 32
    grey = graph.node("Conv", "input.1", graph.constant(np.full((1, 3, 1, 1), 1 / 3, dtype=np.float32)))
    light = graph.node("Add", grey, graph.constant(np.float32(1)))
    cells = graph.node("AveragePool", light, kernel_shape=[stride] * 2, strides=[stride] * 2)
    threshold = graph.constant(np.array([-20, -20], dtype=np.float32))
    return graph.node("Add", silenced, graph.node("Conv", cells, graph.constant(ring), threshold, pads=[2] * 4))
