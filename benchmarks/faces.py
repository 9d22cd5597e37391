"""Encoding a face beside the bare forward passes of its parts: random networks of the published shapes."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

SIDE = 1024
FACE_SIDE = 32 * SIDE // 640
"""Of the bright square that the detector takes for a face: one cell of its coarsest grid."""


def identify(rounds: int) -> list[Row]:
    """A picture of 1024x1024 to ArcFace's vector and the image encoder's features; every round is a new picture.

    Detector like SCRFD-10G, recognition like ResNet-100, RetinaFace with ResNet-50, BiSeNet, EVA02-CLIP-L-336.
    """
    import cv2
    import numpy as np
    import torch
    from facexlib.parsing.bisenet import BiSeNet
    from PIL import Image

    from app.models import faces, faces_facexlib, faces_insightface, onnx_sessions
    from app.models.device import TorchDevice
    from benchmarks.onnx_networks import write_iresnet100, write_scrfd_10g

    device = TorchDevice("cpu")
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folder = Path(name)
        write_scrfd_10g(folder / "scrfd_10g_bnkps.onnx")
        write_iresnet100(folder / "glintr100.onnx")
        pack = faces_insightface.open_pack([folder], onnx_sessions.providers_for("cpu", None))
        retinaface = faces_facexlib.AlignmentNetwork("resnet50").eval()
        parser = faces_facexlib.Parser(BiSeNet(num_class=19).eval(), faces_facexlib.CROP)
        clip = _random_clip()
        analyser = faces.FaceAnalyser(pack, _Sighted(retinaface), parser, clip).to(device.torch_device)

        bare: list[tuple[str, Callable[[], Any]]] = [
            ("detector", _session(pack.detector._network, (1, 3, 640, 640))),
            ("recognition", _session(pack.recognition, (1, 3, 112, 112))),
            ("RetinaFace", lambda: retinaface(torch.randn(1, 3, SIDE, SIDE))),
            ("BiSeNet", lambda: parser.network(torch.randn(1, 3, 512, 512))),
            ("EVA02-CLIP", lambda: clip.encode(torch.randn(1, 3, 336, 336))),
        ]
        whole: list[float] = []
        parts: dict[str, list[float]] = {part: [] for part, _ in bare}

        def encode(picture: Image.Image) -> None:
            whole.append(_seconds(lambda: analyser.identify(picture, analyser.find(picture))))

        def pass_through() -> None:
            for part, run in bare:
                parts[part].append(_seconds(run))

        for number in range(rounds + 1):
            pixels = np.random.default_rng(number).integers(0, 3, (SIDE, SIDE, 3), dtype=np.uint8)
            cv2.rectangle(pixels, (512, 512), (512 + FACE_SIDE - 1, 512 + FACE_SIDE - 1), (255, 255, 255), -1)
            picture = Image.fromarray(pixels)
            # Each side is first every second time: a busy machine slows whichever runs then.
            turns = [lambda picture=picture: encode(picture), pass_through]
            for turn in turns if number % 2 else reversed(turns):
                turn()
        passes = dict(analyser.calls)
        again = _seconds(lambda: analyser.identify(picture, analyser.find(picture)))
    assert passes == {part: rounds + 1 for part in ("detector", "alignment", "recognition", "parser", "clip")}, passes
    assert dict(analyser.calls) == passes
    bare_times = [sum(taken) for taken in zip(*(times[1:] for times in parts.values()), strict=True)]
    medians = ", ".join(f"{part} {statistics.median(times[1:]):.2f}" for part, times in parts.items())
    ratio = statistics.median(one / other for one, other in zip(whole[1:], bare_times, strict=True))
    what = f"a face of a {SIDE}x{SIDE} picture encoded, {torch.get_num_threads()} threads"
    return [
        (
            what,
            f"{ratio:.2f} x its bare forward passes",
            f"{statistics.median(whole[1:]):.2f} s beside {statistics.median(bare_times):.2f} s: {medians}",
        ),
        (f"{what}: again", f"{again * 1000:.0f} ms", "no forward pass; the picture's SHA-256"),
    ]


def _seconds(run: Callable[[], Any]) -> float:
    import torch

    begun = time.perf_counter()
    with torch.inference_mode():
        run()
    return time.perf_counter() - begun


class _Sighted:
    """RetinaFace whose whole pass is run, and which then sees the bright square: random weights see nothing."""

    tried = ""

    def __init__(self, network: Any) -> None:
        from app.models.faces_facexlib import RetinaFaceDetector

        self.network, self._detector = network, RetinaFaceDetector(network)

    def detect(self, bgr: Any, count: Callable[[str], None]) -> list[Any]:
        import numpy as np

        from app.imaging.detected_faces import Face

        self._detector.detect(bgr, count)
        points = np.array([(-20, -20), (20, -20), (0, 0), (-15, 20), (15, 20)], dtype=np.float32) + 538
        return [Face((470.0, 470.0, 590.0, 590.0), 1.0, points)]


def _random_clip() -> Any:
    """EVA02-CLIP-L-336 of random weights."""
    from timm.models.eva import Eva

    from app.models.eva_clip import TRAINED_GRID, EvaClip

    tower = Eva(
        img_size=336, patch_size=14, embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4 * 2 / 3, num_classes=768,
        qkv_fused=False, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True,
        ref_feat_shape=TRAINED_GRID, global_pool="token",
    )  # fmt: skip
    return EvaClip(tower).eval()


def _session(model: Any, shape: tuple[int, ...]) -> Callable[[], Any]:
    """The bare pass of an ONNX model over noise."""
    import numpy as np

    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return lambda: model.session.run(None, {model.input_name: noise})
