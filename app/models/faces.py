"""The face stack of identity: one face of a picture found, lined up, taken apart and turned into what encoders read.

Every step works on a copy of the picture of at most 1024 pixels, as PuLID's own does; what is handed in and out is in
the pixels of the picture itself. What was once worked out of a picture is remembered by its pixels, so that the second
request with a face runs no network; `calls` counts the passes of each. One analyser may serve several threads.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from PIL import Image

from app.errors import InvalidRequest, NoFaceFound
from app.imaging.detected_faces import (
    SMALLEST_FACE,
    AlignedFace,
    Face,
    FloatBox,
    IdentityFeatures,
    choose_face,
    described,
    largest_first,
    overlap,
)
from app.imaging.fingerprint import fingerprint
from app.models import eva_clip, faces_facexlib, faces_insightface
from app.models.eva_clip import EvaClip
from app.models.faces_facexlib import Parser, RetinaFaceDetector
from app.models.faces_insightface import Pack
from app.models.offloading import weight_bytes
from app.models.onnx_sessions import providers_for
from app.models.spec import ModelSpec

LONGEST_SIDE = 1024
REMEMBERED_PICTURES = 24
"""At full size a picture's features take 12 MB."""

NOT_THE_FACE = (0, 16, 18, 7, 8, 9, 14, 15)
"""Parts that PuLID paints white: background, clothes, hat, ears, earring, neck, necklace. Hair stays."""

LUMINANCE = (0.299, 0.587, 0.114)
SAME_FACE = 0.3
"""Overlap from which two detectors' boxes are of one face."""

ALIGNMENT_FILES = ("retinaface_*.safetensors",)
PARSER_FILES = ("parsing_bisenet.safetensors", "parsing.safetensors", faces_facexlib.PUBLISHED_PARSENET)

Answer = TypeVar("Answer")


class FaceAnalyser:
    """The networks of a face pack; those that it has not are None, and what needs them is an `InvalidRequest`.

    Faces are found by the pack's detector, else by RetinaFace; lined up by RetinaFace, else by the detector's points.
    """

    def __init__(
        self,
        pack: Pack,
        alignment: RetinaFaceDetector | None = None,
        parser: Parser | None = None,
        clip: EvaClip | None = None,
    ) -> None:
        self._pack, self._alignment, self._parser, self._clip = pack, alignment, parser, clip
        if pack.detector is None and alignment is None:
            raise InvalidRequest("The face pack holds no detector: its files are missing.")
        self._detector = pack.detector or alignment
        self.modules: list[torch.nn.Module] = [
            part for part in (alignment and alignment.network, parser and parser.network, clip) if part is not None
        ]
        self.calls: Counter[str] = Counter()
        self._remembered: OrderedDict[str, dict[Any, Any]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def bytes(self) -> int:
        """The size of all weights."""
        return self._pack.bytes + weight_bytes(*self.modules)

    def to(self, device: torch.device) -> "FaceAnalyser":
        """Move the torch networks; ONNX models stay where they were opened."""
        with self._lock:
            for module in self.modules:
                module.to(device)
        return self

    def detect(self, image: Image.Image) -> list[Face]:
        """All faces of a picture, the largest first; an empty list where none is found at any size."""

        def work(bgr: np.ndarray, across: float, down: float) -> list[Face]:
            return largest_first([face.scaled(across, down) for face in self._detector.detect(bgr, self._count)])

        return list(self._recall(image, "detect", work))

    def find(self, image: Image.Image, *, index: int | None = None, box: FloatBox | None = None) -> Face:
        """The one face that a request means; the errors of `choose_face`."""
        smallest = SMALLEST_FACE * max(1.0, max(image.size) / LONGEST_SIDE)
        return choose_face(
            self.detect(image), index=index, box=box, smallest=smallest, tried=f"looked {self._detector.tried}"
        )

    def embed(self, image: Image.Image, face: Face) -> np.ndarray:
        """ArcFace's vector [512] of a face, raw: its length says how sure the network is, and encoders read it."""

        def work(bgr: np.ndarray, across: float, down: float) -> np.ndarray:
            network = self._require(self._pack.recognition, "recognition")
            self.calls["recognition"] += 1
            return _kept(faces_insightface.embedding(network, bgr, face.scaled(1 / across, 1 / down)))

        return self._recall(image, ("embed", face.box), work)

    def landmarks_68(self, image: Image.Image, face: Face) -> np.ndarray:
        """68 points [68, 3] (iBUG's order; x, y and depth in pixels, depth counted towards the viewer)."""

        def work(bgr: np.ndarray, across: float, down: float) -> np.ndarray:
            network = self._require(self._pack.landmarks, "the 68 points")
            self.calls["landmarks"] += 1
            points = faces_insightface.landmarks(network, bgr, face.scaled(1 / across, 1 / down))
            return _kept(points * np.array([across, down, (across + down) / 2], dtype=np.float32))

        return self._recall(image, ("landmarks", face.box), work)

    def align(self, image: Image.Image, face: Face) -> AlignedFace:
        """This face on 512x512; `NoFaceFound` where the network that lines faces up does not see it."""

        def work(bgr: np.ndarray, across: float, down: float) -> AlignedFace:
            keypoints = self._alignment_points(bgr, face.scaled(1 / across, 1 / down), across, down)
            crop, matrix = faces_facexlib.align(bgr, keypoints)
            matrix = matrix @ np.diag([1 / across, 1 / down, 1.0])
            factors = np.array([across, down], dtype=np.float32)
            picture = Image.fromarray(cv2.cvtColor(crop, cv2.COLOR_BGR2RGB))
            return AlignedFace(picture, _kept(matrix), _kept(keypoints * factors))

        return self._recall(image, ("align", face.box), work)

    @staticmethod
    def full_crop(image: Image.Image, aligned: AlignedFace) -> Image.Image:
        """The aligned face taken from the picture itself, which shows more of it than the copy that was looked at."""
        if max(image.size) <= LONGEST_SIDE:
            return aligned.image
        bgr = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
        return Image.fromarray(cv2.cvtColor(faces_facexlib.crop_by(bgr, aligned.matrix), cv2.COLOR_BGR2RGB))

    def parse(self, crop: Image.Image) -> np.ndarray:
        """Which part of the face each pixel of an aligned crop shows: [512, 512] of bytes, numbers as `Parser` says."""

        def work(_bgr: np.ndarray, _across: float, _down: float) -> np.ndarray:
            parser = self._require(self._parser, "the parts of a face")
            self.calls["parser"] += 1
            return _kept(parser.parse(_unit(crop, parser.network)))

        return self._recall(crop, "parse", work)

    def eva_input(self, crop: Image.Image) -> torch.Tensor:
        """[1, 3, 512, 512] in 0..1: the face in grey, white where the crop shows something else."""
        behind = torch.from_numpy(np.isin(self.parse(crop), NOT_THE_FACE))
        picture = _unit(crop, self._parser.network)
        grey = (picture * torch.tensor(LUMINANCE, device=picture.device).view(3, 1, 1)).sum(0)
        return torch.where(behind.to(grey.device), 1.0, grey).expand(1, 3, -1, -1)

    def identify(self, image: Image.Image, face: Face) -> IdentityFeatures:
        """All that PuLID's encoders read of a face."""

        def work(bgr: np.ndarray, across: float, down: float) -> IdentityFeatures:
            clip = self._require(self._clip, "the image encoder")
            arcface = self.embed(image, face)
            crop = self.eva_input(self.align(image, face).image)
            self.calls["clip"] += 1
            features = clip.encode(clip.preprocess(crop.to(next(clip.parameters()).device)))
            pooled = torch.nn.functional.normalize(features.pooled, dim=-1)
            pooled, *hidden = (_kept(part[0].float().cpu().numpy()) for part in (pooled, *features.hidden))
            return IdentityFeatures(arcface, pooled, tuple(hidden))

        return self._recall(image, ("identify", face.box), work)

    def _alignment_points(self, bgr: np.ndarray, face: Face, across: float, down: float) -> np.ndarray:
        if self._alignment is None or self._alignment is self._detector:
            return face.keypoints
        seen = self._alignment.detect(bgr, self._count)
        nearest = max(seen, key=lambda other: overlap(other.box, face.box), default=None)
        if nearest is None or overlap(nearest.box, face.box) < SAME_FACE:
            raise NoFaceFound(
                "The face was found but cannot be lined up: the second detector does not see it. Use a clearer picture "
                "of it, from the front and not cut off.",
                faces=described([face.scaled(across, down)]),
            )
        return nearest.keypoints

    def _count(self, network: str) -> None:
        self.calls[network] += 1

    @staticmethod
    def _require(network: Any, purpose: str) -> Any:
        if network is None:
            raise InvalidRequest(f"The face pack has no model for {purpose}.")
        return network

    def _recall(self, image: Image.Image, what: Any, work: Callable[[np.ndarray, float, float], Answer]) -> Answer:
        """What was worked out of these pixels before, or is now, from the copy that the networks look at."""
        with self._lock:
            key = fingerprint(image)
            known = self._remembered.setdefault(key, {})
            self._remembered.move_to_end(key)
            while len(self._remembered) > REMEMBERED_PICTURES:
                self._remembered.popitem(last=False)
            if what not in known:
                bgr, across, down = working_copy(image)
                known[what] = work(bgr, across, down)
            return known[what]


def working_copy(image: Image.Image) -> tuple[np.ndarray, float, float]:
    """The picture in bytes (blue, green, red), no longer than 1024; how many times as wide and high it was before."""
    bgr = cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)
    width, height = image.size
    scale = LONGEST_SIDE / max(width, height)
    if scale < 1:
        size = max(1, int(width * scale)), max(1, int(height * scale))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_LANCZOS4)
    return bgr, width / bgr.shape[1], height / bgr.shape[0]


def alignment_error(aligned: AlignedFace) -> float:
    """How far the five points lie from the template's after aligning: the mean distance in pixels of the crop."""
    moved = aligned.keypoints @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    return float(np.linalg.norm(moved - faces_facexlib.TEMPLATE, axis=1).mean())


def open_analyser(folders: Sequence[Path], device: Any, clip: EvaClip | None = None) -> FaceAnalyser:
    """The analyser of what these folders hold together (a pack's, facexlib's); `InvalidRequest` names a damaged file.

    `device` is an `app.models.device.TorchDevice`.
    """
    place = device.torch_device
    pack = faces_insightface.open_pack(folders, providers_for(place.type, place.index))
    alignment, parser = _first(folders, ALIGNMENT_FILES), _first(folders, PARSER_FILES)
    return FaceAnalyser(
        pack,
        faces_facexlib.open_alignment(alignment) if alignment else None,
        faces_facexlib.open_parser(parser) if parser else None,
        clip,
    ).to(place)


def load(spec: ModelSpec, path: Path, device: Any, parts: Sequence[Any] = ()) -> FaceAnalyser:
    """Open a row of faces with its parts: further folders of face models, and the image encoder if there is one."""
    encoder = next((part for part in parts if part.spec.kind == "image-encoder"), None)
    clip = eva_clip.load(encoder.spec, encoder.path, device) if encoder else None
    return open_analyser([path, *(part.path for part in parts if part.spec.kind == "faces")], device, clip)


def _first(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((file for name in names for folder in folders for file in sorted(folder.rglob(name))), None)


def _unit(picture: Image.Image, network: torch.nn.Module) -> torch.Tensor:
    """A picture as [3, height, width] in 0..1 where the network stands."""
    pixels = torch.from_numpy(np.array(picture)).to(next(network.parameters()).device)
    return pixels.permute(2, 0, 1).float() / 255


def _kept(array: np.ndarray) -> np.ndarray:
    """An array that several callers may hold: nobody can write to it."""
    array.setflags(write=False)
    return array
