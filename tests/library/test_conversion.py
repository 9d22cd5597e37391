"""Published pickles become safetensors at the pull: in a child, nothing run, taken up again, both hashes kept."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from app.errors import InvalidRequest, StorageFull, TransferFailed
from app.models import catalog, conversion, installing, pickles, tensor_files
from app.models.library import ModelLibrary
from app.models.spec import ModelSpec, Source
from tests.library.conftest import FREE, LIMITED
from tests.library.hub_server import Fault, HubServer, wait_for

Maker = Callable[..., ModelLibrary]

IDENTITY = ModelSpec(
    id="face",
    title="Face",
    kind="identity",
    family="sdxl",
    licence=FREE,
    bytes=1,
    repo="maker/face",
    files=("ip-adapter.bin",),
    tasks=("instantid",),
    options={"layout": "single-file"},
)
NESTED = {
    "image_proj": {"latents": torch.arange(6.0).reshape(1, 2, 3), "norm_out.weight": torch.ones(3)},
    "ip_adapter": {"1.to_k_ip.weight": torch.full((4, 5), 0.1), "1.to_v_ip.weight": torch.zeros(4, 5)},
    "epoch": 3,
}
FLAT = [
    "image_proj.latents",
    "image_proj.norm_out.weight",
    "ip_adapter.1.to_k_ip.weight",
    "ip_adapter.1.to_v_ip.weight",
]


def saved(content: object, *, legacy: bool = False) -> bytes:
    """What `torch.save` writes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def row(**changes: object) -> ModelSpec:
    return dataclasses.replace(IDENTITY, **changes)


def left(folder: Path) -> list[str]:
    """What stands under a models folder but for locks and pins."""
    hidden = (".locks", ".pins")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if path.parts[0] not in hidden)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_published_pickle_is_stored_as_safetensors_and_both_hashes_are_kept(hub, library_at, tmp_path, legacy: bool):
    published = saved(NESTED, legacy=legacy)
    hub.put("maker/face", {"ip-adapter.bin": published})
    library = library_at(tmp_path, catalog=(IDENTITY,))
    found = library.pull("face")
    assert found.path == tmp_path / "models" / "face" / "files" / "ip-adapter.safetensors"
    stored = load_file(found.path)
    assert sorted(stored) == FLAT
    for name in FLAT:
        part, _, key = name.partition(".")
        assert numpy.array_equal(stored[name], NESTED[part][key].numpy())
    assert left(tmp_path / "models") == ["face/files/ip-adapter.safetensors", "face/model.json"]
    record = json.loads((tmp_path / "models" / "face" / "model.json").read_text())
    sha256 = hashlib.sha256(published).hexdigest()
    assert record["facts"] == {"fetched": {"ip-adapter.bin": {"bytes": len(published), "sha256": sha256}}}
    assert record["files"]["ip-adapter.safetensors"]["sha256"] == found.sha256
    assert found.sha256 == hashlib.sha256(found.path.read_bytes()).hexdigest() != sha256
    assert library.verify("face") == []
    library.remove("face")
    assert left(tmp_path / "models") == []
    assert library.pull("face").installed, "the pinned hash is the published one"


def test_only_the_wanted_half_is_kept_in_sixteen_bits_and_without_the_wrappers(hub, library_at, tmp_path):
    half = torch.linspace(-2, 2, 300).reshape(3, 100)
    content = {"state_dict": {"module.visual.w": half, "module.visual.n": torch.tensor(7), "module.text.w": half}}
    content |= {"optimizer": [{"step": 1}]}
    hub.put("maker/face", {"ip-adapter.bin": saved(content)})
    spec = row(options={"layout": "single-file", "keep": "visual.", "store": "fp16"})
    stored = load_file(library_at(tmp_path, catalog=(spec,)).pull("face").path)
    assert sorted(stored) == ["visual.n", "visual.w"] and stored["visual.n"] == 7
    assert stored["visual.w"].dtype == numpy.float16 and numpy.array_equal(stored["visual.w"], half.half().numpy())


def test_every_kind_of_number_and_tensors_that_share_memory_come_through(tmp_path: Path):
    base = torch.arange(24.0).reshape(4, 6)
    content = {str(dtype): torch.tensor([[0, 1], [1, 0]]).to(dtype) for dtype in
               (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
                torch.uint8, torch.bool)}  # fmt: skip
    content |= {"whole": base, "turned": base.T, "part": base[1:3, ::2], "none": torch.zeros(0, 3)}
    (tmp_path / "net.pt").write_bytes(saved(content))
    assert unpickled(tmp_path / "net.pt", tmp_path / "net.safetensors") == {}
    with safe_open(tmp_path / "net.safetensors", "pt") as opened:
        for name, tensor in content.items():
            assert torch.equal(opened.get_tensor(name), tensor) and opened.get_tensor(name).dtype == tensor.dtype


def unpickled(source: Path, target: Path, *arguments: str) -> dict:
    """The child as a command line runs it; answers what it said."""
    command = [sys.executable, "-m", "app.models.pickles", str(source), str(target), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        said = child.stdout.read()
        assert child.wait() == 0
    return json.loads(said)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def hostile(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that are no checkpoints, each with the word that its refusal says."""
    mark = tmp_path / "owned"
    plain = pickle.dumps({"w": Malicious(mark)}, protocol=2)
    archive = io.BytesIO(saved({"w": torch.ones(2)}))
    rebuilt = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(rebuilt, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, plain if item.filename.endswith("data.pkl") else old.read(item))
    return {
        "code in an archive": (rebuilt.getvalue(), "code of its own (posix.system)"),
        "code in an old file": (plain, "code of its own (posix.system)"),
        "a module": (saved({"w": torch.nn.Linear(2, 2)}), r"code of its own (torch.nn.modules.linear.Linear)"),
        "code in a newer pickle": (pickle.dumps({"w": Malicious(mark)}, protocol=4), "cannot be read"),
        "no pickle": (b"<html>404</html>" * 100, "cannot be read"),
        "an empty file's worth": (saved({"epoch": 3}), "no tensors"),
        "a bomb": (saved({"w": torch.zeros(1).expand(2**16, 2**20)}), "more bytes than the file"),
        "nested lists": (saved({"w": [torch.ones(2)]}), "nested"),
        "sparse": (saved({"w": torch.eye(3).to_sparse()}), "not stored"),
        "cut short": (saved(NESTED)[:-200], "cannot be read"),
    }


@pytest.mark.parametrize("case", ["code in an archive", "code in an old file", "a bomb"])
def test_a_pickle_that_is_no_checkpoint_is_refused_and_leaves_nothing(hub, library_at, tmp_path: Path, case: str):
    data, word = hostile(tmp_path)[case]
    hub.put("maker/face", {"ip-adapter.bin": data})
    library = library_at(tmp_path / "home", catalog=(IDENTITY,))
    with pytest.raises(InvalidRequest, match="was not taken") as refused:
        library.pull("face")
    assert word in refused.value.message and len(refused.value.message) < 300
    assert left(tmp_path / "home" / "models") == [] and not library.get("face").installed
    assert not (tmp_path / "owned").exists(), "the pickle's code ran"


@pytest.mark.parametrize("case", list(hostile(Path("/nonexistent"))))
def test_what_is_no_checkpoint_is_refused_by_name_and_not_run(tmp_path: Path, case: str):
    data, word = hostile(tmp_path)[case]
    (tmp_path / "net.pt").write_bytes(data)
    with pytest.raises(InvalidRequest) as refused:
        pickles.convert(tmp_path / "net.pt", tmp_path / "net.safetensors")
    assert word in refused.value.message
    assert not (tmp_path / "owned").exists() and not (tmp_path / "net.safetensors").exists()


def test_the_code_of_the_test_would_run_where_a_pickle_is_trusted(tmp_path: Path):
    data, _ = hostile(tmp_path)["code in an old file"]
    pickle.loads(data)
    assert (tmp_path / "owned").exists(), "else the test above proves nothing"


def test_values_that_sixteen_bits_cannot_hold_are_refused(hub, library_at, tmp_path):
    hub.put("maker/face", {"ip-adapter.bin": saved({"w": torch.tensor([1.0, 1e6])})})
    spec = row(options={"layout": "single-file", "store": "fp16"})
    with pytest.raises(InvalidRequest, match="16 bits cannot hold the values of 'w'"):
        library_at(tmp_path, catalog=(spec,)).pull("face")
    infinite = numpy.array([numpy.inf, -numpy.inf, 1.0], dtype=numpy.float32)
    assert numpy.frombuffer(tensor_files.narrowed(infinite, "w"), "<f2").tolist() == infinite.tolist()


def child_of_this_process() -> int | None:
    """The process that converts, by its command line."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"app.models.pickles" in (entry / "cmdline").read_bytes():
                status = dict(
                    line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line
                )
                if int(status["PPid"]) == os.getpid():
                    return int(entry.name)
        except (OSError, KeyError):
            continue
    return None


def test_a_killed_child_leaves_no_half_file_and_the_next_pull_fetches_nothing_again(hub, library_at, tmp_path):
    hub.put("maker/face", {"ip-adapter.bin": saved(NESTED)})
    library = library_at(tmp_path, catalog=(IDENTITY,))
    errors = []

    def pull() -> None:
        try:
            library.pull("face")
        except TransferFailed as error:
            errors.append(error.message)

    pulling = threading.Thread(target=pull)
    pulling.start()
    wait_for(lambda: child_of_this_process() is not None, 30)
    os.kill(child_of_this_process(), signal.SIGKILL)
    pulling.join()
    assert len(errors) == 1 and "died; what was fetched is kept" in errors[0]
    staged = left(tmp_path / "models")
    assert [name.rpartition("/")[2] for name in staged] == ["ip-adapter.bin"], staged
    assert len(hub.served("ip-adapter.bin")) == 1
    assert library.pull("face").installed
    assert len(hub.served("ip-adapter.bin")) == 1, "it was fetched twice"
    assert left(tmp_path / "models") == ["face/files/ip-adapter.safetensors", "face/model.json"]


def test_the_child_ends_with_the_process_that_asked(tmp_path: Path):
    """Its target is a FIFO that nobody reads, so that it can't be done before it sees that it was left."""
    (tmp_path / "net.pt").write_bytes(saved(NESTED))
    os.mkfifo(tmp_path / "target")
    command = [sys.executable, "-m", "app.models.pickles", str(tmp_path / "net.pt"), str(tmp_path / "target")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            child.stdin.close()
            assert child.wait(60) == 1
        finally:
            child.kill()


def test_a_stopped_pull_ends_its_conversion(hub, library_at, tmp_path):
    hub.put("maker/face", {"ip-adapter.bin": saved(NESTED)})
    library = library_at(tmp_path, catalog=(IDENTITY,))
    stop = library.new_stop()
    errors = []

    def pull() -> None:
        try:
            library.pull("face", stop=stop)
        except TransferFailed as error:
            errors.append(error.message)

    pulling = threading.Thread(target=pull)
    pulling.start()
    wait_for(lambda: child_of_this_process() is not None, 30)
    stop.ask()
    pulling.join(10)
    assert errors == ["The pull was stopped; what has arrived is kept."] and child_of_this_process() is None
    assert library.pull("face").installed and len(hub.served("ip-adapter.bin")) == 1


def test_what_one_pull_converted_the_next_one_neither_fetches_nor_converts_again(
    hub, library_at, tmp_path, monkeypatch
):
    """The second file fails after the first one was converted; its pickle is gone by then."""
    hub.put("maker/face", {"a.bin": saved({"w": torch.ones(300)}), "b.bin": saved({"w": torch.zeros(300)})})
    spec = row(files=("a.bin", "b.bin"), options={"layout": "folder"})
    converted = []
    unpickle = conversion._unpickle

    def noted(source: Path, *arguments: object) -> None:
        converted.append(source.name)
        if converted == ["a.bin", "b.bin"]:
            raise TransferFailed("The machine went away.")
        unpickle(source, *arguments)

    monkeypatch.setattr(conversion, "_unpickle", noted)
    library = library_at(tmp_path, catalog=(spec,))
    with pytest.raises(TransferFailed, match="went away"):
        library.pull("face")
    names = {name.rpartition("/")[2] for name in left(tmp_path / "models")}
    assert names == {"a.safetensors", "b.bin", "converted.json"}
    found = library.pull("face")
    assert converted == ["a.bin", "b.bin", "b.bin"]
    assert len(hub.served("a.bin")) == len(hub.served("b.bin")) == 1
    assert found.path == tmp_path / "models" / "face" / "files"
    assert left(tmp_path / "models") == ["face/files/a.safetensors", "face/files/b.safetensors", "face/model.json"]
    assert library.verify("face") == []


def test_files_from_addresses_of_their_own_are_resumed_checked_and_renamed(hub: HubServer, library_at, tmp_path):
    content = {"module.body.w": torch.arange(40_000.0)}
    hub.put(
        "maker/release", {"v1/Net_Final.pth": saved(content, legacy=True), "v2/parse.pth": saved({"p": torch.ones(3)})}
    )
    hub.faults["v1/Net_Final.pth"] = [Fault(status=503), Fault(after=100_000)]

    def source(path: str, name: str) -> Source:
        data = hub.repos["maker/release"][path]
        url = f"{hub.url}/maker/release/resolve/main/{path}"
        return Source(name, url, len(data), hashlib.sha256(data).hexdigest())

    spec = row(
        id="nets",
        kind="faces",
        family="other",
        repo=None,
        files=(),
        tasks=(),
        sources=(source("v1/Net_Final.pth", "Net_Final.pth"), source("v2/parse.pth", "parse.pth")),
        stored_as={"Net_Final.pth": "detector.safetensors"},
        options={"layout": "folder"},
    )
    library = library_at(tmp_path, catalog=(spec,))
    found = library.pull("nets")
    assert sorted(path.name for path in found.path.iterdir()) == ["detector.safetensors", "parse.safetensors"]
    assert numpy.array_equal(load_file(found.path / "detector.safetensors")["body.w"], numpy.arange(40_000.0))
    assert hub.served("Net_Final.pth")[-1].headers["range"] == "bytes=100000-"
    assert library.rows()[0].spec == spec and library_at(tmp_path, catalog=()).get("nets").spec == spec
    library.remove("nets")
    changed = dataclasses.replace(spec.sources[1], sha256="0" * 64)
    with pytest.raises(TransferFailed, match=r"parse\.pth arrived with another hash"):
        library_at(tmp_path, catalog=(row(**vars(spec) | {"sources": (spec.sources[0], changed)}),)).pull("nets")


def test_a_large_file_is_stored_in_sixteen_bits_in_little_memory_with_its_configuration_beside(tmp_path: Path):
    """A gigabyte of 32-bit zeros, as sparse as the published file is large, through the part that a pull runs."""
    count = 2**28 // 4
    shapes = {f"block.{number}.weight": (count // 2**10, 2**10) for number in range(4)}
    sizes = {name: count * 4 for name in shapes} | {"ids": 16}
    header, end = {}, 0
    for name, size in sizes.items():
        shape, dtype = ((2,), "I64") if name == "ids" else (shapes[name], "F32")
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    name = "diffusion_pytorch_model.safetensors"
    source = tmp_path / "staged" / "fetched" / name
    source.parent.mkdir(parents=True)
    with source.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.write(struct.pack("<4f", 0.5, -1.0, 65504.0, 1e-7))
        file.truncate(8 + len(text) + end)
    program = (
        "import sys, pathlib\n"
        "from app.models import catalog, conversion\n"
        "from app.models.download import Stop\n"
        "from app.models.installed import InstalledFile\n"
        "from tests.own_memory import peak\n"
        "spec = next(spec for spec in catalog.CATALOG if spec.id == 'ecomid')\n"
        "before = peak()\n"
        f"fetched = {{{name!r}: InstalledFile(1, 'x')}}\n"
        "stored = conversion.store_all(spec, pathlib.Path(sys.argv[1]), fetched, Stop())\n"
        "print(peak() - before, *stored, 'torch' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "staged")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    grown, *rest = run.stdout.split()
    assert rest == [name, "config.json", "False"]
    assert int(grown) < 150e6, f"{grown} bytes more"
    stored = tmp_path / "staged" / "files" / name
    assert stored.stat().st_size < 2**29 + 2**20 and not source.exists()
    with safe_open(stored, "np") as opened:
        first = opened.get_tensor("block.0.weight")
        assert first.dtype == numpy.float16 and first.shape == shapes["block.0.weight"]
        assert first.reshape(-1)[:4].tolist() == numpy.array([0.5, -1, 65504, 1e-7], numpy.float16).tolist()
        assert opened.get_tensor("ids").dtype == numpy.int64
    config = json.loads((tmp_path / "staged" / "files" / "config.json").read_text())
    assert config["_class_name"] == "ControlNetModel"


def test_the_written_configuration_is_that_of_a_full_sdxl_controlnet():
    from diffusers import ControlNetModel

    spec = next(spec for spec in catalog.CATALOG if spec.id == "ecomid")
    config = json.loads(spec.written["config.json"])
    with torch.device("meta"):
        network = ControlNetModel.from_config(config)
    assert 4 * sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(spec.bytes, rel=1e-3)
    assert network.config.conditioning_channels == 3 and network.config.cross_attention_dim == 2048


def test_a_rewritten_file_keeps_its_numbers_under_other_names(tmp_path: Path):
    generator = numpy.random.default_rng(0)
    content = {"a.w": generator.standard_normal((3, 5), dtype=numpy.float32), "b.n": numpy.arange(3)}
    save_file(content, tmp_path / "old.safetensors")
    tensor_files.rewrite(tmp_path / "old.safetensors", tmp_path / "new.safetensors", named=lambda name: f"x.{name}")
    found = load_file(tmp_path / "new.safetensors")
    assert sorted(found) == ["x.a.w", "x.b.n"]
    assert all(numpy.array_equal(found[f"x.{name}"], value) for name, value in content.items())
    (tmp_path / "wrong.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(InvalidRequest):
        tensor_files.rewrite(tmp_path / "wrong.safetensors", tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


def test_conversion_asks_for_the_room_that_it_takes(hub, library_at, tmp_path, monkeypatch):
    published = saved(NESTED)
    hub.put("maker/face", {"ip-adapter.bin": published})
    free = installing.RESERVED_BYTES + 2 * len(published) - 1
    usage = installing.shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(installing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageFull):
        library_at(tmp_path, catalog=(IDENTITY,)).pull("face")
    assert not hub.served("ip-adapter.bin")
    usage = usage._replace(free=free + 1)
    assert library_at(tmp_path, catalog=(IDENTITY,)).pull("face").installed


def test_a_set_brings_its_members_and_takes_them_away(hub, library_at, tmp_path):
    hub.put("maker/face", {"ip-adapter.bin": saved(NESTED)})
    other = row(id="other", licence=LIMITED)
    both = row(id="both", files=(), tasks=(), parts=("face", "other"), options={"layout": "folder"})
    library = library_at(tmp_path, catalog=(both, IDENTITY, other))
    assert [licence.name for licence in library.licences_to_accept("both")] == [LIMITED.name]
    assert library.pull("both", accept_licence=True).installed
    assert library.get("face").installed and library.get("other").installed
    library.remove("both")
    assert not library.get("face").installed and not library.get("other").installed
