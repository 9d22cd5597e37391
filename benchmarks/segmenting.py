"""The first click in a picture beside the second: SAM and SAM 2 at random weights of the base size."""

import statistics
import time
from contextlib import nullcontext

from benchmarks.rows import Row

SIDE = 1024


def clicks(rounds: int) -> list[Row]:
    """Every round is a new picture, and two places in it; the second finds the picture's embedding."""
    return [_row("SAM, ViT base", _sam(), rounds), _row("SAM 2.1, Hiera base plus", _sam2(), rounds)]


def _row(what: str, network: object, rounds: int) -> Row:
    import numpy as np
    import torch
    from PIL import Image

    from app.imaging.prompts import Prompts
    from app.models.device import TorchDevice
    from app.models.segmenters import SamSegmenter

    sam = SamSegmenter(network, TorchDevice("cpu", "float32"))
    at_work = sam.at_work(nullcontext, lambda: None)
    times: dict[str, list[float]] = {"first": [], "second": []}
    for number in range(rounds + 1):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        for click, place in (("first", (300, 400)), ("second", (700, 200))):
            begun = time.perf_counter()
            at_work.segment(image, Prompts(points=(place,)))
            times[click].append(time.perf_counter() - begun)
        assert sam.calls == {"encoder": number + 1, "decoder": 2 * (number + 1)}, sam.calls
    first, second = (statistics.median(times[click][1:]) for click in ("first", "second"))
    ratio = statistics.median(b / a for a, b in zip(times["first"][1:], times["second"][1:], strict=True))
    return (
        f"{what}: the second click in a {SIDE}x{SIDE} picture, {torch.get_num_threads()} threads",
        f"{ratio:.3f} x the first",
        f"{second:.2f} s beside {first:.2f} s; one pass of the encoder for both",
    )


def _sam() -> object:
    import torch
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    return SamModel(SamConfig(vision_config={"initializer_range": 0.02})).eval()


def _sam2() -> object:
    import torch
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=112, num_attention_heads=2, blocks_per_stage=[2, 3, 16, 3], global_attention_blocks=[12, 16, 20],
        embed_dim_per_stage=[112, 224, 448, 896], num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 14, 7], window_positional_embedding_background_size=[14, 14],
    )  # fmt: skip
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[896, 448, 224, 112])
    torch.manual_seed(0)
    return Sam2Model(Sam2Config(vision_config=vision)).eval()
