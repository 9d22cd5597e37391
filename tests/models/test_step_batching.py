"""Several pipeline calls in threads: shared forwards, the pictures, priorities, cancels and errors of one alone."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.core.fields import WeightedModel
from app.errors import JobCancelled
from app.models.runtime import open_runtime
from app.models.step_batching import Session, StepBatcher
from app.models.step_pace import SAMPLES, StepPace
from tests.models.mixed_jobs import PATIENCE, Wish, at_once, draw, mixed_wishes

SMALL = {"width": 64, "height": 64}


@pytest.fixture
def fresh(library):
    """A runtime of its own, whose counts start at nothing."""
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    yield runtime
    runtime.close()


@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sdxl"])
def test_eight_mixed_jobs_share_forwards_and_draw_what_each_draws_alone(fresh, model):
    wishes = mixed_wishes()
    alone = [draw(fresh, model, wish) for wish in wishes]
    steps = sum(count for _, count in alone)
    before = fresh.batcher.counts.forwards
    assert before == steps, "alone, every step is a forward of its own"
    # As a device with room to spare: every forward takes one second. A busy machine's clock would shrink the batches.
    fresh.batcher.clock = itertools.count().__next__
    # Jobs of a service come when they come; here all stand at the door before the first one steps.
    door = threading.Barrier(len(wishes))

    def job(wish: Wish) -> Callable[[], Any]:
        def run() -> Any:
            door.wait(PATIENCE)
            return draw(fresh, model, wish)

        return run

    together = at_once([job(wish) for wish in wishes])
    forwards = fresh.batcher.counts.forwards - before
    for wish, (expected, _), answer in zip(wishes, alone, together, strict=True):
        assert not isinstance(answer, BaseException), (wish, answer)
        assert np.abs(answer[0] - expected).max() <= 1, wish
    assert forwards <= 0.25 * steps, (forwards, steps)
    assert fresh.batcher.counts.largest == len(wishes)
    pictures = fresh.batcher.pictures
    assert pictures.largest > 1 and pictures.forwards < pictures.calls, "encoders and decoders met as well"


def test_a_job_that_is_cancelled_or_fails_in_the_batch_changes_no_neighbour(fresh):
    wishes = [
        Wish("text-to-image", {**SMALL, "prompt": "a red car", "num_inference_steps": 10}, "Euler", n) for n in range(4)
    ]
    alone = [draw(fresh, "tiny-sd15", wish)[0] for wish in wishes]
    door, ended = threading.Barrier(4), threading.Event()

    def check() -> None:
        if ended.is_set():
            raise JobCancelled

    def breaks(number: int) -> Callable[..., Any]:
        def at_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if number == 1 and index == 3:
                ended.set()
                fresh.nudge()
                check()
            if number == 2 and index == 5:
                raise ValueError("broke in its own step")
            return tensors

        return at_step

    def job(number: int) -> Callable[[], Any]:
        def run() -> Any:
            door.wait(PATIENCE)
            more = {"check": check} if number == 1 else {}
            with fresh.borrow("tiny-sd15", task="text-to-image", scheduler="Euler", **more) as pipeline:
                return pipeline(
                    **wishes[number].arguments,
                    generator=fresh.generators(number, 1),
                    callback_on_step_end=breaks(number),
                ).images[0]

        return run

    first, cancelled, failed, last = at_once([job(number) for number in range(4)])
    assert isinstance(cancelled, JobCancelled)
    assert isinstance(failed, ValueError)
    for expected, drawn in ((alone[0], first), (alone[3], last)):
        assert np.abs(np.asarray(drawn).astype(int) - expected).max() <= 1
    assert fresh.batcher.counts.largest == 4


def test_loras_tiles_and_inversions_of_one_job_do_not_touch_the_others(fresh):
    plain = Wish("text-to-image", {**SMALL, "prompt": "a moody car", "num_inference_steps": 6}, "Euler", 1)
    wishes = [
        plain,
        Wish(**{**vars(plain), "borrow": {"loras": [WeightedModel(model="lora-sd15-kohya", weight=0.9)]}}),
        Wish(**{**vars(plain), "borrow": {"loras": [WeightedModel(model="lora-sd15-diffusers", weight=0.9)]}}),
        Wish(**{**vars(plain), "borrow": {"textual_inversions": ["moody"]}}),
        Wish(**{**vars(plain), "borrow": {"loras": [WeightedModel(model="lora-sd15-kohya", weight=0.9)]}, "seed": 2}),
        Wish(**{**vars(plain), "seed": 3}),
    ]
    alone = [draw(fresh, "tiny-sd15", wish)[0] for wish in wishes]
    assert len({picture.tobytes() for picture in alone}) == len(wishes), "an addition had no effect"
    door = threading.Barrier(len(wishes))

    def job(wish: Wish) -> Callable[[], Any]:
        def run() -> Any:
            door.wait(PATIENCE)
            return draw(fresh, "tiny-sd15", wish)[0]

        return run

    before = fresh.batcher.counts.forwards
    for expected, drawn in zip(alone, at_once([job(wish) for wish in wishes]), strict=True):
        assert not isinstance(drawn, BaseException), drawn
        assert np.abs(drawn - expected).max() <= 1
    # Two plain ones share, two of one LoRA share; an inversion changes words only, but is a set of its own.
    assert fresh.batcher.counts.forwards - before < 6 * len(wishes)
    assert np.array_equal(draw(fresh, "tiny-sd15", plain)[0], alone[0])


def test_an_error_of_the_shared_forward_is_met_by_its_own_job_alone(fresh):
    with fresh.borrow("tiny-sd15", task="text-to-image") as pipeline:
        unet = pipeline.stock.unet
    poison = 12345.0
    forward = unet.forward

    def poisoned(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if bool((sample == poison).any()):
            raise ValueError("poisoned rows")
        return forward(sample, *args, **kwargs)

    unet.forward = poisoned
    door = threading.Barrier(3)

    def job(number: int) -> Callable[[], Any]:
        def run() -> Any:
            latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(number))
            if number == 1:
                latents[0, 0, 0, 0] = poison
            door.wait(PATIENCE)
            with fresh.borrow("tiny-sd15", task="text-to-image", scheduler="DDIM") as mine:
                return mine(prompt="a car", num_inference_steps=3, latents=latents, width=64, height=64).images[0]

        return run

    try:
        first, second, third = at_once([job(number) for number in range(3)])
    finally:
        del unet.forward
    assert isinstance(second, ValueError)
    assert isinstance(first, Image.Image) and isinstance(third, Image.Image)


class Slow(torch.nn.Module):
    """Adds the timestep to every row, in a time that does not depend on the rows; says what it was given."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.given: list[list[float]] = []

    def forward(self, sample: torch.Tensor, timestep: Any, words: torch.Tensor, return_dict: bool = False) -> Any:
        times = torch.as_tensor(timestep).float().reshape(-1).expand(sample.shape[0])
        self.given.append(times.tolist())
        time.sleep(self.seconds)
        return (sample + times[:, None] + words.sum(1, keepdim=True),)


def loop(batcher: StepBatcher, module: torch.nn.Module, session: Session, times: list[float], log: list[Any]) -> Any:
    """What a pipeline does: steps that each need the answer of the one before."""
    value = torch.zeros(2, 3)
    with batcher.turn(session):
        view = batcher.view(module, session)
        for step in times:
            value = view(value, torch.tensor(step), torch.ones(2, 4), return_dict=False)[0]
            log.append((session.priority, step))
    return value


def test_an_urgent_call_joins_at_the_next_step_and_takes_a_place(fresh):
    """The batch holds one call: whoever is urgent displaces the other, who waits at its step and then goes on."""
    module, log = Slow(0.01), []
    batcher = StepBatcher(pace=StepPace(largest=1))
    started = threading.Event()

    def long_job() -> Any:
        return loop(batcher, module, Session(priority=0), [float(step) for step in range(50)], log)

    def urgent_job() -> Any:
        started.wait(PATIENCE)
        while len(log) < 10:
            time.sleep(0.001)
        arrived = len(log)
        return arrived, loop(batcher, module, Session(priority=10), [100.0 + step for step in range(5)], log)

    started.set()
    slow, (arrived, urgent) = at_once([long_job, urgent_job])
    first = log.index((10, 100.0))
    assert first - arrived <= 2, "it waited for more than two steps"
    assert [entry[0] for entry in log[first : first + 5]] == [10] * 5, "it was not displaced"
    assert torch.equal(slow, torch.full((2, 3), float(sum(range(50)) + 4 * 50)))
    assert torch.equal(urgent, torch.full((2, 3), float(sum(range(100, 105)) + 4 * 5)))


def test_a_parked_call_heeds_its_cancel_while_others_go_first():
    module, log = Slow(0.005), []
    batcher = StepBatcher(pace=StepPace(largest=1))
    ended = threading.Event()

    def check() -> None:
        if ended.is_set():
            raise JobCancelled

    def urgent() -> Any:
        return loop(batcher, module, Session(priority=10), [float(step) for step in range(200)], log)

    def displaced() -> Any:
        while len(log) < 3:
            time.sleep(0.001)
        return loop(batcher, module, Session(priority=0, check=check), [0.5], log)

    def cancel() -> int:
        while len(log) < 20:
            time.sleep(0.001)
        ended.set()
        batcher.nudge()
        return len(log)

    answers = at_once([urgent, displaced, cancel])
    assert isinstance(answers[1], JobCancelled)
    assert (0, 0.5) not in log and len(log) == 200
    # Nothing of it is left: who comes alone is served at once.
    with pytest.raises(ZeroDivisionError), batcher.turn(Session()):
        _ = 1 / 0
    assert at_once([lambda: loop(batcher, module, Session(), [1.0], log)])[0].tolist() == [[5.0] * 3] * 2


def test_a_job_that_ends_where_it_would_park_leaves_nothing_behind():
    module, batcher, log = Slow(), StepBatcher(), []

    def check() -> None:
        if len(log) == 1:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        loop(batcher, module, Session(check=check), [1.0, 2.0], log)
    assert at_once([lambda: loop(batcher, module, Session(), [1.0, 2.0], log)])[0].tolist() == [[11.0] * 3] * 2


def test_calls_merge_only_where_everything_agrees():
    module = Slow()
    batcher = StepBatcher()
    door = threading.Barrier(4)
    shapes = {0: (2, 3), 1: (2, 3), 2: (2, 5), 3: (2, 3)}

    def job(number: int) -> Callable[[], Any]:
        def run() -> Any:
            session = Session(outfit="lora" if number == 3 else None)
            door.wait(PATIENCE)
            with batcher.turn(session):
                view = batcher.view(module, session)
                sample = torch.zeros(shapes[number])
                for _ in range(20):
                    sample = view(sample, float(number), torch.zeros(2, 4))[0]
            return sample

        return run

    answers = at_once([job(number) for number in range(4)])
    for number, answer in enumerate(answers):
        assert torch.equal(answer, torch.full(shapes[number], 20.0 * number))
    mixed = {tuple(sorted(set(given))) for given in module.given}
    assert mixed <= {(0.0,), (1.0,), (2.0,), (3.0,), (0.0, 1.0)} and (0.0, 1.0) in mixed


def test_a_lack_of_memory_makes_the_batch_smaller_for_good():
    class Small(Slow):
        def forward(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if sample.shape[0] > 4:
                raise MemoryError
            return super().forward(sample, *args, **kwargs)

    module, log = Small(), []
    batcher = StepBatcher(lambda error: isinstance(error, MemoryError))
    door = threading.Barrier(4)

    def job() -> Any:
        door.wait(PATIENCE)
        return loop(batcher, module, Session(), [1.0] * 30, log)

    for answer in at_once([job] * 4):
        assert torch.equal(answer, torch.full((2, 3), 150.0)), answer
    assert max(len(given) for given in module.given) == 4


def test_the_pace_finds_out_whether_a_batch_pays():
    free, full = StepPace(), StepPace()
    for pace, seconds in ((free, lambda size: 1.0), (full, lambda size: float(size))):
        for _ in range(5 * SAMPLES):
            size = pace.choose("unet", 8)
            pace.note("unet", size, seconds(size))
    assert free.choose("unet", 8) == 8, "a forward costs the same, however many it serves"
    assert free.choose("unet", 3) == 3
    assert full.choose("unet", 8) == 1, "a batch would only make everybody wait"
    half = StepPace()
    for _ in range(5 * SAMPLES):
        size = half.choose("unet", 8)
        half.note("unet", size, max(1.0, size / 4))
    assert half.choose("unet", 8) == 4, "beyond four the device is full"
    half.limit("unet", 2)
    assert half.choose("unet", 8) == 2
    assert half.choose("another", 1) == 1
    assert half.table()[0] == {1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0}


def test_an_autoencoder_that_changes_its_format_around_its_work_is_not_shared(library, fresh):
    """SDXL's own in float16 is brought to float32 for its work: a parked call would meet another format."""
    half = open_runtime(device="cpu", library=library, precision="float16")
    try:
        wish = Wish("text-to-image", {**SMALL, "prompt": "a red car", "num_inference_steps": 2}, "Euler", 1)
        with half.borrow("tiny-sdxl", task="text-to-image") as pipeline:
            vae = pipeline.stock.vae
            assert vae.config.force_upcast and half.batcher.view_of_vae(vae, Session()) is vae
        expected = draw(half, "tiny-sdxl", wish)[0]
        for drawn in at_once([lambda: draw(half, "tiny-sdxl", wish)] * 3):
            assert not isinstance(drawn, BaseException), drawn
            assert np.abs(drawn[0] - expected).max() <= 1
        assert half.batcher.pictures.calls == 0
    finally:
        half.close()
    with fresh.borrow("tiny-sdxl", task="text-to-image") as pipeline:
        assert fresh.batcher.view_of_vae(pipeline.stock.vae, Session()) is not pipeline.stock.vae


def test_pictures_go_before_steps_and_both_by_priority() -> None:
    batcher = StepBatcher()
    ran: list[str] = []
    steps, decoder = torch.nn.Identity(), torch.nn.Identity()

    def noting(module: torch.nn.Module, name: str) -> None:
        module.forward = lambda rows: ran.append(name) or rows

    noting(steps, "step")
    noting(decoder, "picture")

    def job(module: torch.nn.Module, counts: Any, priority: int) -> Callable[[], Any]:
        def run() -> Any:
            session = Session(priority)
            view = batcher.view(module, session, counts)
            with batcher.turn(session):
                # Of another shape each, so that none of them merge.
                return view(torch.zeros(1, priority + 1))

        return run

    with batcher.turn(Session(10)):
        threads = [
            threading.Thread(target=job(steps, None, 5)),
            threading.Thread(target=job(decoder, batcher.pictures, 5)),
            threading.Thread(target=job(steps, None, 9)),
        ]
        for number, thread in enumerate(threads, 1):
            thread.start()
            end = time.monotonic() + PATIENCE
            while len(batcher._wanting) < number and time.monotonic() < end:
                time.sleep(0.005)
    for thread in threads:
        thread.join(PATIENCE)
    assert ran == ["step", "picture", "step"]
    assert (batcher.counts.calls, batcher.pictures.calls) == (2, 1)
