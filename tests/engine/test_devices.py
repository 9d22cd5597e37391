"""Devices: what they are read as, which of them a job is given and why, and changes while the service runs."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core import device_configuration
from app.core.batch_processing import Waiting
from app.core.device_configuration import DeviceConfiguration, read_change
from app.core.device_inventory import Inventory, Nvml, Reading, count_cuda_devices, read_cpu, resolve_devices
from app.core.multi_gpu import LOOK_AHEAD, PATIENCE, OpenWorker, Strategy, choose
from app.core.service import Service
from app.core.simulated_devices import GIB, read_devices
from app.errors import DependencyMissing, InvalidRequest, NoDevice, StorageFull
from app.models.catalog import CATALOG
from app.models.spec import Licence, ModelSpec
from app.models.tiers import BYTES_OF, SPARED_BYTES, Tier, needed_bytes, stored_width, tier_for, tier_of, tiers_of
from tests.engine.conftest import end_of, until

MODELLED = {"catalog": "tests.engine.modelled:CATALOG", "runtime": "tests.engine.modelled:open_runtime"}
TWO = ("cuda:0=RTX 4090:24", "cuda:1=RTX 3060:12")


# Tiers and needs


@pytest.mark.parametrize(
    ("gigabytes", "tier"),
    [
        (24, Tier.HIGH),
        (12, Tier.HIGH),
        (11.9, Tier.HIGH),
        (11.64, Tier.HIGH),
        (11.63, Tier.MEDIUM),
        (8, Tier.MEDIUM),
        (7.77, Tier.MEDIUM),
        (7.75, Tier.LOW),
        (6, Tier.LOW),
        (5.83, Tier.LOW),
        (5.81, Tier.MINIMAL),
        (4, Tier.MINIMAL),
    ],
)
def test_a_tier_forgives_what_the_driver_keeps(gigabytes: float, tier: Tier) -> None:
    assert tier_of(round(gigabytes * GIB)) is tier
    assert Reading("cuda:0", "cuda", "card", total_bytes=round(gigabytes * GIB)).tier is tier


def test_a_processor_is_no_gpu_of_many_gigabytes_and_the_unknown_has_no_tier() -> None:
    assert Reading("cpu", "cpu", "chip", total_bytes=512 * GIB).tier is Tier.CPU
    assert Reading("cuda:0", "cuda", "card").tier is None


def rows() -> dict[str, ModelSpec]:
    return {spec.id: spec for spec in CATALOG}


def need(id: str) -> dict[str, int]:
    known = rows()
    return needed_bytes(known[id], [known[part] for part in known[id].parts])


def test_needs_follow_from_the_rows_bytes() -> None:
    known = rows()
    sdxl, vae = known["sdxl"], known["sdxl-vae-fp16-fix"]
    assert need("sdxl")["float16"] == sdxl.bytes + vae.bytes // 2, "the autoencoder's file holds float32"
    assert need("sdxl")["float32"] == 2 * sdxl.bytes + vae.bytes
    assert need("sdxl-lightning-4step") == need("sdxl"), "its UNet stands in the place of the base's"
    assert need("lcm-lora-sdxl") == {}, "an addition needs what its model does"
    half, spared = {"float16": "MEDIUM", "bfloat16": "MEDIUM"}, {"float8": "LOW", "int8": "LOW", "int4": "LOW"}
    assert tiers_of(need("sdxl")) == {"float32": "HIGH", **half, **spared}
    small = dict.fromkeys(("float16", "bfloat16", "float8", "int8", "int4"), "MINIMAL")
    assert tiers_of(need("sd15")) == {"float32": "LOW", **small}
    for spec in CATALOG:
        if spec.kind == "checkpoint":
            needs = need(spec.id)
            assert set(needs) == {*BYTES_OF, *SPARED_BYTES}
            assert 0 < needs["int4"] < needs["int8"] and needs["float8"] < needs["float16"]
            assert 0 < needs["float16"] < needs["float32"] <= 2 * needs["float16"]


def test_a_need_is_matched_to_the_smallest_device_of_a_tier() -> None:
    for nominal, tier, above in ((4, Tier.MINIMAL, Tier.LOW), (6, Tier.LOW, Tier.MEDIUM), (8, Tier.MEDIUM, Tier.HIGH)):
        most = int(nominal * GIB * 0.85)
        assert tier_for(most) is tier and tier_for(most + 1) is above


def test_the_width_of_an_added_file_is_told_by_its_size() -> None:
    def added(count: int, **options: str) -> ModelSpec:
        licence = Licence("own", "", commercial=False)
        return ModelSpec("mine", "Mine", "checkpoint", "sdxl", licence, bytes=count, options=options)

    assert stored_width(added(6_940_000_000)) == 2
    assert stored_width(added(13_880_000_000)) == 4
    assert stored_width(added(13_880_000_000, variant="fp16")) == 2, "what the files are called says it"
    assert needed_bytes(added(13_880_000_000), [])["float16"] == 6_940_000_000


# What is read


class NvmlError(Exception):
    """As pynvml's."""


@dataclass
class FakeNvml:
    """pynvml's functions over three cards, of which the second tells little."""

    present: bool = True
    open: int = 0
    asked: list[str] = field(default_factory=list)
    NVMLError: type[Exception] = NvmlError
    NVML_TEMPERATURE_GPU: int = 0
    NVML_CLOCK_SM: int = 1

    def nvmlInit(self) -> None:
        if not self.present:
            raise NvmlError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        assert self.open == 1
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}abc".encode()

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        if name == "MIG-7":
            return 2
        raise NvmlError("not found")

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return ("RTX 4090", b"RTX 3060", "RTX 2060")[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=(24, 12, 6)[handle] * GIB, free=(20, 11, 5)[handle] * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 1:
            raise NvmlError("not supported")
        return SimpleNamespace(gpu=(37, 0, 5)[handle])

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        if handle == 1:
            raise NvmlError("not supported")
        return (61, 0, 40)[handle]

    def nvmlDeviceGetNumGpuCores(self, handle: int) -> int:
        return (16384, 3584, 1920)[handle]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, clock: int) -> int:
        return 2000


def test_the_library_is_read_figure_by_figure_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = FakeNvml()
    first, second, third = Nvml(library).readings()
    assert first == Reading(
        "cuda:0", "cuda", "RTX 4090", 24 * GIB, 20 * GIB, load_percent=37.0, temperature=61, compute=32_768_000.0
    )
    assert (second.name, second.load_percent, second.temperature, second.tier) == ("RTX 3060", None, None, Tier.HIGH)
    assert (third.device, third.tier) == ("cuda:2", Tier.LOW)
    assert library.open == 0, "the library was left open"
    assert Nvml(FakeNvml(present=False)).readings() is None and Nvml(FakeNvml(present=False)).count() is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("2,0", ["RTX 2060", "RTX 4090"]),
        ("1", ["RTX 3060"]),
        ("", []),
        ("-1", []),
        ("0,9,1", ["RTX 4090"]),
        ("GPU-1a,GPU-0abc", ["RTX 3060", "RTX 4090"]),
        ("MIG-7", ["RTX 2060"]),
        ("MIG-8,0", []),
    ],
)
def test_visible_devices_are_seen_as_cuda_sees_them(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = Nvml(FakeNvml())
    assert [reading.name for reading in nvml.readings()] == names
    assert [reading.device for reading in nvml.readings()] == [f"cuda:{n}" for n in range(len(names))]
    assert count_cuda_devices(nvml) == len(names)


def test_an_inventory_shows_the_devices_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = Inventory(("cuda:1", "cpu"), nvml=Nvml(FakeNvml())).readings()
    assert {name: reading.name for name, reading in found.items()}["cuda:1"] == "RTX 3060"
    assert list(found) == ["cuda:1", "cpu"] and found["cpu"].kind == "cpu"
    (inline,) = Inventory(("inline",), nvml=Nvml(FakeNvml())).readings().values()
    assert (inline.device, inline.name) == ("inline", "RTX 4090"), "in this process the first GPU is used"
    (unknown,) = Inventory(("cuda:0",), nvml=Nvml(FakeNvml(present=False))).readings().values()
    assert (unknown.name, unknown.total_bytes, unknown.tier) == ("NVIDIA GPU", None, None)


def test_a_machine_without_a_gpu_shows_its_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.core.device_inventory.Nvml.count", lambda self: None)
    monkeypatch.setattr("app.core.device_inventory.DRIVER_FOLDER", tmp_path / "none")
    names = resolve_devices(["auto"])
    (reading,) = Inventory(names).readings().values()
    assert (names, reading.device, reading.tier) == (("cpu",), "cpu", Tier.CPU)
    assert reading.name and 0 < reading.free_bytes < reading.total_bytes
    assert 0 <= read_cpu().load_percent <= 100


# Described devices


def test_described_devices_are_read() -> None:
    one, two = read_devices(["cuda:0=RTX 4090:24", "cuda:1=RTX 3060 (bus 2):11.5:40:61"])
    assert (one.device, one.name, one.total_bytes, one.load_percent, one.temperature) == (
        "cuda:0", "RTX 4090", 24 * GIB, 0, None,
    )  # fmt: skip
    assert (two.total_bytes, two.load_percent, two.temperature) == (int(11.5 * GIB), 40, 61.0)
    assert resolve_devices(["auto"], [one, two]) == ("cuda:0", "cuda:1")
    assert resolve_devices(["cuda:1", "cpu"], [one, two]) == ("cuda:1", "cpu")
    with pytest.raises(InvalidRequest, match="describes no device 'cuda:7'"):
        resolve_devices(["cuda:7"], [one, two])


@pytest.mark.parametrize(
    "wrong",
    ["cuda:0", "RTX:24", "cuda:0=RTX", "gpu:0=RTX:24", "cuda:0=RTX:0", "cuda:0=RTX:2000", "cuda:0=RTX:24:101",
     "cuda:0=:24", "cuda:0=RTX:24:1:2:3", "cuda:0=RTX:-1"],
)  # fmt: skip
def test_a_wrong_description_shows_how_it_is_written(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=r"EIS_FAKE_DEVICES.*cuda:0=RTX 4090:24"):
        read_devices([wrong])
    with pytest.raises(InvalidRequest, match="twice"):
        read_devices(["cuda:0=A:1", "cuda:0=B:2"])


# The choice


def worker(name: str, gigabytes: float | None = None, **facts: Any) -> OpenWorker:
    capacity = None if gigabytes is None else int(gigabytes * GIB)
    facts.setdefault("free_bytes", capacity)
    facts["resident"] = frozenset(facts.get("resident", ()))
    return OpenWorker(name, capacity=capacity, precision="float16", **facts)


def jobs(*models: str | None) -> list[Waiting]:
    return [Waiting(str(turn), 5, turn, model) for turn, model in enumerate(models)]


NEEDS = {"small": 2 * GIB, "large": 10 * GIB, "huge": 40 * GIB}


def needs(model: str, precision: str) -> int | None:
    assert precision == "float16"
    return NEEDS.get(model)


def test_each_strategy_chooses_another_device() -> None:
    workers = [
        worker("turn", 20, turn=1, load_percent=50, compute=10, free_bytes=5 * GIB),
        worker("load", 20, turn=4, load_percent=1, compute=11, free_bytes=6 * GIB),
        worker("memory", 20, turn=3, load_percent=40, compute=12, free_bytes=19 * GIB),
        worker("compute", 20, turn=2, load_percent=30, compute=90, free_bytes=4 * GIB),
    ]
    chosen = {
        strategy: choose(jobs("small"), workers, strategy, needs)
        for strategy in Strategy
    }  # fmt: skip
    assert {strategy.value: choice.worker.name for strategy, choice in chosen.items()} == {
        "round_robin": "turn",
        "least_loaded": "load",
        "vram_based": "memory",
        "compute_based": "compute",
        "auto": "load",
    }
    reasons = {strategy.value: choice.reason for strategy, choice in chosen.items()}
    assert "turn" in reasons["round_robin"]
    assert "least loaded (1 %)" in reasons["least_loaded"]
    assert "most free memory (19.0 GiB)" in reasons["vram_based"]
    assert "most compute" in reasons["compute_based"]


def test_auto_takes_the_warm_device_then_room_then_little_load_then_speed() -> None:
    fast = worker("fast", 20, compute=90, free_bytes=20 * GIB)
    full = worker("full", 20, compute=99, free_bytes=1 * GIB)
    laden = worker("laden", 20, compute=99, load_percent=80)
    slow = worker("slow", 20, compute=10)
    warm = worker("warm", 20, compute=1, load_percent=99, resident={"small"})
    assert choose(jobs("small"), [slow, full, laden, fast, warm], needs=needs).worker.name == "warm"
    assert choose(jobs("small"), [slow, full, laden, fast], needs=needs).worker.name == "fast"
    assert choose(jobs("small"), [slow, full, laden], needs=needs).worker.name == "slow"
    assert choose(jobs("small"), [full, laden], needs=needs).worker.name == "laden", "nothing has to be moved away"
    assert "lies ready" in choose(jobs("small"), [slow, warm], needs=needs).reason


def test_a_round_goes_on_although_a_model_lies_ready() -> None:
    served = []
    turns = {"x": 0, "y": 0, "z": 0}
    for number in range(1, 7):
        workers = [worker(name, 20, turn=turn, resident={"small"}) for name, turn in turns.items()]
        name = choose(jobs("small"), workers, Strategy.ROUND_ROBIN, needs).worker.name
        turns[name] = number
        served.append(name)
    assert served == ["x", "y", "z"] * 2


def test_a_named_strategy_keeps_its_device_and_saves_a_load_by_the_order_of_jobs() -> None:
    workers = [worker("a", 20, load_percent=90, resident={"huge"}), worker("b", 20, load_percent=5, resident={"small"})]
    choice = choose(jobs("large", "small"), workers, Strategy.LEAST_LOADED, needs)
    assert (choice.job.model, choice.worker.name) == ("small", "b")
    assert [job.id for job in choice.passed_over] == ["0"]
    tired = jobs("large", "small")
    tired[0].passed_over = PATIENCE
    assert choose(tired, workers, Strategy.LEAST_LOADED, needs).job.model == "large"


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_job_goes_only_where_its_model_fits(strategy: Strategy) -> None:
    small, large = worker("small", 5, turn=0, compute=99), worker("large", 20, turn=9, load_percent=20, compute=1)
    choice = choose(jobs("large"), [small, large], strategy, needs)
    assert choice.worker.name == "large" and choice.reason == "the only device that can hold large (10.0 GiB)"


def test_it_waits_for_the_device_that_can_hold_it_and_others_go_by() -> None:
    busy = worker("large", 20, held=tuple(jobs("large")))
    waiting = jobs("large", "small")
    waiting[0] = Waiting("alone", 5, 0, "large", attempt=1)
    choice = choose(waiting, [worker("small", 5), busy], needs=needs)
    assert (choice.job.model, choice.worker.name) == ("small", "small")
    assert choice.passed_over == (), "the large job could not have had that device"
    assert choose(waiting[:1], [worker("small", 5), busy], needs=needs) is None
    starting = worker("large", 20, is_up=False)
    assert choose(jobs("large"), [worker("small", 5), starting], needs=needs) is None, "its device is only starting"


def test_a_job_that_was_passed_over_too_often_reserves_only_what_it_can_use() -> None:
    waiting = jobs("large", "small")
    waiting[0].passed_over = PATIENCE
    small, large = worker("small", 5), worker("large", 20, held=tuple(jobs("small")), seats=8)
    assert choose(waiting, [large], needs=needs) is None, "joining would keep the large device from it"
    assert choose(waiting, [small, large], needs=needs).worker.name == "small"
    waiting[0].passed_over = 0
    joined = choose(waiting, [large], needs=needs)
    assert (joined.job.model, joined.passed_over) == ("small", (waiting[0],))


@pytest.mark.parametrize("strategy", list(Strategy))
def test_where_nothing_can_hold_it_the_largest_takes_it_and_says_so(strategy: Strategy) -> None:
    workers = [worker("small", 5, turn=0, compute=99), worker("large", 20, turn=9, load_percent=99)]
    choice = choose(jobs("huge"), workers, strategy, needs)
    assert choice.worker.name == "large"
    assert choice.reason == "no device can hold huge (40.0 GiB); this is the largest, with 20.0 GiB for models"


def test_what_is_not_known_holds_anything_and_what_lies_there_fits() -> None:
    assert choose(jobs("huge"), [worker("unknown")], needs=needs).reason == "it is next"
    assert choose(jobs("never seen"), [worker("small", 5)], needs=needs).reason == "it is next"
    both = [worker("small", 5, resident={"large"}), worker("large", 20)]
    assert choose(jobs("large"), both, needs=needs).worker.name == "small"


def test_jobs_beyond_the_look_ahead_do_not_take_an_idle_device() -> None:
    busy = worker("large", 20, held=tuple(jobs("large")))
    waiting = [Waiting(str(n), 5, n, "large", attempt=1) for n in range(LOOK_AHEAD)]
    assert choose([*waiting, Waiting("s", 5, 99, "small")], [worker("small", 5), busy], needs=needs) is None
    assert choose([*waiting[1:], Waiting("s", 5, 99, "small")], [worker("small", 5), busy], needs=needs).job.id == "s"


@given(
    models=st.lists(st.sampled_from(["small", "large", "huge", None]), min_size=1, max_size=30),
    sizes=st.lists(st.sampled_from([3, 12, 50]), min_size=1, max_size=3),
    seats=st.integers(1, 3),
    strategy=st.sampled_from(list(Strategy)),
    lengths=st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_every_job_is_served_and_none_where_it_does_not_fit(
    models: list[str | None], sizes: list[int], seats: int, strategy: Strategy, lengths: list[int]
) -> None:
    """A run of whole moments: what may start starts, then everything that is held comes one moment nearer its end."""
    waiting, places = jobs(*models), {f"d{n}": size for n, size in enumerate(sizes)}
    holding: dict[str, dict[str, tuple[Waiting, int]]] = {name: {} for name in places}
    resident: dict[str, str] = {}
    turns = dict.fromkeys(places, 0)
    served = 0
    while waiting or any(holding.values()):
        while True:
            workers = [
                worker(
                    name, size, seats=seats, turn=turns[name], resident=filter(None, [resident.get(name)]),
                    held=tuple(job for job, _ in holding[name].values()),
                )
                for name, size in places.items()
            ]  # fmt: skip
            choice = choose(waiting, workers, strategy, needs)
            if choice is None:
                break
            job, name = choice.job, choice.worker.name
            if job.model is not None and places[name] * GIB < NEEDS[job.model]:
                assert max(places.values()) == places[name], "a smaller device took what does not fit"
                assert all(size * GIB < NEEDS[job.model] for size in places.values()), "another one could hold it"
            for passed in choice.passed_over:
                passed.passed_over += 1
                assert passed.passed_over <= PATIENCE
            waiting.remove(job)
            holding[name][job.id] = (job, lengths[job.turn])
            turns[name] = served = served + 1
            if job.model is not None:
                resident[name] = job.model
        assert any(holding.values()), f"everything is idle and {len(waiting)} jobs wait for ever"
        for name, held in holding.items():
            holding[name] = {id: (job, left - 1) for id, (job, left) in held.items() if left > 1}
    assert served == len(models)


# What an operator decides


def test_a_change_is_read_and_merged(tmp_path: Path) -> None:
    first = DeviceConfiguration().changed(
        read_change({"strategy": "vram_based", "devices": {"cuda:0": {"jobs_at_once": 3, "enabled": False}}}),
        {"cuda:0", "cuda:1"},
    )
    second = first.changed(read_change({"devices": {"cuda:0": {"memory_limit_bytes": GIB}}}), {"cuda:0", "cuda:1"})
    assert second.strategy is Strategy.VRAM_BASED
    told = second.of("cuda:0").model_dump(exclude_none=True)
    assert told == {"enabled": False, "memory_limit_bytes": GIB, "jobs_at_once": 3}
    device_configuration.save(tmp_path, second)
    assert device_configuration.load(tmp_path) == second
    assert [path.name for path in tmp_path.iterdir()] == ["devices.json"], "no half-written file is left"
    third = second.changed(read_change({"devices": {"cuda:0": {"jobs_at_once": None}}}), {"cuda:0", "cuda:1"})
    assert third.of("cuda:0").jobs_at_once is None and third.of("cuda:0").memory_limit_bytes == GIB


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategy": "best"}, "strategy"),
        ({"devices": {"cuda:0": {"jobs_at_once": 0}}}, "devices.cuda:0.jobs_at_once"),
        ({"devices": {"cuda:0": {"jobs_at_once": 65}}}, "devices.cuda:0.jobs_at_once"),
        ({"devices": {"cuda:0": {"jobs_at_once": "2"}}}, "devices.cuda:0.jobs_at_once"),
        ({"devices": {"cuda:0": {"memory_limit_bytes": 5}}}, "devices.cuda:0.memory_limit_bytes"),
        ({"devices": {"cuda:0": {"enabled": "no"}}}, "devices.cuda:0.enabled"),
        ({"devices": {"cuda:0": {"colour": 1}}}, "devices.cuda:0.colour"),
        ({"devices": {"cuda:9": {}}}, "There is no device 'cuda:9'"),
        ({"devices": {"cuda:0": {"enabled": False}}}, "must stay enabled"),
        ({"gpus": []}, "gpus"),
    ],
)
def test_a_wrong_change_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        DeviceConfiguration().changed(read_change(change), {"cuda:0"})


def test_a_decision_that_cannot_be_written_changes_nothing(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("app.core.device_configuration.os.replace", full)
    with pytest.raises(StorageFull, match="No space left"):
        service.devices.configure({"strategy": "vram_based"})
    assert service.device_status()["strategy"] == "auto"
    assert not [path.name for path in service.options.home.iterdir() if "devices.json" in path.name]


@pytest.mark.parametrize("text", ["{", "[]", '{"strategy": "best"}', "\x00"])
def test_a_damaged_file_is_told_and_not_overlooked(tmp_path: Path, text: str) -> None:
    (tmp_path / "devices.json").write_text(text)
    with pytest.raises(InvalidRequest, match=r"devices\.json.*delete it"):
        device_configuration.load(tmp_path)


# A service with described devices


def states(service: Service) -> dict[str, str]:
    return {device["device"]: device["state"] for device in service.device_status()["devices"]}


def test_described_devices_run_on_the_processor_and_say_so(make_service: Callable[..., Service]) -> None:
    service = make_service(fake_devices=TWO, devices=("auto",))
    until(lambda: set(states(service).values()) == {"idle"})
    status = service.device_status()
    assert status["simulated"] and status["strategy"] == "auto"
    told = {device["device"]: device for device in status["devices"]}
    assert {name: (device["name"], device["tier"], device["runs_on"]) for name, device in told.items()} == {
        "cuda:0": ("RTX 4090", "HIGH", "cpu"),
        "cuda:1": ("RTX 3060", "HIGH", "cpu"),
    }
    assert told["cuda:1"]["total_bytes"] == 12 * GIB and told["cuda:1"]["jobs_at_once"] == 8
    service.devices.configure({"strategy": "round_robin"})
    done = [end_of(service, service.submit("test/paint", {"seed": n}).id) for n in range(4)]
    assert [job.device for job in done] == ["cuda:0", "cuda:1"] * 2
    assert all("turn" in job.device_reason for job in done), done
    until(lambda: [len(d["last_operations"]) for d in service.device_status()["devices"]] == [2, 2])
    newest = service.device_status()["devices"][1]["last_operations"][0]
    assert (newest["job"], newest["capability"], newest["outcome"]) == (done[3].id, "test/paint", "succeeded")
    assert newest["seconds"] >= 0 and newest["model"] is None
    hidden = service.device_status(owner="somebody else")["devices"][1]["last_operations"][0]
    assert hidden["job"] is None and hidden["capability"] == "test/paint"


def test_ten_operations_are_kept_and_failures_among_them(make_service: Callable[..., Service]) -> None:
    service = make_service()
    for number in range(11):
        end_of(service, service.submit("test/paint", {"seed": number}).id)
    failed = end_of(service, service.submit("test/fail", {}).id)
    until(lambda: service.device_status()["devices"][0]["last_operations"][0]["job"] == failed.id)
    kept = service.device_status()["devices"][0]["last_operations"]
    assert len(kept) == 10 and kept[0]["outcome"] == "failed"


def test_the_reason_is_kept_with_the_job(make_service: Callable[..., Service]) -> None:
    service = make_service(fake_devices=("cuda:0=Small:2", "cuda:1=Large:24"), devices=("auto",), **MODELLED)
    until(lambda: set(states(service).values()) == {"idle"})
    first = end_of(service, service.submit("test/draw", {"prompt": "", "model": "pocket"}).id)
    again = end_of(service, service.submit("test/draw", {"prompt": "", "model": "pocket"}).id)
    assert first.device == "cuda:1" and "the best of what is idle" in first.device_reason, "compute is told by memory"
    assert (again.device, again.device_reason) == (first.device, "pocket lies ready there")
    claims = [move["reason"] for move in service.history(again.id) if move["after"] == "running"]
    assert claims == ["pocket lies ready there"]


def test_a_disabled_device_finishes_what_it_holds_and_its_worker_ends(make_service: Callable[..., Service]) -> None:
    service = make_service(fake_devices=TWO, devices=("auto",))
    until(lambda: set(states(service).values()) == {"idle"})
    slow = service.submit("test/paint", {"seed": 1, "num_inference_steps": 40, "step_seconds": 0.05})
    until(lambda: service.get(slow.id).step > 0)
    device = service.get(slow.id).device
    other = ({"cuda:0", "cuda:1"} - {device}).pop()
    pid = {worker["device"]: worker["pid"] for worker in service.readiness()["workers"]}[device]
    service.devices.configure({"devices": {device: {"enabled": False}}})
    assert states(service)[device] == "finishing"
    for number in range(3):
        assert end_of(service, service.submit("test/paint", {"seed": number}).id).device == other
    ended = end_of(service, slow.id)
    assert (ended.status, ended.device, ended.attempt) == ("succeeded", device, 1)
    until(lambda: states(service)[device] == "disabled")
    until(lambda: not Path(f"/proc/{pid}").exists())
    service.devices.configure({"devices": {device: {"enabled": True}, other: {"enabled": False}}})
    until(lambda: states(service) == {device: "idle", other: "disabled"})
    assert end_of(service, service.submit("test/paint", {"seed": 9}).id).device == device


def test_decisions_outlive_a_restart(make_service: Callable[..., Service], tmp_path: Path) -> None:
    service = make_service(fake_devices=TWO, devices=("auto",))
    change = {"strategy": "compute_based", "devices": {"cuda:0": {"enabled": False}, "cuda:1": {"jobs_at_once": 2}}}
    service.devices.configure(change)
    service.stop(0.0)
    again = make_service(fake_devices=TWO, devices=("auto",))
    told = {device["device"]: device for device in again.device_status()["devices"]}
    assert again.device_status()["strategy"] == "compute_based"
    assert (told["cuda:0"]["enabled"], told["cuda:0"]["state"]) == (False, "disabled")
    assert told["cuda:1"]["jobs_at_once"] == 2
    assert end_of(again, again.submit("test/paint", {"seed": 1}).id).device == "cuda:1"
    assert json.loads((tmp_path / "devices.json").read_text())["devices"]["cuda:0"]["enabled"] is False


def test_seats_change_at_once(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",))
    until(lambda: states(service) == {"cpu": "idle"})
    slow = {"num_inference_steps": 1000, "step_seconds": 0.02}
    ids = [service.submit("test/paint", {"seed": n, **slow}).id for n in range(3)]
    until(lambda: service.readiness()["running"] == 1)
    service.devices.configure({"devices": {"cpu": {"jobs_at_once": 3}}})
    until(lambda: service.readiness()["running"] == 3)
    assert {service.get(id).device_reason for id in ids[1:]} == {"it shares the device with others there"}
    for id in ids:
        service.cancel(id)


def test_a_memory_limit_reaches_the_worker_at_once_and_after_a_fresh_start(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(devices=("cpu",), **MODELLED)
    until(lambda: states(service) == {"cpu": "idle"})
    end_of(service, service.submit("test/draw", {"prompt": "", "model": "pocket"}).id)
    until(lambda: service.device_status()["devices"][0]["resident_models"] == ["pocket"])

    def limit_in_worker() -> int | None:
        return service.readiness()["workers"][0]["memory"].get("limit")

    assert limit_in_worker() is None
    service.devices.configure({"devices": {"cpu": {"memory_limit_bytes": 64 * 2**20}}})
    until(lambda: limit_in_worker() == 64 * 2**20)
    told = service.device_status()["devices"][0]
    assert told["memory_limit_bytes"] == told["models_may_take_bytes"] == 64 * 2**20
    pid = service.readiness()["workers"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: states(service) == {"cpu": "idle"} and service.readiness()["workers"][0]["pid"] != pid)
    assert limit_in_worker() == 64 * 2**20, "the fresh worker knows it too"
    with pytest.raises(InvalidRequest, match="more than the device has"):
        service.devices.configure({"devices": {"cpu": {"memory_limit_bytes": 2**60}}})
    service.devices.configure({"devices": {"cpu": {"memory_limit_bytes": None}}})
    until(lambda: limit_in_worker() is None)


def test_how_memory_is_used_is_decided_for_a_device_and_refused_where_it_cannot_serve(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(devices=("cpu",), offload="vae", **MODELLED)
    until(lambda: states(service) == {"cpu": "idle"})

    def settings_in_worker() -> dict[str, Any]:
        return service.readiness()["workers"][0]["memory"]["settings"]

    asked = {"offload": "attention", "precision": "float8", "parked_memory_bytes": 5}
    service.devices.configure({"devices": {"cpu": asked}})
    until(lambda: settings_in_worker() == {**asked, "model_memory_bytes": None})
    with pytest.raises(InvalidRequest, match="cpu: The strategy streamed needs a GPU"):
        service.devices.configure({"devices": {"cpu": {"offload": "streamed"}}})
    monkeypatch.setattr("app.models.machine._is_installed", lambda module: False)
    with pytest.raises(DependencyMissing, match="optimum-quanto"):
        service.devices.configure({"devices": {"cpu": {"precision": "int4", "offload": "none"}}})
    assert service.devices.memory_settings("cpu") == {**asked, "model_memory_bytes": None}
    pid = service.readiness()["workers"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: states(service) == {"cpu": "idle"} and service.readiness()["workers"][0]["pid"] != pid)
    assert settings_in_worker() == {**asked, "model_memory_bytes": None}, "the fresh worker knows it too"
    service.devices.configure({"devices": {"cpu": {"offload": None, "parked_memory_bytes": None, "precision": None}}})
    until(lambda: settings_in_worker()["offload"] == "vae")


def test_what_a_worker_cannot_obey_is_told_as_its_trouble_and_jobs_go_on(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",), **MODELLED)
    until(lambda: states(service) == {"cpu": "idle"})
    worker = service.devices.workers["cpu"]
    worker.use_memory({**worker.memory["settings"], "precision": "float64"})
    until(lambda: "needs a package" in (service.device_status()["devices"][0]["trouble"] or ""))
    assert end_of(service, service.submit("test/draw", {"prompt": "", "model": "pocket"}).id).status == "succeeded"


def test_the_context_manager_holds_the_device_that_a_job_would_get(make_service: Callable[..., Service]) -> None:
    service = make_service(fake_devices=TWO, devices=("auto",))
    until(lambda: set(states(service).values()) == {"idle"})
    with service.devices.device_for("sdxl") as device:
        assert (device.device, device.runs_on) == ("cuda:0", "cpu") and "it is next" in device.reason
        assert states(service) == {"cuda:0": "busy", "cuda:1": "idle"}
        jobs_ = [end_of(service, service.submit("test/paint", {"seed": n}).id) for n in range(2)]
        assert {job.device for job in jobs_} == {"cuda:1"}
        with service.devices.device_for() as second:
            assert second.device == "cuda:1"
            with pytest.raises(NoDevice), service.devices.device_for(seconds=0.01):
                pytest.fail("a third device was found")
    assert states(service) == {"cuda:0": "idle", "cuda:1": "idle"}


def test_on_a_processor_the_number_format_goes_by_the_models_size(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = make_service(devices=("cpu",)).devices
    for model in ("pocket", "sdxl", "lcm-lora-sdxl"):
        fleet.learn(model)
    (cpu,) = fleet.open_workers()
    told = {model: fleet.model_needs(model) for model in ("pocket", "sdxl")}
    for can, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("app.core.fleet.cpu_has_bfloat16", lambda can=can: can)
        assert fleet.needs("sdxl", cpu.precision) == told["sdxl"][name]
        assert fleet.needs("pocket", cpu.precision) == told["pocket"]["float32"]
    assert told["sdxl"]["bfloat16"] < told["sdxl"]["float32"]
    assert fleet.needs("lcm-lora-sdxl", cpu.precision) is None and fleet.needs("never seen", cpu.precision) is None


def test_a_job_is_given_out_although_its_model_cannot_be_looked_up(
    make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_service(**MODELLED)

    def broken(*_: object) -> dict[str, int]:
        raise OSError("the disk is gone")

    monkeypatch.setattr("app.core.fleet.needs_of", broken)
    job = end_of(service, service.submit("test/draw", {"prompt": "", "model": "pocket"}).id)
    assert (job.status, job.device_reason) == ("succeeded", "it is next")


def test_apples_gpu_is_seen_and_not_used(make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.device_inventory.platform.system", lambda: "Darwin")
    monkeypatch.setattr("app.core.device_inventory.platform.machine", lambda: "arm64")
    monkeypatch.setattr("app.core.device_inventory._apple_chip", lambda: "Apple M3")
    service = make_service(devices=("cpu",))
    cpu, apple = service.device_status()["devices"]
    assert (cpu["device"], apple["device"], apple["name"], apple["kind"]) == ("cpu", "mps", "Apple M3 GPU", "mps")
    assert (apple["enabled"], apple["state"], apple["load_percent"]) == (False, "unused", None)
    with pytest.raises(InvalidRequest, match="no device 'mps'"):
        service.devices.configure({"devices": {"mps": {"enabled": True}}})
