"""A folder of 200 pictures tagged in one request beside a request for each, and the network alone in both ways."""

import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

PICTURES, PART = 200, 32
SIDE = 512


def folders(rounds: int) -> list[Row]:
    """Through the service, whose every job has its own way through queue and store; and by onnxruntime alone."""
    return [_service(max(1, rounds // 2)), _network(rounds)]


def _service(rounds: int) -> Row:
    from tests.api.serving import serving

    with (
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), catalog="app.core.catalog:CATALOG", engine={"runtime": "app.models.runtime:open_runtime"},
                ready_seconds=300) as running,
    ):  # fmt: skip
        references = [running.upload(data) for data in _files()]
        tag(running, references[:1])
        alone, together = [], []
        for _ in range(rounds):
            begun = time.perf_counter()
            one_by_one = [tag(running, [reference])[0] for reference in references]
            alone.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            at_once = tag(running, references)
            together.append(time.perf_counter() - begun)
            assert [one["caption"] for one in at_once] == [one["caption"] for one in one_by_one]
    ratio = statistics.median(a / b for a, b in zip(alone, together, strict=True))
    return (
        f"{PICTURES} pictures of {SIDE}x{SIDE} tagged in one request, by pocket's tagger on the CPU",
        f"{ratio:.2f} x as fast as a request for each",
        f"{statistics.median(together):.1f} s beside {statistics.median(alone):.1f} s",
    )


def tag(running: Any, references: list[str]) -> list[dict[str, Any]]:
    """The pictures' tags by one request."""
    wish = {"image": references[0], "further_images": references[1:], "tagger": "pocket-tagger"}
    answer = running.client.post("/api/v1/tag-image?wait=300", content=json.dumps(wish), timeout=600,
                                 headers={"content-type": "application/json"})  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]["data"]["pictures"]


def _network(rounds: int) -> Row:
    import numpy as np

    from app.models import taggers
    from app.models.device import TorchDevice
    from app.pocket.train_tagger import FOLDER

    tagger = taggers.load(None, FOLDER, TorchDevice("cpu", "float32"))
    pictures = np.random.default_rng(0).uniform(0, 255, (PART, tagger.side, tagger.side, 3)).astype(np.float32)
    tagger.pass_of(pictures[: tagger.batch])
    alone, together = [], []
    for _ in range(rounds):
        for times, step in ((alone, 1), (together, tagger.batch)):
            begun = time.perf_counter()
            for start in range(0, PART, step):
                tagger.pass_of(pictures[start : start + step])
            times.append((time.perf_counter() - begun) / PART)
    ratio = statistics.median(a / b for a, b in zip(alone, together, strict=True))
    return (
        f"the same network alone, {tagger.batch} pictures a pass",
        f"{ratio:.2f} x as fast as one a pass",
        f"{1000 * statistics.median(together):.1f} ms beside {1000 * statistics.median(alone):.1f} ms a picture",
    )


def _files() -> Iterator[bytes]:
    import random

    from app.pocket.world import draw, random_scene

    for number in range(PICTURES):
        buffer = io.BytesIO()
        draw(random_scene(random.Random(number)), SIDE).save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()
