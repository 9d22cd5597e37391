"""Offload strategies on the CPU: the same pictures under each, moves in order, and modules as before when they end."""

import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from app.core.fields import WeightedModel
from app.core.model_offload import Offload, Sizes, check_strategy, recommend
from app.errors import InvalidRequest, OutOfMemory
from app.models import offloading
from app.models.offloading import Placement, Seat, weight_bytes, working_device
from app.models.runtime import open_runtime
from tests.models.test_runtime import failing
from tests.models.test_step_batching import Wish, at_once, draw

PATIENCE = 120.0
HOOKED = [Offload.MODEL_CPU, Offload.STREAMED, Offload.SEQUENTIAL_CPU]
WISHES = [
    Wish("text-to-image", {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 5.0}, "Euler", 1),
    Wish(
        "text-to-image",
        {"prompt": "a cat", "num_inference_steps": 4},
        "DDIM",
        2,
        borrow={"loras": [WeightedModel(model="lora-sd15-kohya", weight=0.9)]},
    ),
    Wish(
        "text-to-image",
        {"prompt": "a moody cat", "num_inference_steps": 3, "clip_skip": 1},
        "DDIM",
        3,
        borrow={"textual_inversions": ["moody"]},
    ),
]


@pytest.fixture
def opened(library):
    """Open runtimes on the CPU and close them; `strategy` goes past the door that keeps the hooked ones to GPUs."""
    runtimes = []

    def make(strategy: Offload = Offload.NONE, precision: str = "float32") -> Any:
        runtime = open_runtime(device="cpu", library=library, precision=precision)
        runtime.device.offload = strategy
        runtimes.append(runtime)
        return runtime

    yield make
    for runtime in runtimes:
        runtime.close()


def state_of(checkpoint: Any) -> list[tuple[str, tuple[str, ...], str]]:
    """What hooks would leave on modules: every module's own attributes, and its processor's class."""
    return [
        (path, tuple(sorted(part.__dict__)), type(getattr(part, "processor", None)).__name__)
        for module in checkpoint.modules
        for path, part in module.named_modules()
    ]


def checkpoint_of(runtime: Any) -> Any:
    return next(iter(runtime._cache.models().values()))


@pytest.mark.parametrize("strategy", [*HOOKED, Offload.ATTENTION, Offload.VAE])
def test_every_strategy_draws_the_plain_picture_also_with_additions_and_two_at_once(opened, strategy):
    plain, other = opened(), opened(strategy)
    expected = [draw(plain, "tiny-sd15", wish)[0] for wish in WISHES]
    assert len({picture.tobytes() for picture in expected}) == len(WISHES)
    for wish, picture in zip(WISHES, expected, strict=True):
        drawn = draw(other, "tiny-sd15", wish)[0]
        assert np.abs(drawn - picture).max() <= (1 if strategy is Offload.ATTENTION else 0), wish
    model = other.memory()["models"][0]
    assert model["strategy"] == strategy.value
    door = threading.Barrier(len(WISHES))

    def job(wish: Wish) -> Callable[[], Any]:
        def run() -> Any:
            door.wait(PATIENCE)
            return draw(other, "tiny-sd15", wish)[0]

        return run

    for picture, drawn in zip(expected, at_once([job(wish) for wish in WISHES]), strict=True):
        assert not isinstance(drawn, BaseException), drawn
        assert np.abs(drawn - picture).max() <= 1


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("strategy", HOOKED)
def test_sdxl_draws_the_plain_picture_under_hooks(opened, strategy, precision):
    """In float16 the pipeline decodes in float32 and puts the format back, hooks or not."""
    plain, other = opened(precision=precision), opened(strategy, precision)
    wish = Wish("text-to-image", {"prompt": "a red car", "num_inference_steps": 3}, "Euler", 4)
    lora = Wish(**{**vars(wish), "borrow": {"loras": [WeightedModel(model="lora-sdxl-kohya", weight=0.9)]}})
    for one in (wish, lora, wish):
        assert np.array_equal(draw(other, "tiny-sdxl", one)[0], draw(plain, "tiny-sdxl", one)[0])


@pytest.mark.parametrize("strategy", list(Offload))
def test_what_a_strategy_puts_on_is_taken_off_again(opened, strategy):
    runtime = opened(strategy)
    draw(runtime, "tiny-sd15", WISHES[0])
    checkpoint = checkpoint_of(runtime)
    during = state_of(checkpoint)
    checkpoint.park()
    plain = opened()
    with plain.borrow("tiny-sd15", task="text-to-image"):
        pass
    untouched = checkpoint_of(plain)
    assert state_of(checkpoint) == state_of(untouched)
    if strategy in HOOKED:
        assert during != state_of(checkpoint), "nothing was put on, so nothing is proved"
    assert checkpoint.components["vae"].use_slicing is False
    for mine, theirs in zip(checkpoint.modules, untouched.modules, strict=True):
        for one, other in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
            assert torch.equal(one, other)


def test_one_component_at_a_time_takes_the_seat(opened, monkeypatch):
    runtime = opened(Offload.MODEL_CPU)
    seen: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    for move in ("onload_", "offload_"):
        original = getattr(offloading.ModuleGroup, move)

        def note(group: Any, move: str = move, original: Any = original) -> None:
            seen.append((move, names[id(group.offload_leader)]))
            original(group)

        monkeypatch.setattr(offloading.ModuleGroup, move, note)
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="DDIM") as pipeline:
        names.update({id(part): name for name, part in pipeline.stock.components.items()})
        pipeline(prompt="a car", width=64, height=64, num_inference_steps=3)
    assert seen == [
        ("onload_", "text_encoder"),
        ("offload_", "text_encoder"),
        ("onload_", "unet"),
        ("offload_", "unet"),
        ("onload_", "vae"),
    ]


@pytest.mark.parametrize("strategy", HOOKED)
def test_a_component_knows_where_it_works_while_its_weights_wait(strategy, monkeypatch):
    """The device here is `meta`, which holds no weights: what is asked is only where they would work."""
    monkeypatch.setattr(torch, "meta", types.ModuleType("torch.meta"), raising=False)
    monkeypatch.setattr(Placement, "device_has_own_memory", False)
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4))
    placement = Placement({"unet": layer}, torch.device("meta"), strategy)
    placement.put()
    assert (working_device(layer).type, layer[0].weight.device.type) == ("meta", "cpu")


@pytest.mark.parametrize("strategy", [Offload.STREAMED, Offload.SEQUENTIAL_CPU])
def test_a_layer_is_on_the_device_only_while_it_works(strategy, monkeypatch):
    layers = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)])
    there: set[int] = set()
    seen: list[list[int]] = []
    for move, change in (("onload_", there.add), ("offload_", there.discard)):
        monkeypatch.setattr(offloading.ModuleGroup, move, lambda group, change=change: change(id(group.offload_leader)))
    for layer in layers:
        # Inside the hook's forward, where the layer computes.
        original = layer.forward

        def forward(inputs: torch.Tensor, original: Any = original) -> torch.Tensor:
            seen.append([number for number, one in enumerate(layers) if id(one) in there])
            return original(inputs)

        layer.forward = forward
    Placement({"unet": layers}, torch.device("cpu"), strategy).put()
    layers(torch.zeros(1, 4))
    assert seen == [[0], [1], [2]] and not there


def test_layers_of_an_addition_go_to_the_device_with_the_hooks_back_on(opened):
    runtime = opened(Offload.SEQUENTIAL_CPU)
    loras = [WeightedModel(model="lora-sd15-diffusers", weight=0.5)]
    with runtime.borrow("tiny-sd15", task="text-to-image", loras=loras):
        checkpoint = checkpoint_of(runtime)
        hooked = [part for part in checkpoint.components["unet"].modules() if hasattr(part, "_diffusers_hook")]
        leaves = [part for part in checkpoint.components["unet"].modules() if isinstance(part, torch.nn.Linear)]
        assert len(hooked) >= len(leaves) > 10


SIZES = Sizes({"unet": 50, "vae": 5, "text_encoder": 15}, denoiser="unet", denoiser_layer=4, layer=6)


@pytest.mark.parametrize(
    ("available", "strategy"),
    [
        (94, Offload.NONE),
        (93, Offload.VAE),
        (70, Offload.VAE),
        (69, Offload.MODEL_CPU),
        (50, Offload.MODEL_CPU),
        (49, Offload.STREAMED),
        (15, Offload.STREAMED),
        (14, Offload.SEQUENTIAL_CPU),
        (0, Offload.SEQUENTIAL_CPU),
    ],
)
def test_the_quickest_strategy_that_fits_is_recommended(available, strategy):
    assert recommend(SIZES, available) is strategy


def test_what_stands_on_the_device_by_strategy():
    needs = {strategy: SIZES.on_device(strategy) for strategy in Offload}
    assert needs == {
        Offload.NONE: 70, Offload.ATTENTION: 70, Offload.VAE: 70,
        Offload.MODEL_CPU: 50, Offload.STREAMED: 15, Offload.SEQUENTIAL_CPU: 6,
    }  # fmt: skip


def test_auto_settles_by_the_room_there_is_and_none_by_wish(monkeypatch):
    parts = {"unet": torch.nn.Linear(100, 100), "vae": torch.nn.Linear(10, 10)}
    placement = Placement(parts, torch.device("meta"), None)
    assert weight_bytes(*parts.values()) == 4 * (10100 + 110)
    assert placement.plan(10**6) == 4 * (10100 + 110) and placement.strategy is Offload.NONE
    assert placement.plan(40_500) == 4 * 10100 and placement.strategy is Offload.MODEL_CPU
    assert placement.plan(10**6) == 4 * (10100 + 110) and placement.strategy is Offload.NONE
    fixed = Placement(parts, torch.device("meta"), Offload.MODEL_CPU)
    assert fixed.plan(10**6) == 4 * 10100 and fixed.strategy is Offload.MODEL_CPU


def test_hooked_strategies_need_a_gpu(library):
    for strategy in HOOKED:
        with pytest.raises(InvalidRequest, match="needs a GPU"):
            open_runtime(device="cpu", library=library, offload=strategy.value)
        check_strategy(strategy.value, "cuda:0")
    with pytest.raises(InvalidRequest, match="There is no offload strategy 'fast'"):
        check_strategy("fast", "cuda:0")


def test_running_out_streams_the_weights_before_it_decodes_in_tiles(opened, monkeypatch):
    runtime = opened()
    wish = Wish("text-to-image", {"prompt": "a car", "num_inference_steps": 2}, "DDIM", 1)
    expected = draw(runtime, "tiny-sd15", wish)[0]
    arguments = {**wish.arguments, "width": 64, "height": 64}
    # A CPU's weights cannot be moved away from it; here it is told that they can, and nothing else is changed.
    seats: list[Seat] = []
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="DDIM") as pipeline:
        checkpoint = checkpoint_of(runtime)

        def stream() -> int | None:
            if checkpoint.placement.strategy is Offload.STREAMED:
                return None
            checkpoint.wardrobe.wear(None)
            seats.append(checkpoint.placement._seat)
            return checkpoint.placement.change(Offload.STREAMED)

        monkeypatch.setattr(checkpoint, "stream", stream)
        hook = failing(pipeline.stock.vae.decoder, 1)
        try:
            drawn = pipeline(**arguments, generator=runtime.generators(1, 1)).images[0]
        finally:
            hook.remove()
        assert np.array_equal(np.asarray(drawn).astype(int), expected)
        assert pipeline.notes == [
            "The device's memory did not suffice, so the model's weights were streamed from RAM."
        ]
        assert seats and runtime.memory()["models"][0]["strategy"] == "streamed"
        assert runtime.memory()["placed_bytes"] < runtime.memory()["parked_bytes"]


def test_running_out_at_last_draws_one_picture_at_a_time(opened):
    runtime = opened()
    arguments = {"prompt": "a car", "num_inference_steps": 2, "width": 64, "height": 64, "num_images_per_prompt": 3}
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler a") as pipeline:
        expected = pipeline(**arguments, generator=runtime.generators(5, 3)).images
        rows = []

        def refuse(module: Any, inputs: tuple[Any, ...]) -> None:
            rows.append(inputs[0].shape[0])
            if inputs[0].shape[0] > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

        hook = pipeline.stock.vae.decoder.register_forward_pre_hook(refuse)
        try:
            drawn = pipeline(**arguments, generator=runtime.generators(5, 3)).images
        finally:
            hook.remove()
        assert len(drawn) == 3 and rows[-3:] == [1, 1, 1]
        for one, other in zip(drawn, expected, strict=True):
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
        assert pipeline.notes[-1] == "The device's memory did not suffice, so the pictures were drawn one at a time."
        hook = failing(pipeline.stock.unet, 99)
        try:
            with pytest.raises(OutOfMemory, match="one picture at a time"):
                pipeline(**arguments, generator=runtime.generators(5, 3))
        finally:
            hook.remove()


def test_other_settings_hold_from_the_next_borrow_on_and_a_borrowed_model_stays(opened):
    runtime = opened()
    wish = WISHES[0]
    before = draw(runtime, "tiny-sd15", wish)[0]
    settings = {"model_memory_bytes": None, "parked_memory_bytes": None}
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler") as pipeline:
        runtime.configure(offload="attention", precision="bfloat16", **settings)
        told = runtime.memory()
        assert told["precision"] == "bfloat16"
        assert pipeline.stock.unet.dtype is torch.float32
        assert [model["borrowed"] for model in told["models"]] == [True]
        size = {"width": 64, "height": 64}
        drawn = pipeline(**wish.arguments, **size, generator=runtime.generators(1, 1)).images[0]
        assert np.array_equal(np.asarray(drawn).astype(int), before)
    with runtime.borrow("tiny-sd15", task="text-to-image") as pipeline:
        assert pipeline.stock.unet.dtype is torch.bfloat16
        assert [model["strategy"] for model in runtime.memory()["models"]] == ["attention"]
    with pytest.raises(InvalidRequest):
        runtime.configure(offload="streamed", precision="auto", **settings)
    assert runtime.memory()["precision"] == "bfloat16"


def test_a_cleanup_drops_what_nobody_borrows(opened):
    runtime = opened()
    with runtime.borrow("tiny-sdxl", task="text-to-image"):
        pass
    with runtime.borrow("tiny-sd15", task="text-to-image"):
        runtime.clean_up()
        assert runtime.resident() == ["tiny-sd15"]
    runtime.clean_up()
    assert runtime.resident() == []
