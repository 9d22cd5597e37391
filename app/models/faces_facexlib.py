"""facexlib's networks without its downloader: RetinaFace, which lines a face up, and the two that name its parts.

Weights are our own safetensors files; which network one holds is read from its keys and shapes.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from facexlib.detection.retinaface import RetinaFace, generate_config
from facexlib.detection.retinaface_net import (
    FPN,
    SSH,
    MobileNetV1,
    make_bbox_head,
    make_class_head,
    make_landmark_head,
)
from facexlib.detection.retinaface_utils import decode, decode_landm
from facexlib.parsing.bisenet import BiSeNet
from facexlib.parsing.parsenet import ParseNet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import nms

from app.errors import InvalidRequest
from app.imaging.detected_faces import Face
from app.models.faces_insightface import Count

CROP = 512
TEMPLATE = np.array(
    [(192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935), (201.26117, 371.41043),
     (313.08905, 371.15118)]
)  # fmt: skip
"""Where FFHQ's pictures of 512 pixels have the five points (facexlib, `FaceRestoreHelper`)."""

BORDER = (135, 133, 132)
"""What stands beyond the picture's edge in a crop; blue, green, red."""

SCORE, OVERLAP = 0.97, 0.4
MEAN_BGR = (104.0, 117.0, 123.0)
PARTS = 19
PUBLISHED_PARSENET = "parsing_parsenet.safetensors"
# The published ParseNet counts as CelebAMask-HQ does: skin, nose, glasses, eyes, brows, ears, mouth, lips, hair, hat,
# earring, necklace, neck, cloth. Its number -> BiSeNet's.
FROM_CELEBAMASK = (0, 1, 10, 6, 4, 5, 2, 3, 7, 8, 11, 12, 13, 17, 18, 9, 15, 14, 16)


class AlignmentNetwork(RetinaFace):
    """facexlib's RetinaFace, put together without the arguments that torchvision's backbones no longer take."""

    def __init__(self, name: str) -> None:
        torch.nn.Module.__init__(self)
        self.cfg = generate_config(name)
        self.backbone, self.phase = self.cfg["name"], "test"
        body = MobileNetV1() if name == "mobile0.25" else resnet50(weights=None)
        self.body = IntermediateLayerGetter(body, self.cfg["return_layers"])
        width = self.cfg["out_channel"]
        self.fpn = FPN([self.cfg["in_channel"] * times for times in (2, 4, 8)], width)
        self.ssh1, self.ssh2, self.ssh3 = SSH(width, width), SSH(width, width), SSH(width, width)
        self.ClassHead = make_class_head(fpn_num=3, inchannels=width)
        self.BboxHead = make_bbox_head(fpn_num=3, inchannels=width)
        self.LandmarkHead = make_landmark_head(fpn_num=3, inchannels=width)


class RetinaFaceDetector:
    """Finds faces and their five points at the picture's own size; keeps no state between pictures."""

    tried = "at the picture's own size"

    def __init__(self, network: AlignmentNetwork) -> None:
        self.network = network

    @torch.inference_mode()
    def detect(self, bgr: np.ndarray, count: Count) -> list[Face]:
        """The faces in a picture [height, width, 3] of bytes, the surest first; `count` is told of the pass."""
        count("alignment")
        device = next(self.network.parameters()).device
        height, width = bgr.shape[:2]
        picture = torch.from_numpy(np.ascontiguousarray(bgr)).to(device).permute(2, 0, 1)[None].float()
        locations, classes, points = self.network(picture - torch.tensor(MEAN_BGR, device=device).view(3, 1, 1))
        priors, variances = anchors(height, width, str(device)), self.network.cfg["variance"]
        size = torch.tensor([width, height], device=device, dtype=torch.float32)
        boxes = decode(locations[0], priors, variances) * size.repeat(2)
        points = decode_landm(points[0], priors, variances) * size.repeat(5)
        scores = classes[0, :, 1]
        sure = (scores > SCORE).nonzero()[:, 0]
        kept = sure[nms(boxes[sure], scores[sure], OVERLAP)]
        found = torch.cat([boxes[kept], scores[kept, None], points[kept]], dim=1).cpu().numpy()
        return [Face(tuple(map(float, row[:4])), float(row[4]), row[5:].reshape(5, 2)) for row in found]


@functools.lru_cache(maxsize=8)
def anchors(height: int, width: int, device: str) -> torch.Tensor:
    """RetinaFace's anchors [n, 4] for a picture: centre and size, as parts of the picture's sides."""
    rows = []
    for step, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        y, x = torch.meshgrid(torch.arange(-(-height // step)), torch.arange(-(-width // step)), indexing="ij")
        centres = torch.stack([(x + 0.5) * step / width, (y + 0.5) * step / height], dim=-1)
        sides = torch.tensor([(side / width, side / height) for side in sizes])
        centres, sides = centres[:, :, None].expand(-1, -1, 2, -1), sides.expand(*centres.shape[:2], 2, 2)
        rows.append(torch.cat([centres, sides], dim=-1).reshape(-1, 4))
    return torch.cat(rows).float().to(device)


class Parser:
    """Names the part of the face that each pixel of an aligned crop shows, in BiSeNet's numbers.

    0 background, 1 skin, 2/3 brows, 4/5 eyes, 6 glasses, 7/8 ears, 9 earring, 10 nose, 11 mouth, 12/13 lips, 14 neck,
    15 necklace, 16 clothes, 17 hair, 18 hat.
    """

    def __init__(self, network: torch.nn.Module, size: int, numbers: tuple[int, ...] = tuple(range(PARTS))) -> None:
        self.network, self.size = network, size
        self._numbers = np.array(numbers, dtype=np.uint8)
        is_bisenet = isinstance(network, BiSeNet)
        self._mean, self._std = (
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if is_bisenet else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        )

    @torch.inference_mode()
    def parse(self, crop: torch.Tensor) -> np.ndarray:
        """Part of each pixel, [height, width] of bytes; `crop` [3, height, width] in 0..1, where the network stands."""
        mean, std = (torch.tensor(values, device=crop.device).view(3, 1, 1) for values in (self._mean, self._std))
        picture, side = ((crop - mean) / std)[None], crop.shape[-2:]
        if tuple(side) != (self.size, self.size):
            picture = torch.nn.functional.interpolate(picture, (self.size, self.size), mode="bilinear", antialias=True)
        likely = self.network(picture)[0]
        if likely.shape[-2:] != side:
            likely = torch.nn.functional.interpolate(likely, side, mode="bilinear")
        return self._numbers[likely[0].argmax(0).cpu().numpy()]


def align(bgr: np.ndarray, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The face of these points [5, 2] upright on 512x512, BGR as the picture, and the matrix [2, 3] to there."""
    matrix = cv2.estimateAffinePartial2D(keypoints, TEMPLATE, method=cv2.LMEDS)[0]
    return crop_by(bgr, matrix), matrix


def crop_by(bgr: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What a matrix [2, 3] brings to 512x512 of a picture."""
    return cv2.warpAffine(bgr, matrix, (CROP, CROP), borderMode=cv2.BORDER_CONSTANT, borderValue=BORDER)


def open_alignment(file: Path) -> RetinaFaceDetector:
    """RetinaFace of a file: its ResNet-50 or its MobileNet."""
    weights = _read(file)
    network = AlignmentNetwork("mobile0.25" if "body.stage1.0.0.weight" in weights else "resnet50")
    _fill(network, weights, file)
    return RetinaFaceDetector(network)


def open_parser(file: Path) -> Parser:
    """BiSeNet or ParseNet of a file; ParseNet as wide and deep as its shapes say."""
    weights = _read(file)
    if any(key.startswith("cp.") for key in weights):
        bisenet = BiSeNet(num_class=PARTS)
        _fill(bisenet, weights, file)
        return Parser(bisenet, CROP)
    try:
        network, size = _parsenet_of(weights)
    except (KeyError, ValueError) as error:
        raise _damaged(file) from error
    _fill(network, weights, file)
    return Parser(network, size, FROM_CELEBAMASK if file.name == PUBLISHED_PARSENET else tuple(range(PARTS)))


def _parsenet_of(weights: Mapping[str, torch.Tensor]) -> tuple[ParseNet, int]:
    """An empty ParseNet of these shapes and the side of the pictures that it was made for."""
    depth = {
        part: 1 + max(int(found[1]) for key in weights if (found := re.match(rf"{part}\.(\d+)\.", key)))
        for part in ("encoder", "body", "decoder")
    }
    base = weights["encoder.0.conv2d.weight"].shape[0]
    widths = [weights[f"encoder.{number}.conv2.conv2d.weight"].shape[0] for number in range(1, depth["encoder"])]
    smallest = 32
    size = smallest * 2 ** (depth["encoder"] - 1)
    network = ParseNet(
        in_size=size,
        out_size=smallest * 2 ** depth["decoder"],
        min_feat_size=smallest,
        base_ch=base,
        parsing_ch=PARTS,
        res_depth=depth["body"],
        ch_range=[min(base, *widths), max(base, *widths)],
    )
    return network, size


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        return {key.removeprefix("module."): value.float() for key, value in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(file) from error


def _fill(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], file: Path) -> None:
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    try:
        network.load_state_dict({**counters, **weights})
    except RuntimeError as error:
        raise _damaged(file) from error
    network.eval().requires_grad_(False)


def _damaged(file: Path) -> InvalidRequest:
    return InvalidRequest(f"The face model {file.name} is damaged, or holds another network; fetch it again.")
