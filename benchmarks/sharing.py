"""What sharing forwards and stepping aside are worth: tiny models anywhere, full-size ones where a GPU is at hand.

A tiny UNet stands for a GPU that a single job leaves idle: its forward costs Python's overhead, however many rows it
has. What is shown there is that the jobs do meet; what that is worth on a full-size model is for a GPU to tell.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, left_out
from tests.models.mixed_jobs import Wish, at_once, draw, mixed_wishes

POCKET = "pocket"


def together(runtime: Any, model: str, wishes: list[Wish]) -> list[Any]:
    """All at once: they stand at the door before the first one steps."""
    door = threading.Barrier(len(wishes))

    def job(wish: Wish) -> Callable[[], Any]:
        def run() -> Any:
            door.wait()
            return draw(runtime, model, wish)

        return run

    answers = at_once([job(wish) for wish in wishes])
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def shared_forwards(rounds: int) -> list[Row]:
    """Eight mixed jobs of one tiny base, at once and one after the other."""
    import torch

    from app.models.library import ModelLibrary
    from app.models.runtime import open_runtime
    from tests.models.tiny_checkpoints import make_sd15, make_sdxl

    rows = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        library = ModelLibrary(Path(home) / "home")
        for name, make in (("tiny-sd15", make_sd15), ("tiny-sdxl", make_sdxl)):
            library.add(make(Path(home) / name), id=name)
            runtime = open_runtime(device="cpu", library=library, precision="float32")
            wishes, ratios, speeds, worst = mixed_wishes(), [], [], 0
            together(runtime, name, wishes)
            for _ in range(rounds):
                begun, before = time.perf_counter(), runtime.batcher.counts.forwards
                alone = [draw(runtime, name, wish) for wish in wishes]
                alone_seconds, alone_forwards = time.perf_counter() - begun, runtime.batcher.counts.forwards - before
                begun, before = time.perf_counter(), runtime.batcher.counts.forwards
                shared = together(runtime, name, wishes)
                speeds.append(alone_seconds / (time.perf_counter() - begun))
                ratios.append((runtime.batcher.counts.forwards - before) / sum(steps for _, steps in alone))
                assert alone_forwards == sum(steps for _, steps in alone)
                worst = max(worst, *(abs(one[0] - two[0]).max() for one, two in zip(alone, shared, strict=True)))
            runtime.close()
            rows.append(
                (
                    f"8 mixed jobs at once, {name}: forwards",
                    f"{statistics.median(ratios):.2f} x the sum of steps",
                    f"{statistics.median(speeds):.1f} x as fast as one by one; pictures differ by {worst} of 255",
                )
            )
    torch.set_num_threads(threads)
    return rows


def urgent(rounds: int) -> list[Row]:
    """A job of priority 10 comes while one of priority 0 and 50 steps runs on the only worker."""
    from app.core.engine_options import EngineOptions
    from app.core.jobs import JobStatus
    from app.core.service import Service

    wish = {"prompt": "a red car, blue background", "model": POCKET, "seed": 7, "scheduler": "DDIM"}
    waits, with_it, without_it = [], [], []
    with tempfile.TemporaryDirectory() as home:
        service = Service(EngineOptions(home=Path(home), devices=("cpu",)))
        service.start()

        def finish(*ids: str) -> float:
            for name in ids:
                for _ in service.watch_blocking(name):
                    pass
                assert service.get(name).status is JobStatus.SUCCEEDED
            return time.perf_counter()

        def background(number: int) -> str:
            words = f"a green tree, picture {number}"
            return service.submit("text-to-image", {**wish, "prompt": words, "num_inference_steps": 50}, priority=0).id

        finish(service.submit("text-to-image", {**wish, "num_inference_steps": 4}).id)
        for number in range(rounds):
            begun = time.perf_counter()
            without_it.append(50 / (finish(background(2 * number)) - begun))
            begun = time.perf_counter()
            slow = background(2 * number + 1)
            while service.get(slow).step < 10:
                time.sleep(0.001)
            came = time.perf_counter()
            quick_wish = {**wish, "prompt": f"a blue boat, picture {number}", "num_inference_steps": 20}
            quick = service.submit("text-to-image", quick_wish, priority=10).id
            first = next(time.perf_counter() for event in service.watch_blocking(quick) if event.kind == "step")
            with_it.append(70 / (finish(quick, slow) - begun))
            waits.append((first - came) * without_it[-1] - 1)
        service.stop(0)
    return [
        (
            "priority 10 arrives at step 10 of 50: its first step begins after",
            f"{statistics.median(waits):.1f} step times",
            f"all steps a second {statistics.median(with_it):.1f}, without it {statistics.median(without_it):.1f}: "
            f"{statistics.median(with_it) / statistics.median(without_it):.2f} x",
        )
    ]


def full_size(rounds: int) -> Iterator[Row]:
    """Mixed jobs of full-size random models on a GPU against the same through plain diffusers, one by one."""
    import torch

    from benchmarks.full_size import disk_lacks, full_size_bytes, mixed_jobs

    for family, side, count, precision in (("sd15", 512, 32, "bfloat16"), ("sdxl", 1024, 16, "bfloat16")):
        lack = disk_lacks(full_size_bytes(family)) if torch.cuda.is_available() else "no NVIDIA GPU"
        if lack:
            yield left_out(f"{count} mixed {family} jobs at {side}x{side}", lack)
        else:
            yield mixed_jobs(family, side, count, precision, rounds)
