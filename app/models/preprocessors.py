"""What draws control maps that need weights: depth and normals, classes, and the poses of bodies.

transformers' own models, opened from folders with their `preprocessor_config.json`. Which network it is, its
config.json says; the row's task says what is asked of it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    VitPoseForPoseEstimation,
)

from app.errors import InvalidRequest
from app.imaging import control_maps
from app.imaging.ade20k import colour_classes
from app.imaging.body_pose import draw_bodies, openpose_points
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.opening import refusing
from app.models.spec import ModelSpec
from app.models.weights import Weights

PERSON = "person"
SURE_OF_A_PERSON = 0.5


class DepthMaker(Weights):
    """How near each pixel is; `normal` maps are drawn from the same."""

    def __init__(self, path: Path, device: TorchDevice) -> None:
        self.processor, self.network = _opened(AutoModelForDepthEstimation, path)
        super().__init__(device, [self.network])

    def map(self, image: Image.Image, kind: str) -> Image.Image:
        """The `depth` or the `normal` map of a picture, as large."""
        depth = self.depth(image)
        return control_maps.normal_map(depth) if kind == "normal" else control_maps.depth_map(depth)

    def depth(self, image: Image.Image) -> np.ndarray:
        """Nearness [height, width] without a unit: larger is nearer."""
        with torch.no_grad():
            answer = self.network(**_inputs(self, image))
        found = self.processor.post_process_depth_estimation(answer, target_sizes=[image.size[::-1]])
        return found[0]["predicted_depth"].float().cpu().numpy()


class ClassMaker(Weights):
    """Which class of thing each pixel shows."""

    def __init__(self, path: Path, device: TorchDevice) -> None:
        self.processor, self.network = _opened(AutoModelForSemanticSegmentation, path)
        super().__init__(device, [self.network])

    def map(self, image: Image.Image, kind: str) -> Image.Image:
        """The picture's classes in ADE20K's colours, as large."""
        with torch.no_grad():
            answer = self.network(**_inputs(self, image))
        found = self.processor.post_process_semantic_segmentation(answer, target_sizes=[image.size[::-1]])
        return colour_classes(found[0].cpu().numpy())


class PoseMaker(Weights):
    """The bodies of a picture: people are found first, then the joints of each."""

    def __init__(self, path: Path, detector: Path, device: TorchDevice) -> None:
        self.processor, self.network = _opened(VitPoseForPoseEstimation, path)
        self.detector_processor, self.detector = _opened(AutoModelForObjectDetection, detector)
        super().__init__(device, [self.network, self.detector])

    def map(self, image: Image.Image, kind: str) -> Image.Image:
        """The bodies on black, as large as the picture; `InvalidRequest` where there are none."""
        boxes = self.people(image)
        if not len(boxes):
            raise InvalidRequest("Nobody is seen in the control picture whose pose could be followed.")
        return draw_bodies(image.size, self.bodies(image, boxes))

    def people(self, image: Image.Image) -> np.ndarray:
        """Boxes [people, 4] as (left, top, width, height) in the picture's pixels."""
        pixels = self.detector_processor(images=image, return_tensors="pt").to(self.device.torch_device)
        with torch.no_grad():
            answer = self.detector(**pixels)
        found = self.detector_processor.post_process_object_detection(
            answer, target_sizes=[image.size[::-1]], threshold=SURE_OF_A_PERSON
        )[0]
        names: Mapping[int, str] = self.detector.config.id2label
        person = torch.tensor([names.get(int(label)) == PERSON for label in found["labels"]], dtype=torch.bool)
        boxes = found["boxes"].float().cpu().numpy()[person.numpy()]
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def bodies(self, image: Image.Image, boxes: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """OpenPose's points [18, 2] and scores [18] of the person in each box."""
        pixels = self.processor(images=image, boxes=[boxes], return_tensors="pt").to(self.device.torch_device)
        with torch.no_grad():
            answer = self.network(**pixels)
        found = self.processor.post_process_pose_estimation(answer, boxes=[boxes])[0]
        return [
            openpose_points(person["keypoints"].float().cpu().numpy(), person["scores"].float().cpu().numpy())
            for person in found
        ]


def _depth(path: Path, device: TorchDevice, parts: Sequence[ModelRow]) -> Any:
    return DepthMaker(path, device)


def _classes(path: Path, device: TorchDevice, parts: Sequence[ModelRow]) -> Any:
    return ClassMaker(path, device)


def _pose(path: Path, device: TorchDevice, parts: Sequence[ModelRow]) -> Any:
    return PoseMaker(path, next(part.path for part in parts if part.spec.kind == "preprocessor"), device)


MAKERS: Mapping[str, Callable[[Path, TorchDevice, Sequence[ModelRow]], Any]] = {
    "depth-map": _depth,
    "segmentation-map": _classes,
    "pose-map": _pose,
}
"""Task of the row -> what opens it."""


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> Any:
    """Open a map maker, in float32: it runs once for a picture."""
    make = next((make for task, make in MAKERS.items() if task in spec.tasks), None)
    if make is None:
        raise InvalidRequest(f"The model {spec.id!r} draws no maps by itself.", model=spec.id)
    with refusing(spec, "its files are not whole"):
        return make(path, device, parts)


def _opened(model_class: Any, path: Path) -> tuple[Any, Any]:
    processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    network = model_class.from_pretrained(path, dtype=torch.float32, use_safetensors=True, local_files_only=True)
    return processor, network.eval().requires_grad_(False)


def _inputs(maker: Any, image: Image.Image) -> Any:
    return maker.processor(images=image, return_tensors="pt").to(maker.device.torch_device)
