"""What the service costs: start, overhead over the bare pipeline, submit rate, polling rate.

Both sides of every ratio run in one process run, interleaved; the figures are medians. Every picture has words of its
own, the same on both sides: the service remembers what it encoded, and a repeated prompt would flatter it.
"""

import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import app.models  # noqa: F401  (the worker's own settings of torch's threads, before torch is imported)
from benchmarks import load
from benchmarks.rows import Row
from benchmarks.server import serving, wait_ready

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "app" / "pocket" / "weights"
WISH = {"prompt": "a red car, blue background", "num_inference_steps": 20, "seed": 7, "model": "pocket"}
THINGS, COLOURS = ("car", "tree", "house", "apple"), ("red", "green", "yellow", "white", "purple")
BARE_SCRIPT = f"""
import app.models
import torch
from diffusers import StableDiffusionXLPipeline
pipe = StableDiffusionXLPipeline.from_pretrained({str(POCKET)!r}, dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
noise = torch.Generator().manual_seed(7)
image = pipe(prompt={WISH["prompt"]!r}, num_inference_steps=20, generator=noise).images[0]
image.save("/dev/null", "PNG")
"""


def python(code: str) -> float:
    """Seconds that a fresh interpreter needs for this code."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    return time.perf_counter() - begun


def prompts() -> Iterator[str]:
    """Words that never come twice, each about as long as the others."""
    for number in itertools.count():
        thing, colour = THINGS[number % len(THINGS)], COLOURS[number // len(THINGS) % len(COLOURS)]
        yield f"a {colour} {thing}, blue background, picture {number}"


def draw(address: str, prompt: str) -> float:
    """Seconds from the request of one pocket picture to its answer."""
    body = json.dumps({**WISH, "prompt": prompt}).encode()
    call = urllib.request.Request(
        f"{address}/api/v1/text-to-image?wait=600", body, {"Content-Type": "application/json"}
    )
    begun = time.perf_counter()
    with urllib.request.urlopen(call, timeout=660) as answer:
        job = json.load(answer)
    assert job["status"] == "succeeded", job
    return time.perf_counter() - begun


def cold_start(rounds: int) -> list[Row]:
    """Process start to the first answer, beside what the same costs without the service."""
    imports, healths, bare, firsts = [], [], [], []
    for _ in range(rounds):
        imports.append(python("from diffusers import StableDiffusionXLPipeline"))
        with tempfile.TemporaryDirectory() as home, serving(Path(home)) as running:
            healths.append(running.seconds_to_health)
            draw(running.address, WISH["prompt"])
            firsts.append(time.perf_counter() - running.begun)
        bare.append(python(BARE_SCRIPT))
    health, imported = statistics.median(healths), statistics.median(imports)
    first, alone = statistics.median(firsts), statistics.median(bare)
    return [
        (
            "start to `/health`",
            f"{health:.2f} s",
            f"{health / imported:.2f} x the pipeline's import ({imported:.2f} s)",
        ),
        ("start to first picture", f"{first:.2f} s", f"{first / alone:.2f} x a bare script ({alone:.2f} s)"),
    ]


def overhead(rounds: int, stored: int) -> list[Row]:
    """A picture through REST against the bare pipeline call, with many jobs stored."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(POCKET, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def bare(prompt: str) -> tuple[float, float]:
        begun = time.perf_counter()
        image = pipeline(
            prompt=prompt,
            num_inference_steps=20,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(7),
        ).images[0]
        called = time.perf_counter()
        image.save(io.BytesIO(), "PNG")
        return called - begun, time.perf_counter() - called

    with (
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), catalog="benchmarks.capabilities:CATALOG") as running,
    ):
        wait_ready(running.address)
        address = running.address
        wish = load.request(address, "POST", "/api/v1/nothing?wait=600", b"{}")
        assert set(load.run(address, [wish] * stored).statuses) == {200}
        with urllib.request.urlopen(f"{address}/api/v1/models/pocket", timeout=10) as answer:
            guidance = json.load(answer)["recommended"]["guidance_scale"]
        words = prompts()
        for prompt in itertools.islice(words, 3):
            bare(prompt)
            draw(address, prompt)
        pairs = [(bare(prompt), draw(address, prompt)) for prompt in itertools.islice(words, rounds)]
    call = statistics.median(one[0] for one, _ in pairs)
    encoding = statistics.median(one[1] for one, _ in pairs)
    served = statistics.median(two for _, two in pairs)
    extra = statistics.median(two - one[0] - one[1] for one, two in pairs)
    return [
        (
            f"overhead over the bare call, {stored} jobs stored",
            f"{extra * 1000:.1f} ms",
            f"call {call * 1000:.0f} ms, PNG {encoding * 1000:.1f} ms, through REST {served * 1000:.0f} ms",
        )
    ]


def rates(count: int) -> list[Row]:
    """Durable submits and polls a second over REST."""
    with tempfile.TemporaryDirectory() as home:
        catalog = "benchmarks.capabilities:CATALOG_WITHOUT_MODELS"
        with serving(Path(home), catalog=catalog, ui=False, EIS_QUEUE_LIMIT="100000") as running:
            wait_ready(running.address)
            address = running.address
            submit = load.request(address, "POST", "/api/v1/nothing?wait=0", b"{}")
            load.run(address, [submit] * 200)
            submitted = load.run(address, [submit] * count)
            assert set(submitted.statuses) <= {200, 202}, set(submitted.statuses)
            ids = [json.loads(body)["id"] for body in submitted.bodies]
            polls = [load.request(address, "GET", f"/api/v1/jobs/{name}") for name in ids * 3]
            polled = load.run(address, polls)
            assert set(polled.statuses) == {200}
    return [
        (
            "durable submits",
            f"{submitted.rate:.0f} a second",
            f"p99 {submitted.percentile(0.99) * 1000:.0f} ms, 8 connections, the worker busy",
        ),
        (
            "polls of a job",
            f"{polled.rate:.0f} a second",
            f"p99 {polled.percentile(0.99) * 1000:.0f} ms, 8 connections",
        ),
    ]
