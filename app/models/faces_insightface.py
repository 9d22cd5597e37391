"""The face models of an insightface pack (antelopev2's layout): where faces are, whose they are, their 68 points.

The classes are insightface's own; here stands how a pack is opened and with which numbers they are asked, which are
those that the identity models were trained with: one scale of 640 pixels, score 0.5, overlap 0.4.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from insightface.app.common import Face as InsightFace
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from insightface.model_zoo.landmark import Landmark
from insightface.model_zoo.scrfd import SCRFD

from app.errors import InvalidRequest
from app.imaging.detected_faces import Face
from app.models.onnx_sessions import ONNX_DAMAGED, open_session

# insightface asks scikit-image for a similarity by a name that is going out of use; the answer is the same.
warnings.filterwarnings("ignore", message="`estimate` is deprecated", category=FutureWarning)

LARGEST_LOOK, SMALLEST_LOOK, LOOK_STEP = 640, 128, 64
SCORE, OVERLAP = 0.5, 0.4
EMBEDDING = 512
LANDMARK_NUMBERS = 3309
DAMAGED = (*ONNX_DAMAGED, DecodeError)
"""What onnxruntime and insightface raise at a file that is cut, empty or something else."""

Count = Callable[[str], None]


@dataclass(frozen=True)
class Pack:
    """The models of a pack that are used here; the ones that it lacks are None."""

    detector: "ScrfdDetector | None" = None
    recognition: ArcFaceONNX | None = None
    landmarks: Landmark | None = None
    bytes: int = 0


class ScrfdDetector:
    """SCRFD as insightface runs it, and again on smaller copies of the picture where it finds nobody.

    A face that fills the picture is larger than what the network was trained to find; a smaller copy shows it whole.
    """

    tried = f"at sizes from {LARGEST_LOOK} down to {SMALLEST_LOOK} pixels"

    def __init__(self, network: SCRFD) -> None:
        network.prepare(0, nms_thresh=OVERLAP, det_thresh=SCORE)
        self._network = network
        self._looks: Sequence[int] = range(LARGEST_LOOK, SMALLEST_LOOK - 1, -LOOK_STEP)
        if network.static_input_size is not None:
            self._looks = network.static_input_size[:1]
            self.tried = f"at {self._looks[0]} pixels"

    def detect(self, bgr: np.ndarray, count: Count) -> list[Face]:
        """The faces in a picture [height, width, 3] of bytes; `count` is told of each pass."""
        for look in self._looks:
            if look * min(bgr.shape[:2]) < max(bgr.shape[:2]):
                break  # of a copy this small no row would be left
            count("detector")
            boxes, keypoints = self._network.detect(bgr, input_size=(look, look))
            if len(boxes):
                return [
                    Face(tuple(map(float, box[:4])), float(box[4]), points)
                    for box, points in zip(boxes, keypoints, strict=True)
                ]
        return []


def embedding(network: ArcFaceONNX, bgr: np.ndarray, face: Face) -> np.ndarray:
    """The raw vector [512] of a face of this picture."""
    return network.get(bgr, InsightFace(kps=face.keypoints))


def embedding_of_crop(network: ArcFaceONNX, bgr: np.ndarray) -> np.ndarray:
    """The raw vector [512] of a crop that is already upright, of any size."""
    return network.get_feat(bgr).flatten()


def landmarks(network: Landmark, bgr: np.ndarray, face: Face) -> np.ndarray:
    """68 points [68, 3] in the picture's pixels, iBUG's order; the third number is depth, towards the viewer."""
    return network.get(bgr, InsightFace(bbox=np.array(face.box, dtype=np.float32)))


def open_pack(folders: Sequence[Path], providers: Sequence[object]) -> Pack:
    """The face models among the `.onnx` files of these folders and the folders in them, told apart by their shapes.

    `InvalidRequest` where a file is damaged, a model is there twice, or a pack lacks its detector or its recognition.
    """
    files = [file for folder in folders for file in sorted(folder.rglob("*.onnx"))]
    models: dict[str, object] = {}
    size = 0
    for file in files:
        try:
            found = _open_model(file, providers)
        except (*DAMAGED, AssertionError) as error:
            raise InvalidRequest(f"The face model {file.name} is damaged; fetch its pack again.") from error
        if found is None:
            continue
        name, model = found
        if name in models:
            raise InvalidRequest(f"The face pack holds two models for {name}; one of them is {file.name}.")
        models[name] = model
        size += file.stat().st_size
    lacking = [name for name in ("detection", "recognition") if name not in models]
    if files and lacking:
        raise InvalidRequest(f"The face pack is not whole: it lacks the model for {' and '.join(lacking)}.")
    return Pack(models.get("detection"), models.get("recognition"), models.get("landmarks"), size)


def _open_model(file: Path, providers: Sequence[object]) -> tuple[str, object] | None:
    """What a file is for, and its model; None for what is not used here (age and gender, 106 points)."""
    session = open_session(file, providers)
    inputs, outputs = session.get_inputs()[0].shape, session.get_outputs()
    if len(outputs) in (9, 15):
        # One session for all sizes: insightface would keep a copy of the network for each.
        return "detection", ScrfdDetector(SCRFD(str(file), session, static_shape_sessions=False))
    if len(outputs) != 1:
        return None
    if outputs[0].shape[-1] == LANDMARK_NUMBERS:
        return "landmarks", Landmark(str(file), session)
    if outputs[0].shape[-1] == EMBEDDING and inputs[2:] == [112, 112]:
        return "recognition", ArcFaceONNX(str(file), session)
    return None
