"""Face models whose answers are known beforehand, in the shapes of the published ones: ONNX packs and facexlib files.

The detector sees a square of one brightness that stands alone on black as a face; the recognition network answers with
the mean colour of the crop that it was handed; the one for 68 points always answers the same.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from facexlib.parsing.bisenet import BiSeNet
from facexlib.parsing.parsenet import ParseNet
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from app.models.faces_facexlib import AlignmentNetwork
from tests.parity import weights

STRIDES = (8, 16, 32)
KEYPOINTS = ((-0.5, -0.5), (0.5, -0.5), (0.0, 0.0), (-0.4, 0.5), (0.4, 0.5))
HALF_BOX = 1.5
"""Of the detector's boxes, in cells; the keypoints above are in cells too."""


def _save(file: Path, nodes, inputs, outputs, constants) -> None:
    graph = helper.make_graph(
        nodes, file.stem, inputs, outputs, [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def make_detector(file: Path, *, size: int | None = None) -> None:
    """SCRFD's nine outputs for strides 8, 16, 32 with two anchors; only stride 32 ever answers.

    A cell is a face where it is bright and the cells two steps around it are black: a square of up to three cells.
    """
    ring = np.full((1, 1, 5, 5), -1.0, dtype=np.float32)
    ring[0, 0, 1:4, 1:4] = 0
    ring[0, 0, 2, 2] = 4
    constants = {
        "ring": ring * 8,
        "threshold": np.array([-20], dtype=np.float32),
        "never": np.array(-20, dtype=np.float32),
        "flat": np.array([-1, 1], dtype=np.int64),
        "twice": np.array([1, 2], dtype=np.int64),
        "one": np.array(1, dtype=np.float32),
        "lightness": np.full((1, 3, 1, 1), 1 / 3, dtype=np.float32),
        "box": np.full((1, 4), HALF_BOX, dtype=np.float32),
        "points": np.array(KEYPOINTS, dtype=np.float32).reshape(1, 10),
    }
    nodes = [
        helper.make_node("Conv", ["input.1", "lightness"], ["light"]),
        helper.make_node("Add", ["light", "one"], ["grey"]),
    ]
    outputs = {}
    for stride in STRIDES:
        nodes.append(
            helper.make_node(
                "AveragePool", ["grey"], [f"cells{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        nodes.append(
            helper.make_node("Conv", [f"cells{stride}", "ring", "threshold"], [f"ringed{stride}"], pads=[2] * 4)
        )
        raw = f"ringed{stride}"
        if stride != 32:
            nodes += [
                helper.make_node("Abs", [raw], [f"abs{stride}"]),
                helper.make_node("Sub", ["never", f"abs{stride}"], [f"no{stride}"]),
            ]
            raw = f"no{stride}"
        nodes += [
            helper.make_node("Reshape", [raw, "flat"], [f"column{stride}"]),
            helper.make_node("Tile", [f"column{stride}", "twice"], [f"pair{stride}"]),
            helper.make_node("Reshape", [f"pair{stride}", "flat"], [f"logit{stride}"]),
            helper.make_node("Sigmoid", [f"logit{stride}"], [f"score{stride}"]),
            helper.make_node("Sub", [f"score{stride}", f"score{stride}"], [f"zero{stride}"]),
            helper.make_node("Add", [f"zero{stride}", "box"], [f"box{stride}"]),
            helper.make_node("Add", [f"zero{stride}", "points"], [f"points{stride}"]),
        ]
        for name, width in (("score", 1), ("box", 4), ("points", 10)):
            outputs[f"{name}{stride}"] = helper.make_tensor_value_info(
                f"{name}{stride}", TensorProto.FLOAT, [None, width]
            )
    order = [outputs[f"{name}{stride}"] for name in ("score", "box", "points") for stride in STRIDES]
    side = size or "?"
    picture = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, side, side])
    _save(file, nodes, [picture], order, constants)


def make_recognition(file: Path) -> None:
    """[n, 3, 112, 112] -> [n, 512]: three times the crop's mean red, green and blue, repeated."""
    constants = {"spread": np.tile(np.eye(3, dtype=np.float32) * 3, (1, 171))[:, :512]}
    nodes = [
        helper.make_node("GlobalAveragePool", ["input.1"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "spread"], ["1333"]),
    ]
    picture = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [None, 3, 112, 112])
    _save(file, nodes, [picture], [helper.make_tensor_value_info("1333", TensorProto.FLOAT, [None, 512])], constants)


def landmark_answer() -> np.ndarray:
    """What the network for 68 points says, [68, 3] in -1..1 of its crop."""
    rng = np.random.default_rng(68)
    return rng.uniform(-0.6, 0.6, (68, 3)).astype(np.float32)


def make_landmarks(file: Path, numbers: int = 3309) -> None:
    """[1, 3, 192, 192] -> [1, 3309], the last 204 of them the 68 points."""
    answer = np.zeros((1, numbers), dtype=np.float32)
    if numbers >= 204:
        answer[0, -204:] = landmark_answer().ravel()
    constants = {"nothing": np.zeros((3, numbers), dtype=np.float32), "answer": answer}
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("Gemm", ["colour", "nothing", "answer"], ["fc1"]),
    ]
    picture = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 192, 192])
    _save(file, nodes, [picture], [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, numbers])], constants)


def make_pack(folder: Path, *, nested: bool = False) -> Path:
    """A folder as antelopev2's: detector, recognition, 68 points, and two models that are not used."""
    inner = folder / "antelopev2" if nested else folder
    inner.mkdir(parents=True)
    make_detector(inner / "scrfd_10g_bnkps.onnx")
    make_recognition(inner / "glintr100.onnx")
    make_landmarks(inner / "1k3d68.onnx")
    make_landmarks(inner / "2d106det.onnx", 212)
    make_landmarks(inner / "genderage.onnx", 3)
    return folder


def picture_of_squares(size, *squares) -> np.ndarray:
    """Black with squares (left, top, side, colour) in it, [height, width, 3] of bytes."""
    picture = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for left, top, side, colour in squares:
        picture[top : top + side, left : left + side] = colour
    return picture


def random_retinaface(file: Path, name: str = "mobile0.25", prefix: str = "", *, blind: bool = True) -> None:
    """A RetinaFace of random weights, as a converted file holds it; a `blind` one is sure of nothing."""
    network = weights.fill_(AlignmentNetwork(name))
    if blind:
        for head in network.ClassHead:
            torch.nn.init.zeros_(head.conv1x1.weight)
            torch.nn.init.zeros_(head.conv1x1.bias)
    save_file({prefix + key: value.contiguous() for key, value in network.state_dict().items()}, file)


def biased_bisenet(file: Path, part: int) -> None:
    """BiSeNet of the published shapes, random but for its last layer, which says `part` everywhere."""
    torch.manual_seed(2)
    network = BiSeNet(num_class=19)
    network.conv_out.conv_out.weight.data.zero_()
    network.conv_out.conv_out.weight.data[part] = 1
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)


def parsenet_by_lightness(file: Path, bright: int, dark: int, *, published: bool = False) -> None:
    """ParseNet that says `bright` where the crop is bright and `dark` where it is dark; narrow unless `published`."""
    torch.manual_seed(3)
    if published:
        network = ParseNet(in_size=512, out_size=512, parsing_ch=19)
    else:
        network = ParseNet(in_size=128, out_size=128, min_feat_size=32, base_ch=8, res_depth=3, ch_range=[8, 40])
    for key, value in network.state_dict().items():
        if key.endswith("weight") and value.dim() == 4:
            value.zero_()
            if "shortcut" in key or key.startswith(("encoder.0.", "out_mask")):
                # The shortcuts hand the lightness through in the first channel; everything beside them is silent.
                value[0, : 3 if key.startswith("encoder.0.") else 1, 1, 1] = 1
        elif key.endswith(("bias", "running_mean")):
            value.zero_()
    last = network.out_mask_conv.conv2d
    last.weight.data.zero_()
    last.bias.data.fill_(-100)
    for part, sign in ((bright, 1), (dark, -1)):
        last.weight.data[part, 0, 1, 1] = sign
        last.bias.data[part] = 0
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
