"""The benchmarks of full-size models, run on the CPU with tiny ones: every line but the GPU's own counters."""

import ast
import functools
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from app.core.model_offload import STRATEGIES
from app.models.borrowed import BorrowedPipeline
from app.models.device import TorchDevice
from benchmarks import __main__ as bench
from benchmarks import full_size, memory, sharing, strategies, zoo
from benchmarks.meter import Meter
from benchmarks.strategies import Way

GB = r"\d+\.\d\d GB"


@pytest.fixture
def make(sources, tmp_path):
    """Writes tiny checkpoints as the benchmark writes full-size ones."""
    for family in ("sd15", "sdxl"):
        (tmp_path / "layouts").mkdir(exist_ok=True)
        (tmp_path / "layouts" / family).symlink_to(sources / f"tiny-{family}")
    return functools.partial(full_size.make_full_size, layouts=tmp_path / "layouts")


@pytest.fixture
def hooks_on_the_cpu(monkeypatch):
    """Past the door that keeps strategies with hooks to GPUs."""
    monkeypatch.setattr("app.models.device.check_strategy", lambda strategy, device: None)


@pytest.fixture
def small(make):
    """A device and sizes for which seconds are enough."""
    return {"device": "cpu", "side": 64, "steps": 3, "make": make}


def figures(row) -> list[float]:
    """The numbers of a row, in order."""
    return [float(number) for number in re.findall(r"\d+\.\d+", " ".join(row))]


FILES = sorted(Path(bench.__file__).parent.glob("*.py"))


def missing_names(tree: ast.AST) -> list[str]:
    """Names that a file takes from the project, or looks up in one of its modules, and that are not there."""
    modules, missing = {}, []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module.partition(".")[0] not in ("app", "benchmarks", "tests"):
            continue
        for alias in node.names:
            try:
                found = importlib.import_module(f"{node.module}.{alias.name}")
            except ModuleNotFoundError:
                if not hasattr(importlib.import_module(node.module), alias.name):
                    missing.append(f"{node.module}.{alias.name}")
            else:
                modules[alias.asname or alias.name] = found
    looked_up = [(node.value.id, node.attr) for node in ast.walk(tree)
                 if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]  # fmt: skip
    missing += [f"{name}.{attr}" for name, attr in looked_up if name in modules and not hasattr(modules[name], attr)]
    return missing


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_benchmark_asks_for_nothing_that_is_gone(file):
    assert missing_names(ast.parse(file.read_text())) == []


def test_what_is_gone_is_noticed():
    code = "from app.models import faces, nobody\nfrom app.ui import nothing\nfaces.FaceAnalyser; faces.gone()"
    assert missing_names(ast.parse(code)) == ["app.models.nobody", "app.ui.nothing", "faces.gone"]


def test_a_measurement_that_fails_takes_no_other_with_it(monkeypatch, capsys, tmp_path):
    def fails(rounds):
        yield "begun", "1.0 x", "of two"
        raise RuntimeError("no such network")

    parts = {"one": ("One", (fails,)), "two": ("Two", (lambda rounds: [("kept", "2.0 x", "")],))}
    monkeypatch.setattr(bench, "PARTS", parts)
    monkeypatch.setattr(bench, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["bench", "--write"])
    assert bench.main() == 1
    told = capsys.readouterr()
    assert "kept | 2.0 x" in told.out and "failed, and no page was written: One" in told.out
    assert "no such network" in told.err
    assert not bench.PAGE.exists()


def test_the_meter_sees_what_stood_only_for_a_moment():
    meter, block = Meter("cpu"), 256 * 2**20

    def allocate() -> None:
        torch.ones(block // 4)

    _, before = meter.measure(lambda: None)
    seconds, peak = meter.measure(allocate)
    _, after = meter.measure(lambda: None)
    assert peak - before > 0.9 * block
    assert peak - after > 0.9 * block
    assert 0 < seconds < 60


def test_little_memory_is_compared_with_plain_diffusers_in_turns(small, hooks_on_the_cpu, monkeypatch):
    turns = []
    turn = strategies.Side.turn
    monkeypatch.setattr(strategies.Side, "turn", lambda side, *rest: (turns.append(side), turn(side, *rest)))
    rows = list(strategies.low_memory(2, **small))
    assert len(rows) == 2 * len(strategies.LOW_MEMORY)
    for way, (peak, time) in zip(strategies.LOW_MEMORY, zip(rows[::2], rows[1::2], strict=True), strict=True):
        assert peak[0] == f"sdxl 64x64, {way}: peak" and time[0] == f"sdxl 64x64, {way}: time"
        assert re.fullmatch(r"\d+\.\d\d x plain diffusers \(target 0\.45\)", peak[1])
        assert re.fullmatch(rf"{GB} beside {GB} of the whole process", peak[2])
        assert re.fullmatch(r"\d+\.\d\d x plain diffusers \(target 1\.25\)", time[1])
        assert re.fullmatch(r"\d+\.\d\d s beside \d+\.\d\d s, 3 steps", time[2])
        assert all(number > 0 for number in figures(peak))
    plain, served = turns[0], turns[1]
    assert plain is not served and turns[:4] == [plain, served, plain, served]
    assert len(plain.seconds) == len(served.peaks) == 2


def test_every_strategy_and_every_precision_has_its_row(small, hooks_on_the_cpu):
    rows = list(strategies.every_way(1, **small))
    named = [f"EIS_OFFLOAD={name} EIS_PRECISION=bfloat16" for name in STRATEGIES]
    named += [f"EIS_OFFLOAD=none EIS_PRECISION={name}" for name in ("float8", "int8", "int4")]
    assert [row[0] for row in rows[1:]] == [f"sdxl 64x64, {name}" for name in named]
    assert rows[0][0] == "sdxl 64x64, plain diffusers in bfloat16: peak of the whole process"
    for row in rows:
        assert re.fullmatch(GB, row[1]), row
        assert re.fullmatch(r"\d+\.\d\d s for 3 steps(; settled on none)?", row[2]), row
    assert [row[0] for row in rows if "settled" in row[2]] == [rows[1][0]]


def test_a_way_that_the_device_refuses_is_named_with_its_reason(small):
    ways = (Way("streamed", "float32"), Way("vae", "float32"))
    refused, drawn = strategies.every_way(1, ways=ways, **small), None
    next(refused)
    row, drawn = refused
    assert row[:2] == ("sdxl 64x64, EIS_OFFLOAD=streamed EIS_PRECISION=float32", "left out")
    assert "needs a GPU" in row[2]
    assert re.fullmatch(GB, drawn[1])
    [row] = strategies.low_memory(1, ways=ways[:1], **small)
    assert row[1] == "left out" and "needs a GPU" in row[2]


def test_a_way_that_memory_did_not_suffice_for_has_no_figures(small, monkeypatch):
    stock = BorrowedPipeline._draw

    def draw(pipeline, arguments):
        if not pipeline._vae_tiling:
            raise MemoryError
        return stock(pipeline, arguments)

    monkeypatch.setattr(BorrowedPipeline, "_draw", draw)
    plain, short, tiled = strategies.every_way(1, ways=(Way("none", "float32"), Way("vae", "float32")), **small)
    assert short[1] == "left out" and "decoded in tiles" in short[2]
    assert re.fullmatch(GB, plain[1]) and re.fullmatch(GB, tiled[1])


def test_a_switch_on_a_cpu_opens_anew_what_has_no_room_and_finds_what_has(make):
    one, all_of_them = zoo.switches(1, (1, 2), device="cpu", precision="auto", copies=2, make=make)
    assert one[0] == "2 sd15 checkpoints on cpu, room for 1: a switch"
    assert one[1].startswith(f"{figures(one)[0]:.2f} x from_pretrained().to() (target 0.35); with a first picture ")
    assert one[2].endswith("; the others gone: a CPU has no other memory to park in")
    assert all_of_them[0] == "2 sd15 checkpoints on cpu, room for 2: a switch"
    assert "target" not in all_of_them[1] and "others" not in all_of_them[2]
    assert figures(all_of_them)[0] < 0.2 < figures(one)[0], "what stands is not opened, what went is"


def test_a_switch_where_ram_is_another_memory_finds_the_others_parked(make, monkeypatch):
    monkeypatch.setattr(TorchDevice, "keeps_parked", True)
    for name in ("total_bytes", "free_bytes", "used_bytes", "allocated_bytes"):
        monkeypatch.setattr(TorchDevice, name, lambda device: 2**40)
    [row] = zoo.switches(1, device="cpu", family="sdxl", copies=3, make=make)
    assert row[0] == "3 sdxl checkpoints on cpu, room for 1: a switch"
    assert row[2].endswith("; the other 2 parked in RAM")


def test_mixed_jobs_are_timed_at_once_and_one_by_one(make):
    what, figure, beside = full_size.mixed_jobs("sd15", 64, 8, "float32", 1, device="cpu", make=make)
    assert what == "8 mixed sd15 jobs at 64x64, float32"
    assert re.fullmatch(r"\d+\.\d\d x plain diffusers", figure)
    assert "pictures an hour beside" in beside and "forward by jobs in it 1:" in beside


def test_without_a_gpu_its_rows_are_left_out_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = [*sharing.full_size(1), *memory.on_a_gpu(1)]
    assert [row[0] for row in rows] == [
        "32 mixed sd15 jobs at 512x512",
        "16 mixed sdxl jobs at 1024x1024",
        *memory.ON_A_GPU,
    ]
    assert {row[1:] for row in rows} == {("left out", "no NVIDIA GPU")}


def test_with_a_gpu_every_row_is_measured_with_its_own_sizes(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(full_size, "disk_lacks", lambda needed: asked.append(round(needed / 1e9, 1)) or "")
    for module, name in ((strategies, "low_memory"), (strategies, "every_way"), (zoo, "switches")):
        monkeypatch.setattr(module, name, lambda rounds, name=name: iter([(name, str(rounds), "")]))
    assert list(memory.on_a_gpu(5)) == [(name, "5", "") for name in ("low_memory", "every_way", "switches")]
    assert asked == [6.9, 6.9, 8.6]


def test_a_full_disk_or_too_little_ram_is_said(monkeypatch):
    class Usage:
        free = 3 * 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(full_size.shutil, "disk_usage", lambda folder: Usage)
    rows = [*sharing.full_size(1), *memory.on_a_gpu(1), *memory.on_the_cpu(1)]
    mixed = ["32 mixed sd15 jobs at 512x512", "16 mixed sdxl jobs at 1024x1024"]
    assert [row[0] for row in rows] == [*mixed, *memory.ON_A_GPU, memory.ON_THE_CPU]
    assert {row[1] for row in rows} == {"left out"}
    needed = ("4", "9", "9", "9", "11", "11")
    for (*_, why), gigabytes in zip(rows, needed, strict=True):
        assert why == f"it takes {gigabytes} GB of free disk for temporary files; 3 are there"
    Usage.free = 10**12
    monkeypatch.setattr("app.models.machine.ram_free", lambda: 8 * 10**9)
    [row] = memory.on_the_cpu(1)
    assert row[:2] == (memory.ON_THE_CPU, "left out") and "GB of RAM; 8 are free" in row[2]
