"""Models over HTTP: list, pull in the background, upload, remove."""

import json
import math
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.models import installing
from app.models.catalog import CATALOG
from app.models.download import Patience
from app.models.installed import Installed, InstalledFile
from app.models.installing import write_record
from tests.api.serving import PATIENCE_SECONDS, Running, serving
from tests.api.test_start import process
from tests.library.conftest import hub, library_at  # noqa: F401 - fixtures
from tests.library.hub_server import Fault, HubServer, wait_for


@pytest.fixture
def own_server(tmp_path) -> Iterator[Running]:
    with serving(tmp_path) as running:
        yield running


def lora_file(rank: int = 4) -> bytes:
    """A tiny LoRA for SDXL by its key names; the library looks at the header alone."""
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora"
    return safetensors({f"{name}_A.weight": [rank, 2048], f"{name}_B.weight": [640, rank]})


def safetensors(tensors: dict[str, list[int]]) -> bytes:
    """A file of these names and shapes, all zero."""
    header: dict[str, object] = {}
    offset = 0
    for key, shape in tensors.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * offset


def test_every_model_is_told_without_a_path(server: Running) -> None:
    answer = server.client.get("/api/v1/models")
    rows = {row["id"]: row for row in answer.json()["models"]}
    assert {"pocket", "sd15", "sdxl"} <= set(rows) and str(server.home) not in answer.text
    assert rows["pocket"]["installed"] and rows["pocket"]["embedded"] and not rows["sdxl"]["installed"]
    assert rows["sdxl"]["licence"]["url"].startswith("https://") and rows["sdxl"]["bytes"] > 1e9
    assert server.client.get("/api/v1/models/sdxl").json() == rows["sdxl"]
    kinds = {row["kind"] for row in server.client.get("/api/v1/models?kind=lora").json()["models"]}
    assert kinds == {"lora"}


def test_a_licence_that_limits_use_is_asked_for(server: Running) -> None:
    ids = [row["id"] for row in server.client.get("/api/v1/models").json()["models"] if row["licence"]["ask"]]
    for id in ids[:1]:
        answer = server.client.post(f"/api/v1/models/{id}/pull")
        assert answer.status_code == 409 and "accept_licence" in answer.json()["error"]["message"]
        assert server.client.get(f"/api/v1/models/{id}").json()["pull"] is None
    assert ids, "no row's licence limits use"


def test_a_licence_of_a_part_is_asked_for_as_well(server: Running) -> None:
    row = server.client.get("/api/v1/models/pulid").json()
    assert not row["licence"]["ask"] and row["pullable"]
    asked = row["licences_to_accept"]
    assert [(licence["commercial"], licence["ask"]) for licence in asked] == [(False, True)]
    answer = server.client.post("/api/v1/models/pulid/pull")
    error = answer.json()["error"]
    assert answer.status_code == 409 and error["details"]["licences"] == asked
    assert "non-commercial research only" in error["message"] and "accept_licence=true" in error["message"]
    pocket = server.client.get("/api/v1/models/pocket").json()
    assert pocket["licences_to_accept"] == [] and not pocket["pullable"]
    assert server.client.get("/api/v1/models/facexlib").json()["pullable"], "it lies in no repository"


def test_an_upload_under_a_limiting_licence_is_taken_once_it_is_accepted(own_server: Running) -> None:
    adapter = safetensors(
        {
            "image_proj.proj.0.weight": [1024, 512],
            "image_proj.norm.weight": [768],
            "ip_adapter.1.to_k_ip.weight": [320, 768],
        }
    )
    client, files = own_server.client, {"file": ("faceid.safetensors", adapter)}
    answer = client.post("/api/v1/models", files=files)
    assert answer.status_code == 409 and "FaceID" in answer.json()["error"]["details"]["licences"][0]["name"]
    assert client.get("/api/v1/models/faceid").status_code == 404
    for said, status in (("perhaps", 422), ("false", 409)):
        assert client.post("/api/v1/models", files=files, data={"accept_licence": said}).status_code == status
    answer = client.post("/api/v1/models", files=files, data={"accept_licence": "true"})
    assert answer.status_code == 201, answer.text
    row = answer.json()
    assert (row["kind"], row["family"], row["parts"]) == ("ip-adapter", "sd15", ["buffalo_l"])
    assert row["licence"]["commercial"] is False and not row["installed"], "its face stack is missing"
    assert row["pullable"] and "insightface" in row["licences_to_accept"][0]["name"], "which a pull brings"


def pull_state(server: Running, id: str) -> dict:
    return server.client.get(f"/api/v1/models/{id}").json()["pull"]


def ended_pull(server: Running, id: str) -> dict:
    """The state of a pull at its end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := pull_state(server, id))["status"] in {"waiting", "running"}:
        assert time.monotonic() < deadline, state
        time.sleep(0.01)
    return state


@pytest.fixture
def pulling(own_server: Running, hub: HubServer, library_at) -> Running:  # noqa: F811
    """A server whose models come from the small hub."""
    own_server.service.models = library_at(own_server.home)
    return own_server


def test_a_pull_runs_in_the_background_and_tells_how_far(pulling: Running, hub: HubServer) -> None:  # noqa: F811
    name = "diffusion_pytorch_model.safetensors"
    hub.faults[name] = [Fault(after=100_000, ending="stall")]
    answer = pulling.client.post("/api/v1/models/vae/pull")
    assert answer.status_code == 202 and answer.headers["location"] == "/api/v1/models/vae"
    deadline = time.monotonic() + 20
    while not (state := pull_state(pulling, "vae"))["bytes_done"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.01)
    assert state["status"] == "running" and 0 < state["bytes_done"] < state["bytes_total"]
    again = pulling.client.post("/api/v1/models/vae/pull")
    assert again.status_code == 409 and again.json()["error"]["code"] == "conflict"
    ended = ended_pull(pulling, "vae")
    assert ended["status"] == "succeeded" and ended["error"] is None
    row = pulling.client.get("/api/v1/models/vae").json()
    assert row["installed"] and row["bytes_on_disk"] >= ended["bytes_total"]
    assert pulling.client.delete("/api/v1/models/vae").status_code == 204
    assert not pulling.client.get("/api/v1/models/vae").json()["installed"]


def test_a_pull_that_fails_says_why_and_may_be_tried_again(pulling: Running, hub: HubServer) -> None:  # noqa: F811
    name = "diffusion_pytorch_model.safetensors"
    hub.faults[name] = [Fault(status=500)] * 10
    pulling.client.post("/api/v1/models/vae/pull")
    ended = ended_pull(pulling, "vae")
    assert ended["status"] == "failed" and ended["error"]["code"] == "transfer_failed"
    assert "127.0.0.1" not in ended["error"]["message"]
    hub.faults.clear()
    assert pulling.client.post("/api/v1/models/vae/pull").status_code == 202
    assert ended_pull(pulling, "vae")["status"] == "succeeded"


def test_an_accepted_licence_lets_the_pull_begin(pulling: Running, hub: HubServer) -> None:  # noqa: F811
    assert pulling.client.post("/api/v1/models/painter/pull").status_code == 409
    assert pulling.client.post("/api/v1/models/painter/pull?accept_licence=true").status_code == 202
    assert ended_pull(pulling, "painter")["status"] == "succeeded"


WEIGHTS = "diffusion_pytorch_model.safetensors"
LONG = Patience(attempts=6, first_wait=30.0, read_seconds=30.0)


@pytest.mark.parametrize("fault", [Fault(after=100_000, ending="stall"), Fault(status=503)], ids=["stall", "wait"])
def test_a_pull_is_cancelled_at_once_and_goes_on_later(
    own_server: Running,
    hub: HubServer,  # noqa: F811
    library_at,  # noqa: F811
    fault: Fault,
) -> None:
    own_server.service.models = library_at(own_server.home, patience=LONG)
    hub.faults[WEIGHTS] = [fault]
    client = own_server.client
    assert client.delete("/api/v1/models/vae/pull").status_code == 409
    assert client.delete("/api/v1/models/none/pull").status_code == 404
    client.post("/api/v1/models/vae/pull")
    wait_for(lambda: not hub.faults[WEIGHTS])
    time.sleep(0.2)
    began = time.monotonic()
    assert client.delete("/api/v1/models/vae/pull").json()["pull"]["status"] in {"cancelling", "cancelled"}
    wait_for(lambda: pull_state(own_server, "vae")["status"] == "cancelled", 10)
    assert time.monotonic() - began < 10 and not client.get("/api/v1/models/vae").json()["installed"]
    assert client.post("/api/v1/models/vae/pull").status_code == 202
    assert ended_pull(own_server, "vae")["status"] == "succeeded"
    if fault.after:
        assert hub.served(WEIGHTS)[-1].headers["range"] == "bytes=100000-"


def test_a_pull_that_waits_for_its_turn_is_cancelled_too(pulling: Running, hub: HubServer) -> None:  # noqa: F811
    pulling.service.models._hub._patience = LONG
    hub.faults["model_index.json"] = [Fault(after=1, ending="stall")] * 2
    for id in ("base", "painter", "vae"):
        assert pulling.client.post(f"/api/v1/models/{id}/pull?accept_licence=true").status_code == 202
        wait_for(lambda id=id: id == "vae" or pull_state(pulling, id)["bytes_done"] > 0)
    assert pull_state(pulling, "vae")["status"] == "waiting"
    cancelled = pulling.client.delete("/api/v1/models/vae/pull").json()
    assert cancelled["pull"]["status"] == "cancelled"
    assert pulling.client.delete("/api/v1/models/vae/pull").status_code == 409


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """A hub that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("place", ["answer", "body"])
def test_sigterm_ends_the_process_although_a_pull_hangs(
    tmp_path: Path,
    hub: HubServer,  # noqa: F811
    silent_hub: str,
    place: str,
) -> None:
    row = next(row for row in CATALOG if row.id == "sd15")
    hub.put(row.repo, {name.replace("*", "vocab.json"): b"{}" for name in row.files}, commit=row.revision)
    hub.faults["model_index.json"] = [Fault(after=1, ending="stall")]
    host = silent_hub if place == "answer" else hub.url.removeprefix("http://")
    settings = {"EIS_HUB_URL": f"http://{host}", "EIS_TRUSTED_HOSTS": host, "EIS_DRAIN_SECONDS": "5"}
    with process(tmp_path, **settings) as server:
        answer = httpx.post(f"{server.address}/api/v1/models/sd15/pull?accept_licence=true", timeout=30)
        assert answer.status_code == 202, answer.text
        if place == "body":
            wait_for(lambda: bool(hub.served("model_index.json")), 30)
        time.sleep(1)
        assert httpx.get(f"{server.address}/api/v1/models/sd15").json()["pull"]["status"] == "running"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0


def test_a_file_is_uploaded_listed_and_removed(own_server: Running) -> None:
    client = own_server.client
    files = {"file": ("My Style.safetensors", lora_file())}
    answer = client.post("/api/v1/models", files=files, data={"title": "My style"})
    assert answer.status_code == 201, answer.text
    row = answer.json()
    assert (row["id"], row["kind"], row["family"], row["title"]) == ("my-style", "lora", "sdxl", "My style")
    assert row["installed"] and client.get(answer.headers["location"]).json()["sha256"] == row["sha256"]
    assert client.delete("/api/v1/models/my-style").status_code == 204
    assert client.get("/api/v1/models/my-style").status_code == 404


@pytest.mark.parametrize(("name", "family"), [("My SDXL VAE, fp16", "sdxl"), ("Füchse √ä v2", "sd15")])
def test_the_files_name_gives_the_title_and_tells_a_vaes_family(own_server: Running, name: str, family: str) -> None:
    """The two families' autoencoders have the same names and shapes."""
    vae = safetensors({"encoder.conv_in.weight": [128, 3, 3, 3], "decoder.conv_out.weight": [3, 128, 3, 3]})
    answer = own_server.client.post("/api/v1/models", files={"file": (f"{name}.safetensors", vae)})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["kind"], answer.json()["family"], answer.json()["title"]) == ("vae", family, name)
    assert "upload" not in answer.json()["id"]


@pytest.mark.parametrize("data", [{"title": "x" * 201}, {"licence": "x" * 201}, {"kind": "k" * 5000}, {"kind": "vae"}])
def test_what_is_said_of_an_upload_is_checked_and_not_echoed(own_server: Running, data: dict[str, str]) -> None:
    answer = own_server.client.post("/api/v1/models", files={"file": ("a.safetensors", lora_file())}, data=data)
    assert answer.status_code == 422 and len(answer.text) < 300 and "xxx" not in answer.text
    assert "lora" in answer.text or "200 characters" in answer.text
    fits = {name: value[:200] for name, value in data.items() if name != "kind"}
    answer = own_server.client.post("/api/v1/models", files={"file": ("a.safetensors", lora_file())}, data=fits)
    assert answer.status_code == 201, answer.text


def test_a_title_with_a_nul_is_refused(own_server: Running) -> None:
    files = {"file": ("a.safetensors", lora_file())}
    assert own_server.client.post("/api/v1/models", files=files, data={"title": "a\0b"}).status_code == 400


@pytest.mark.parametrize("id", ["../../evil", "a/b", "UPPER", "", "x" * 200, ".hidden"])
def test_an_uploads_id_cannot_leave_the_folder(own_server: Running, id: str) -> None:
    answer = own_server.client.post("/api/v1/models", files={"file": ("a.safetensors", lora_file())}, data={"id": id})
    assert answer.status_code in {201, 422}
    assert (answer.status_code == 201) == (id == "")
    folders = {path.name for path in (own_server.home / "models").glob("[!.]*") if path.is_dir()}
    assert folders <= {"a"} and not list(own_server.home.parent.glob("evil*"))


MIB = 2**20
BOUNDARY = b"f0rm"


def form(data: bytes, name: str = "Big.safetensors") -> bytes:
    """The body of an upload, as a browser writes it."""
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return b"--" + BOUNDARY + b"\r\n" + head + data + b"\r\n--" + BOUNDARY + b"--\r\n"


def begin(server: Running, length: int, *headers: str) -> socket.socket:
    """A connection on which an upload of this length has been announced."""
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    kind = f"multipart/form-data; boundary={BOUNDARY.decode()}"
    lines = ["POST /api/v1/models HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {length}"]
    client.sendall("\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode())
    return client


def whole_answer(client: socket.socket) -> bytes:
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Running]:
    """A server that is impatient and takes little, except models."""
    with serving(tmp_path, max_body_bytes=MIB, max_model_bytes=4 * MIB, receive_seconds=0.8) as running:
        yield running


def test_models_may_be_larger_than_other_bodies(narrow: Running) -> None:
    client = narrow.client
    answer = client.post("/api/v1/models", files={"file": ("big.safetensors", lora_file(400))})
    assert answer.status_code == 201 and answer.json()["bytes_on_disk"] > 2 * MIB, answer.text
    large = lora_file(1000)
    for content in (large, iter([large[:MIB], large[MIB:]])):
        answer = client.post("/api/v1/models", content=content, headers={"content-type": "multipart/form-data"})
        assert answer.status_code in {400, 413}
    answer = client.post("/api/v1/models", files={"file": ("larger.safetensors", large)})
    assert answer.status_code == 413 and answer.json()["error"]["details"]["limit"] == 4 * MIB
    for path in ("/api/v1/images", "/api/v1/text-to-image", "/api/v1/models/"):
        answer = client.post(path, content=b"x" * 2 * MIB, headers={"content-type": "image/png"})
        assert answer.status_code == 413 and answer.json()["error"]["details"]["limit"] == MIB


def test_an_upload_is_written_once_where_the_models_are(
    narrow: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    body = form(lora_file(400))
    incoming = narrow.home / "models" / ".incoming"

    def arrived() -> int:
        return sum(size_of(path) for path in incoming.rglob("*.safetensors"))

    def size_of(path: Path) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError:  # what a killed process left is cleared meanwhile
            return 0

    left = incoming / "left"
    left.mkdir(parents=True)
    (left / "old.safetensors").write_bytes(b"of a killed process")
    with begin(narrow, len(body)) as client:
        client.sendall(body[: 3 * MIB // 2])
        wait_for(lambda: arrived() >= MIB // 2)
        assert not left.exists()
    wait_for(lambda: not list(incoming.iterdir()))
    with begin(narrow, len(body)) as client:
        client.sendall(body)
        assert whole_answer(client).startswith(b"HTTP/1.1 201")
    assert not list(incoming.iterdir())
    stored = narrow.home / "models" / "big" / "files" / "weights.safetensors"
    assert stored.read_bytes() == lora_file(400) and stored.stat().st_nlink == 1


@pytest.mark.alone
def test_an_upload_may_take_its_time_and_no_more(tmp_path: Path) -> None:
    """Both longer than the deadline: one at three times the lowest rate, one far below it."""
    body, deadline = form(lora_file(120)), 2.0
    with serving(tmp_path, max_body_bytes=MIB, max_model_bytes=4 * MIB, receive_seconds=deadline) as patient:
        began = time.monotonic()
        with begin(patient, len(body)) as client:
            for number, at in enumerate(range(0, len(body), 32 * 1024)):
                # By the clock, so that a machine which holds this process up for a moment does not lower the rate.
                time.sleep(max(0.0, began + 0.15 * number - time.monotonic()))
                client.sendall(body[at : at + 32 * 1024])
            assert whole_answer(client).startswith(b"HTTP/1.1 201")
            assert time.monotonic() - began > 1.3 * deadline
        began = time.monotonic()
        with begin(patient, len(body)) as client:
            client.settimeout(0.05)
            received = b""
            for at in range(400):
                client.sendall(body[at : at + 1])
                with suppress(TimeoutError):
                    received = client.recv(65536)
                    break
            assert received.startswith(b"HTTP/1.1 408") and time.monotonic() - began < 4 * deadline


def test_a_disk_without_room_is_said_before_the_upload_is_read(
    narrow: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "RESERVED_BYTES", 2**62)
    with begin(narrow, 3 * MIB, "Expect: 100-continue") as client:
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503") and b"storage_full" in answer + client.recv(65536)


def test_a_disk_that_fills_up_under_an_upload_is_said(narrow: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "BYTES_BETWEEN_CHECKS", MIB)
    body = form(lora_file(400))
    with begin(narrow, len(body)) as client:
        client.sendall(body[: MIB // 2])
        wait_for(lambda: any((narrow.home / "models" / ".incoming").glob("*/*")))
        monkeypatch.setattr(installing, "RESERVED_BYTES", 2**62)
        client.sendall(body[MIB // 2 : -10])
        answer = whole_answer(client)
        assert answer.startswith(b"HTTP/1.1 503") and b"storage_full" in answer
    wait_for(lambda: not list((narrow.home / "models" / ".incoming").iterdir()))


def install(server: Running, id: str) -> None:
    """Let a row of the catalog stand as installed; the runtime of these tests opens no weights."""
    row = next(row for row in CATALOG if row.id == id)
    folder = server.home / "models" / id
    folder.mkdir(parents=True)
    write_record(folder, Installed(row, "catalog", "files", {"weights.safetensors": InstalledFile(1, "0" * 64)}))


@pytest.mark.parametrize(("base", "lora"), [("pocket", "lcm-lora-sdxl"), ("sd15", "lcm-lora-sd15")])
def test_a_distilled_lora_says_how_many_steps_and_the_base_what_size(own_server: Running, base: str, lora: str) -> None:
    for id in {base, lora} - {"pocket"}:
        install(own_server, id)
    own = own_server.client.get(f"/api/v1/models/{base}").json()["recommended"]
    wish = {"prompt": "a car", "model": base, "loras": [{"model": lora}]}
    request = own_server.client.post("/api/v1/text-to-image?wait=0", json=wish).json()["request"]
    assert (request["num_inference_steps"], request["guidance_scale"], request["scheduler"]) == (6, 1.5, "LCM")
    assert (request["width"], request["height"]) == (own["width"], own["height"])
    given = {"num_inference_steps": 9, "guidance_scale": 0.5, "scheduler": "Euler"}
    request = own_server.client.post("/api/v1/text-to-image?wait=0", json=wish | given).json()["request"]
    assert given.items() <= request.items()


def test_the_embedded_model_stays(server: Running) -> None:
    answer = server.client.delete("/api/v1/models/pocket")
    assert 400 <= answer.status_code < 500
    assert server.client.get("/api/v1/models/pocket").json()["installed"]
