"""`eis`, as a person meets it: run, batch, jobs, models, doctor, and what it says when something is wrong."""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from app import cli, cli_doctor, cli_run
from app.cli_chain import read_then
from app.cli_fields import given_fields
from app.cli_progress import ProgressLine
from app.core.catalog import CATALOG as PRODUCT
from app.core.jobs import JobEvent
from app.models.library import ModelLibrary
from tests.api.conftest import picture
from tests.api.serving import Running, serving
from tests.engine.capabilities import squares
from tests.engine.ledger import files_of
from tests.library.test_inspect_file import sparse

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "diffusers", "transformers", "gradio")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working folder of the test's own, and a catalog that needs no torch."""
    home = tmp_path / "home"
    for name, value in {"HOME": home, "CATALOG": "tests.engine.capabilities:CATALOG", "MIN_FREE_BYTES": 0}.items():
        monkeypatch.setenv(f"EIS_{name}", str(value))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return home


def pixels(path: Path) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


def test_run_writes_the_picture_and_says_what_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "test/paint", "--prompt", "a", "--seed", "5", "--out", "a.png"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == "a.png" and "seed 5" in told.err and "inline" in told.err
    assert pixels(Path("a.png")) == squares(5).tobytes()


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("a.PNG", "PNG")])
def test_the_name_decides_the_format(name: str, kind: str) -> None:
    assert cli.main(["run", "test/paint", "--out", name, "--quiet"]) == 0
    assert Image.open(name).format == kind


def test_several_pictures_are_numbered_and_no_file_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "test/paint", "--seed", "1", "--num-images-per-prompt", "2", "--quiet"]
    assert cli.main([*run, "--out", "b.png"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["b-1.png", "b-2.png"]
    assert pixels(Path("b-2.png")) == squares(2).tobytes()
    for _ in range(2):
        assert cli.main(["run", "test/paint", "--seed", "9"]) == 0
    assert {"test-paint-9.png", "test-paint-9-2.png"} <= {path.name for path in Path().iterdir()}


@pytest.mark.parametrize("capability", ["test/paint", None])
def test_a_recipe_repeats_a_picture_to_the_byte(capability: str | None) -> None:
    assert cli.main(["run", "test/paint", "--num-images-per-prompt", "3", "--out", "c.png", "--quiet"]) == 0
    words = ["run", *([capability] if capability else []), "--recipe", "c-3.png", "--out", "again.png", "--quiet"]
    assert cli.main(words) == 0
    assert Path("again.png").read_bytes() == Path("c-3.png").read_bytes()
    assert cli.main([*words[:-2], "other.png", "--quiet", "--seed", "77"]) == 0
    assert pixels(Path("other.png")) == squares(79).tobytes(), "the third picture of seed 77"


def test_a_recipe_comes_from_json_too() -> None:
    recipe = {"capability": "test/paint", "request": {"prompt": "a", "seed": 3}, "position": 0}
    Path("recipe.json").write_text(json.dumps(recipe))
    assert cli.main(["run", "--recipe=recipe.json", "--out", "d.png"]) == 0
    assert pixels(Path("d.png")) == squares(3).tobytes()


def test_a_recipe_of_other_weights_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ModelLibrary(home).get("pocket").sha256
    for digest, said in ((own, False), ("0" * 64, True)):
        recipe = {"capability": "test/paint", "request": {"seed": 3}, "model": "pocket", "model_sha256": digest}
        Path("recipe.json").write_text(json.dumps(recipe))
        assert cli.main(["run", "--recipe", "recipe.json", "--out", "d.png", "--quiet"]) == 0
        assert ("note: pocket is installed with other weights" in capsys.readouterr().err) is said


def test_a_picture_comes_from_a_file_and_its_recipe_finds_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.png").write_bytes(picture((30, 20), "blue"))
    assert cli.main(["run", "test/copy", "--image", "in.png", "--out", "out.png"]) == 0
    assert pixels(Path("out.png")) == pixels(Path("in.png"))
    assert cli.main(["run", "--recipe", "out.png", "--out", "again.png"]) == 0
    assert pixels(Path("again.png")) == pixels(Path("in.png"))


def test_nothing_stays_in_the_home_but_what_a_recipe_names(home: Path) -> None:
    Path("in.png").write_bytes(picture((30, 20), "blue"))
    Path("small.png").write_bytes(picture((10, 10), "white"))
    assert cli.main(["run", "test/paint", "--num-images-per-prompt", "3", "--out", "a.png", "--quiet"]) == 0
    assert cli.main(["run", "test/copy", "--image", "in.png", "--mask-image", "small.png", "--quiet"]) == 2
    Path("wishes.jsonl").write_text('{"seed": 1}\n{"seed": 2, "num_images_per_prompt": 2}\n')
    assert cli.main(["batch", "wishes.jsonl", "--capability", "test/paint", "--quiet"]) == 0
    assert files_of(home) == set()
    assert cli.main(["run", "test/copy", "--image", "in.png", "--out", "out.png", "--quiet"]) == 0
    named = cli_run.read_recipe(Path("out.png"))["inputs"]["image"]["id"]
    assert files_of(home) == {named}
    with serving(home, api_keys=(), engine={"orphan_seconds": 0.05}) as server:
        deadline = time.monotonic() + 10
        while not (found := server.client.get("/api/v1/images?kind=image").json()["images"]):
            assert time.monotonic() < deadline
        assert [image["id"] for image in found] == [named]
        assert cli.main(["run", "--recipe", "out.png", "--out", "again.png", "--quiet"]) == 0
        assert pixels(Path("again.png")) == pixels(Path("in.png"))
        assert server.client.delete(f"/api/v1/images/{named}").status_code == 204
    assert not list((home / "images").glob("*/*"))


def test_a_recipe_whose_picture_is_gone_says_how_to_give_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.png").write_bytes(picture((30, 20), "blue"))
    assert cli.main(["run", "test/copy", "--image", "in.png", "--out", "out.png", "--quiet"]) == 0
    for path in (home / "images").rglob("*.png"):
        path.unlink()
    assert cli.main(["run", "--recipe", "out.png", "--out", "again.png"]) == 2
    assert "--image FILE" in capsys.readouterr().err
    assert cli.main(["run", "--recipe", "out.png", "--image", "in.png", "--out", "again.png"]) == 0


def test_follow_ups_run_on_what_was_made(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "test/paint", "--seed", "4", "--num-images-per-prompt", "2", "--then", "test/copy"]
    assert cli.main([*words, "--then", "test/copy", "--out", "end.png"]) == 0
    told = capsys.readouterr()
    assert told.out.split() == ["end-1.png", "end-2.png"]
    assert told.err.count("served by") == 5
    assert cli.main(["run", "test/paint", "--seed", "5", "--out", "alone.png"]) == 0
    assert pixels(Path("end-2.png")) == pixels(Path("alone.png"))
    # What each link worked on is there for a repeat, and nothing else.
    assert len(list(home.glob("images/*/*.png"))) == 4
    assert cli.main(["run", "--recipe", "end-2.png", "--out", "again.png"]) == 0
    assert pixels(Path("again.png")) == pixels(Path("end-2.png"))


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("test/copy:colour=red", "then.0.colour"),
        ("test/copy:mask_image", "write CAPABILITY:FIELD=VALUE"),
        ("test/copy:mask_image=none.png", "none.png"),
        ("test/paint", "takes no picture"),
    ],
)
def test_a_wrong_follow_up_is_a_sentence_and_exit_2(then: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "test/paint", "--seed", "4", "--then", then]) == 2
    assert words in capsys.readouterr().err


def test_a_follow_up_reads_json_and_text() -> None:
    told = read_then("upscale:scale=2,upscaler=lanczos,faces=[1,2],name=a,b")
    assert told == {"capability": "upscale", "scale": 2, "upscaler": "lanczos", "faces": [1, 2], "name": "a,b"}


def test_json_answers_the_whole_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "test/paint", "--seed", "2", "--json", "--out", "e.png"]) == 0
    job = json.loads(capsys.readouterr().out)
    assert job["status"] == "succeeded" and job["files"] == ["e.png"] and job["request"]["seed"] == 2


WRONG = {
    "capability": (["run", "none-such"], "none-such"),
    "nothing": (["run"], "what to run"),
    "value": (["run", "test/paint", "--num-inference-steps", "many"], "num_inference_steps"),
    "missing": (["run", "test/copy"], "image"),
    "file": (["run", "test/copy", "--image", "none.png"], "none.png"),
    "url": (["run", "test/copy", "--image", "http://127.0.0.1/a.png"], "not allowed"),
    "reference": (["run", "test/copy", "--image", "0" * 26], "no picture"),
    "not a picture": (["run", "test/copy", "--image", "text.png"], "no PNG"),
    "out": (["run", "test/paint", "--out", "a.gif"], ".png"),
    "out folder": (["run", "test/paint", "--out", "none/a.png"], "no folder"),
    "recipe": (["run", "--recipe", "text.png"], "no picture"),
    "no recipe": (["run", "--recipe", "plain.png"], "no recipe"),
    "no file": (["run", "--recipe", "none.png"], "none.png"),
    "refusal": (["run", "test/fail", "--way", "refusal"], "cannot be granted"),
    "memory": (["run", "test/fail", "--way", "memory"], "memory"),
    "model": (["models", "show", "none-such"], "no model of this name"),
    "not installed": (["models", "rm", "sdxl"], "sdxl"),
    "no model file": (["models", "add", "text.png"], "eis:"),
    "no server": (["jobs", "list", "--url", "http://127.0.0.1:9"], "No server answers"),
    "no address": (["jobs", "list", "--url", "ftp://x"], "--url"),
    "batch file": (["batch", "none.jsonl"], "none.jsonl"),
    "batch line": (["batch", "text.png"], "Line 1"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_a_sentence_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.png").write_text("no picture at all")
    Path("plain.png").write_bytes(picture())
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("eis: ") and said in told and "Traceback" not in told


SETTINGS = {
    "home": ("EIS_HOME", "/dev/null/x", ["serve", "--port", "1"]),
    "home of a run": ("EIS_HOME", "/dev/null/x", ["run", "test/paint"]),
    "catalog": ("EIS_CATALOG", "nope:X", ["serve", "--port", "1"]),
    "catalog's name": ("EIS_CATALOG", "app.core.catalog:NONE", ["run", "test/paint"]),
    "catalog without a name": ("EIS_CATALOG", "app.core.catalog", ["run"]),
    "catalog of other things": ("EIS_CATALOG", "sys:path", ["run", "test/paint"]),
    "database": ("EIS_DATABASE_URL", "garbage", ["serve", "--port", "1"]),
    "other database": ("EIS_DATABASE_URL", "postgresql://x/y", ["serve", "--port", "1"]),
    "database's folder": ("EIS_DATABASE_URL", "sqlite:////dev/null/x.sqlite", ["serve", "--port", "1"]),
}


@pytest.mark.parametrize(("name", "value", "words"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_wrong_setting_is_a_sentence_with_its_name_and_exit_2(
    name: str, value: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr("app.main.listen", lambda host, port: socket.socket())
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert f"eis: {name}: " in told and "Traceback" not in told


def test_a_job_store_that_is_none_is_a_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "jobs.sqlite").write_bytes(b"no database at all" * 100)
    monkeypatch.setattr("app.main.listen", lambda host, port: socket.socket())
    assert cli.main(["serve", "--port", "1"]) == 2
    assert "eis: EIS_HOME: the job store cannot be opened" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_passes_host_and_port_only_when_they_are_given_to_it() -> None:
    # `make test` is a make too: what it hands down would speak here.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def told(*words: str, **environment: str) -> str:
        command = ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "run", *words]
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**outside, **environment})
        return run.stdout.splitlines()[-1].strip()

    assert told(HOST="x86_64-conda-linux-gnu", PORT="1").endswith("eis serve")
    assert told("HOST=0.0.0.0", "PORT=80").endswith("eis serve --host 0.0.0.0 --port 80")


def test_flags_read_names_lists_and_null(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIS_CATALOG", "app.core.catalog:CATALOG")
    parser = argparse.ArgumentParser()
    words = ["inpaint", "--prompt", "a", "--lora", "one=0.5", "--lora", "two", "--scheduler", "euler A",
             "--padding-mask-crop", "null", "--no-vae-tiling", "--textual-inversion", "moody",
             "--negative-prompt", ""]  # fmt: skip
    cli_run.declare(parser, words)
    given = given_fields(parser.parse_args(words), next(one for one in PRODUCT if one.name == "inpaint").request)
    assert given == {
        "prompt": "a", "loras": [{"model": "one", "weight": "0.5"}, {"model": "two"}], "scheduler": "Euler a",
        "padding_mask_crop": None, "negative_prompt": None, "vae_tiling": False, "textual_inversions": ["moody"],
    }  # fmt: skip


def test_every_capability_has_a_flag_for_every_field(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EIS_CATALOG", "app.core.catalog:CATALOG")
    for capability in PRODUCT:
        with pytest.raises(SystemExit) as end:
            cli.main(["run", capability.name, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0 and capability.summary.split()[0] in text
        for name in capability.request.model_fields:
            assert f"--{name.replace('_', '-')}" in text


def test_batch_answers_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"capability": "test/paint", "seed": 1, "out": "first.png"},
        {"seed": 2},
        {"capability": "test/fail"},
        {"capability": "test/paint", "seed": "x"},
        {"capability": "test/paint", "out": "../evil.png"},
    ]
    Path("wishes.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    words = ["batch", "wishes.jsonl", "--capability", "test/paint", "--out-dir", "made", "--quiet"]
    assert cli.main(words) == 1
    told = capsys.readouterr()
    answers = [json.loads(line) for line in told.out.splitlines()]
    assert [answer["status"] for answer in answers] == ["succeeded", "succeeded", "failed", "failed", "failed"]
    assert answers[0]["files"] == ["made/first.png"] and pixels(Path("made/first.png")) == squares(1).tobytes()
    assert pixels(Path(answers[1]["files"][0])) == squares(2).tobytes()
    assert answers[2]["error"]["code"] == "invalid_request" and not list(tmp_path.rglob("evil*"))
    assert "2 of 5 lines" in told.err


@pytest.fixture
def server(tmp_path: Path) -> Running:
    with serving(tmp_path / "served", api_keys=("a key",)) as running:
        yield running


def test_jobs_of_a_running_server(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--url", server.address, "--key", "a key"]
    headers = {"x-api-key": "a key"}
    body = {"prompt": "long", "num_inference_steps": 100, "step_seconds": 0.05}
    running = server.client.post("/api/v1/test/paint?wait=0", json=body, headers=headers).json()["id"]
    assert cli.main(["jobs", "list", *where]) == 0
    assert running in (told := capsys.readouterr().out) and "1 of 1 jobs" in told and "long" in told
    assert cli.main(["jobs", "list", "--status", "failed", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 0
    assert cli.main(["jobs", "cancel", running, *where]) == 0
    deadline = time.monotonic() + 10
    status = ""
    while status != "cancelled":
        assert time.monotonic() < deadline
        capsys.readouterr()
        assert cli.main(["jobs", "show", running, *where]) == 0
        status = json.loads(capsys.readouterr().out)["status"]
    assert cli.main(["jobs", "retry", running, *where]) == 0
    assert "queued" in capsys.readouterr().out
    assert cli.main(["jobs", "cancel", running, *where]) == 0
    assert cli.main(["jobs", "show", "0" * 26, *where]) == 2 and "no such job" in capsys.readouterr().err
    assert cli.main(["jobs", "list", "--url", server.address]) == 2 and "key" in capsys.readouterr().err


def test_batches_of_a_running_server(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--url", server.address, "--key", "a key"]

    def said(*words: str, status: int = 0) -> str:
        assert cli.main(["batch", *words, *where]) == status
        told = capsys.readouterr()
        return told.out + told.err

    assert "is paused" in said("pause")
    Path("wishes.jsonl").write_text('{"seed": 1}\n\n{"capability": "test/paint", "seed": 2, "out": "b.png"}\n')
    batch = said("submit", "wishes.jsonl", "--capability", "test/paint", "--priority", "8").split()[0]
    found = json.loads(said("status", batch, "--json"))
    assert [(job["request"]["seed"], job["priority"]) for job in found["jobs"]] == [(1, 8), (2, 8)]
    assert "is paused, 0 running, 2 waiting" in (listed := said("list")) and batch in listed
    assert "2 jobs: 2 queued" in said("priority", batch, "9")
    assert "cancelled" in said("cancel", found["jobs"][0]["id"])
    assert len(said("status", batch).splitlines()) == 3
    assert "the queue moves" in said("resume")
    deadline = time.monotonic() + 20
    while "1 succeeded" not in said("status", batch):
        assert time.monotonic() < deadline
    assert "has ended already" in said("cancel", batch, status=2)
    assert "No job of the batch has failed" in said("retry", batch, status=2)
    Path("wrong.jsonl").write_text('{"seed": 1}\n{"seed": -1}\n')
    assert "Job 1: seed" in said("submit", "wrong.jsonl", "--capability", "test/paint", status=2)
    assert "Line 1 names no capability" in said("submit", "wrong.jsonl", status=2)
    assert "1 of 1 batches" in said("list")


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("* pocket") for line in lines) and any(line.startswith("  sdxl ") for line in lines)
    assert cli.main(["models", "list", "--installed", "--json"]) == 0
    installed = [row["id"] for row in json.loads(capsys.readouterr().out)]
    without_weights = {"grabcut", "opencv-inpaint", "lanczos"}
    assert installed[0] == "pocket" and without_weights <= set(installed)
    assert all(name.startswith("pocket-") for name in installed[1:] if name not in without_weights), installed
    assert cli.main(["models", "show", "sdxl"]) == 0
    assert "eis models pull sdxl" in (told := capsys.readouterr().out) and "https://" in told
    assert cli.main(["models", "pull", "pocket"]) == 0 and "already" in capsys.readouterr().out


def test_a_parts_licence_and_a_files_own_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["models", "pull", "pulid"]) == 2
    said = capsys.readouterr().err
    assert "insightface, non-commercial research only" in said and "(no commercial use)" in said
    assert cli.main(["models", "show", "pulid"]) == 0
    assert "eis models pull pulid" in capsys.readouterr().out
    assert cli.main(["models", "show", "facexlib"]) == 0
    assert "releases/download" in capsys.readouterr().out
    assert cli.main(["models", "show", "pocket-pulid"]) == 0
    shown = capsys.readouterr().out
    assert "eis models pull" not in shown, "what comes with the service is not pulled"
    shapes = {"image_proj.proj.0.weight": (1024, 512), "ip_adapter.1.to_k_ip.weight": (320, 768)}
    file = sparse(tmp_path / "faceid.safetensors", shapes)
    assert cli.main(["models", "add", str(file)]) == 2
    assert "--accept-licence" in capsys.readouterr().err
    assert cli.main(["models", "add", str(file), "--accept-licence"]) == 0
    assert "faceid: ip-adapter, sd15" in capsys.readouterr().out


def test_a_licence_is_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["models", "pull", "sdxl"]) == 2
    assert "--accept-licence" in capsys.readouterr().err

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert cli.main(["models", "pull", "sdxl"]) == 2
    assert "nothing was fetched" in capsys.readouterr().err


def test_the_doctor_finds_what_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor, "devices", lambda: ("ok", "devices", "2 CPU threads"))
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "pocket" in told and "torch" in told and str(Path.cwd().parent / "home") in told
    monkeypatch.setenv("EIS_MIN_FREE_BYTES", str(2**60))
    assert cli.main(["doctor"]) == 1
    assert "wrong  home" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--help"], ["serve", "--help"], ["run", "--help"], ["run", "text-to-image", "--help"], ["batch", "--help"],
     ["jobs", "--help"], ["models", "pull", "--help"], ["pocket", "--help"], ["doctor", "--help"], ["--version"]],
    ids=" ".join,
)  # fmt: skip
def test_help_imports_nothing_heavy(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIS_CATALOG", "app.core.catalog:CATALOG")
    code = (
        "import sys; from app import cli\n"
        "try: sys.exit(cli.main(sys.argv[1:]))\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"loaded = [name for name in {(*HEAVY, 'sqlalchemy', 'fastapi')!r} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    answer = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_progress_on_a_terminal_and_in_a_log() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, bar in ((Terminal(), True), (io.StringIO(), False)):
        line = ProgressLine("paint", stream=stream)
        for step in range(1, 9):
            line.show(JobEvent("x", "step", {"step": step, "steps": 8, "seconds_left": 8.0 - step}))
        line.close()
        text = stream.getvalue()
        assert ("[" + "#" * 28 + "]" in text) == bar
        assert text.endswith("\x1b[2K") if bar else text.count("\n") == 4
