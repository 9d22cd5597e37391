"""What turns points and boxes into masks: SAM and SAM 2, through transformers.

A picture goes through SAM's encoder once: what came of it is kept by the SHA-256 of its pixels, with the model, so that
the second click costs the decoder alone. `calls` counts the passes of both. Sources: Kirillov et al., 2023 (SAM) and
Ravi et al., 2024 (SAM 2).
"""

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import batched_nms, masks_to_boxes
from transformers import Sam2ImageProcessor, Sam2Model, SamImageProcessor, SamModel

from app.imaging.fingerprint import fingerprint
from app.imaging.prompts import Prompts
from app.imaging.segments import Segment
from app.models.device import TorchDevice
from app.models.spec import ModelSpec
from app.models.weights import Weights

REMEMBERED_PICTURES = 8
"""A picture's embedding takes 4 MB (SAM) or 16 MB (SAM 2)."""

POINTS_PER_SIDE = 16
"""Of the grid that looks for everything."""

POINTS_AT_ONCE = 64
LEAST_SCORE, LEAST_STABILITY, MOST_OVERLAP = 0.88, 0.95, 0.7
"""What a mask of the grid must reach to be kept, and the overlap of two boxes from which they are one thing: SAM's."""

STABILITY_OFFSET = 1.0
MOST_SEGMENTS = 64

Turn = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Embedded:
    """A picture as the decoder reads it: the encoder's answer, and the size that the picture had in it (height,
    width)."""

    features: Any
    shown: tuple[int, int]


class SamSegmenter(Weights):
    """SAM or SAM 2 in 32-bit numbers, with the embeddings of the last pictures."""

    def __init__(self, network: SamModel | Sam2Model, device: TorchDevice) -> None:
        super().__init__(device, [network.eval().requires_grad_(False)])
        self.network = network
        self.calls: Counter[str] = Counter()
        self._side = network.config.prompt_encoder_config.image_size
        self._keeps_shape = isinstance(network, SamModel)
        square = {"height": self._side, "width": self._side}
        if self._keeps_shape:
            self._processor = SamImageProcessor(size={"longest_edge": self._side}, pad_size=square)
        else:
            self._processor = Sam2ImageProcessor(size=square)
        self._remembered: OrderedDict[str, Embedded] = OrderedDict()
        self._lock = threading.Lock()

    def at_work(self, turn: Turn, check: Callable[[], None]) -> "Segmenting":
        """What a run is handed: every pass of a network waits for its `turn` at the device."""
        return Segmenting(self, turn, check)

    @torch.inference_mode()
    def embed(self, image: Image.Image) -> Embedded:
        """The encoder's answer for a picture, from memory where it has been seen."""
        key = fingerprint(image)
        with self._lock:
            if key in self._remembered:
                self._remembered.move_to_end(key)
                return self._remembered[key]
        read = self._processor(image, return_tensors="pt")
        shown = (self._side, self._side)
        if self._keeps_shape:
            shown = tuple(int(side) for side in read["reshaped_input_sizes"][0])
        self.calls["encoder"] += 1
        features = self.network.get_image_embeddings(self._moved(read["pixel_values"]))
        found = Embedded(features, shown)
        with self._lock:
            self._remembered[key] = found
            while len(self._remembered) > REMEMBERED_PICTURES:
                self._remembered.popitem(last=False)
        return found

    @torch.inference_mode()
    def decode(self, seen: Embedded, size: tuple[int, int], **prompts: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [things, masks, height, width] of low resolution, and scores [things, masks].

        `prompts` are points [things, points, 2] with labels, and boxes [things, 4], in pixels of a picture of `size`.
        """
        scale = np.array([seen.shown[1] / size[0], seen.shown[0] / size[1]], np.float32)
        told: dict[str, Any] = {}
        if (points := prompts.get("points")) is not None:
            told["input_points"] = self._moved(torch.from_numpy(points * scale))[None]
            told["input_labels"] = torch.from_numpy(prompts["labels"])[None].to(self.device.torch_device)
        if (boxes := prompts.get("boxes")) is not None:
            told["input_boxes"] = self._moved(torch.from_numpy(boxes * np.tile(scale, 2)))[None]
        self.calls["decoder"] += 1
        features = _on(seen.features, self.device.torch_device)
        answer = self.network(image_embeddings=features, multimask_output=True, **told)
        return answer.pred_masks[0].float(), answer.iou_scores[0].float()

    def enlarged(self, logits: torch.Tensor, seen: Embedded, size: tuple[int, int]) -> list[Image.Image]:
        """Masks as large as the picture, of logits [masks, height, width]."""
        height_width = [(size[1], size[0])]
        told = (height_width, [seen.shown]) if self._keeps_shape else (height_width,)
        white = self._processor.post_process_masks([logits[None].cpu()], *told)[0][0]
        return [Image.fromarray(mask.numpy().astype(np.uint8) * 255) for mask in white]


class Segmenting:
    """One run's segmenter; see `app.core.capability.Segmenter`."""

    def __init__(self, sam: SamSegmenter, turn: Turn, check: Callable[[], None]) -> None:
        self._sam, self._turn, self._check = sam, turn, check

    def segment(self, image: Image.Image, prompts: Prompts) -> list[Segment]:
        """Three masks of points, or of a box; of several boxes the best one each."""
        with self._turn():
            seen = self._sam.embed(image)
            logits, scores = self._sam.decode(seen, image.size, **_arrays(prompts))
        if len(logits) > 1:
            best = scores.argmax(dim=1)
            things = torch.arange(len(logits), device=best.device)
            logits, scores = logits[things, best], scores[things, best]
        else:
            logits, scores = logits[0], scores[0]
        masks = self._sam.enlarged(logits, seen, image.size)
        return [Segment(mask, score) for mask, score in zip(masks, scores.tolist(), strict=True)]

    def everything(self, image: Image.Image) -> list[Segment]:
        """What a grid of points finds, the largest first; one mask for each thing, and only what is sure."""
        across, down = ((np.arange(POINTS_PER_SIDE) + 0.5) / POINTS_PER_SIDE * side for side in image.size)
        grid = np.stack(np.meshgrid(across, down), -1).reshape(-1, 1, 2).astype(np.float32)
        kept_logits, kept_scores = [], []
        for start in range(0, len(grid), POINTS_AT_ONCE):
            self._check()
            points = grid[start : start + POINTS_AT_ONCE]
            with self._turn():
                seen = self._sam.embed(image)
                logits, scores = self._sam.decode(
                    seen, image.size, points=points, labels=np.ones(points.shape[:2], np.int64)
                )
            logits, scores = logits.flatten(0, 1), scores.flatten()
            sure = (scores >= LEAST_SCORE) & (stability(logits) >= LEAST_STABILITY) & (logits > 0).any(-1).any(-1)
            kept_logits.append(logits[sure].cpu())
            kept_scores.append(scores[sure].cpu())
        logits, scores = torch.cat(kept_logits), torch.cat(kept_scores)
        if not len(logits):
            return []
        boxes = masks_to_boxes(logits > 0)
        alone = batched_nms(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64), MOST_OVERLAP)[:MOST_SEGMENTS]
        order = alone[(logits[alone] > 0).sum((-1, -2)).argsort(descending=True)]
        return [Segment(self._sam.enlarged(logits[at][None], seen, image.size)[0], float(scores[at])) for at in order]


def stability(logits: torch.Tensor) -> torch.Tensor:
    """How little each mask changes with the threshold: the overlap of what lies above it by 1 and below it by 1."""
    inner = (logits > STABILITY_OFFSET).sum((-1, -2))
    outer = (logits > -STABILITY_OFFSET).sum((-1, -2))
    return inner / outer.clamp(min=1)


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[Any] = ()) -> SamSegmenter:
    """Open a folder in transformers' layout; its config says which of the two models it is."""
    kind = json.loads((path / "config.json").read_text("utf-8")).get("model_type")
    # A checkpoint of SAM 2 is published with the configuration of its video model, of which it is the first half.
    network = (SamModel if kind == "sam" else Sam2Model).from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    return SamSegmenter(network, device)


def _arrays(prompts: Prompts) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    if points := (*prompts.points, *prompts.negative_points):
        labels = [1] * len(prompts.points) + [0] * len(prompts.negative_points)
        found |= {"points": np.array([points], np.float32), "labels": np.array([labels], np.int64)}
    if prompts.boxes:
        found["boxes"] = np.array(prompts.boxes, np.float32)
    return found


def _on(features: Any, device: torch.device) -> Any:
    return [level.to(device) for level in features] if isinstance(features, list) else features.to(device)
