"""Pulling from a hub: what arrives, what is checked, and what faults on the way do."""

import hashlib
import json
import multiprocessing
import random
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import Conflict, InvalidRequest, NotFound, StorageFull, TransferFailed, UrlNotAllowed, WeightsMissing
from app.models import installing
from app.models.download import Patience
from app.models.library import ModelLibrary
from tests.library.conftest import CATALOG, WEIGHTS, weights
from tests.library.hub_server import Fault, HubServer, wait_for

Maker = Callable[..., ModelLibrary]


def test_a_pull_brings_the_named_files_and_the_parts_and_nothing_else(
    hub: HubServer, library_at: Maker, tmp_path: Path
):
    library = library_at(tmp_path)
    with pytest.raises(WeightsMissing, match="eis models pull base"):
        library.require("base")
    heard: list[tuple[int, int]] = []
    row = library.pull("base", progress=lambda done, total: heard.append((done, total)))
    assert row.installed and row.path == tmp_path / "models" / "base" / "files"
    found = sorted(path.relative_to(row.path).as_posix() for path in row.path.rglob("*") if path.is_file())
    assert found == ["model_index.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", WEIGHTS]
    assert (row.path / WEIGHTS).read_bytes() == hub.repos["maker/base"][WEIGHTS]
    assert row.sha256 == hashlib.sha256(hub.repos["maker/base"][WEIGHTS]).hexdigest()
    assert library.get("vae").installed
    counts = [done for done, _ in heard]
    total = heard[-1][1]
    assert counts == sorted(counts) and counts[-1] == total
    assert total == row.bytes_on_disk + library.get("vae").bytes_on_disk
    record = json.loads((tmp_path / "models" / "base" / "model.json").read_text())
    assert record["commit"] == hub.commits["maker/base"]
    assert library.verify("base") == []


def test_a_second_pull_does_nothing_and_everything_installed_works_offline(hub: HubServer, library_at: Maker, tmp_path):
    library = library_at(tmp_path)
    library.pull("base")
    asked = len(hub.seen)
    library.pull("base")
    assert len(hub.seen) == asked
    hub.close()
    offline = library_at(tmp_path)
    assert offline.require("base", task="inpaint").installed
    assert offline.choose(["text-to-image"]).spec.id == "base"
    assert offline.pull("base").installed
    with pytest.raises(TransferFailed):
        offline.pull("painter", accept_licence=True)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_passing_faults_of_the_hub_are_retried(hub: HubServer, library_at: Maker, tmp_path: Path, status: int):
    hub.faults["api"] = [Fault(status=status)]
    hub.faults["config.json"] = [Fault(status=status)]
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(status=status), Fault(status=status)]
    assert library_at(tmp_path).pull("vae").installed


def test_retry_after_is_heeded(hub: HubServer, library_at: Maker, tmp_path: Path):
    patience = Patience(attempts=3, first_wait=0.001, longest_wait=2.0)
    hub.faults["config.json"] = [Fault(status=429, headers={"Retry-After": "1"})]
    begun = time.monotonic()
    library_at(tmp_path, patience=patience).pull("vae")
    assert 1.0 <= time.monotonic() - begun < 15


def test_lasting_faults_end_in_one_sentence_and_nothing_is_installed(hub: HubServer, library_at: Maker, tmp_path: Path):
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(status=500)] * 3
    library = library_at(tmp_path)
    with pytest.raises(TransferFailed, match=r"after 3 attempts.*status 500"):
        library.pull("vae")
    assert not library.get("vae").installed
    assert len([seen for seen in hub.seen if seen.server == "cdn"]) == 3
    assert library.pull("vae").installed


def test_a_broken_connection_is_resumed_where_it_broke(hub: HubServer, library_at: Maker, tmp_path: Path):
    whole = hub.repos["maker/vae"]["diffusion_pytorch_model.safetensors"]
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=100_000), Fault(after=50_000)]
    row = library_at(tmp_path).pull("vae")
    assert (row.path / "diffusion_pytorch_model.safetensors").read_bytes() == whole
    served = hub.served("diffusion_pytorch_model.safetensors")
    assert [seen.headers.get("range") for seen in served] == [None, "bytes=100000-", "bytes=150000-"]
    assert sum(seen.sent for seen in served) == len(whole)


def test_a_stall_is_noticed_and_the_rest_is_fetched(hub: HubServer, library_at: Maker, tmp_path: Path):
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=80_000, ending="stall")]
    begun = time.monotonic()
    row = library_at(tmp_path).pull("vae")
    assert row.installed and 1.4 < time.monotonic() - begun < 15
    served = hub.served("diffusion_pytorch_model.safetensors")
    assert served[1].headers["range"] == "bytes=80000-"


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_bad_line_does_the_bytes_are_right(hub: HubServer, library_at: Maker, tmp_path: Path, seed: int):
    chance = random.Random(seed)
    for name in ("model_index.json", "unet/config.json", WEIGHTS, "config.json", "diffusion_pytorch_model.safetensors"):
        hub.faults[name] = [
            chance.choice(
                [Fault(status=chance.choice([429, 500, 502, 503, 504])), Fault(after=chance.randrange(90_000))]
            )
            for _ in range(chance.randrange(6))
        ]
    hub.ignore_range = seed == 4
    library = library_at(tmp_path, patience=Patience(attempts=8, first_wait=0.001, longest_wait=0.01))
    library.pull("base")
    for model, repo in (("base", "maker/base"), ("vae", "maker/vae")):
        for name, data in ((name, hub.repos[repo][name]) for name in library._installed.get(model).files):
            assert (library.require(model).path / name).read_bytes() == data
    assert library.verify("base") == library.verify("vae") == []


def test_what_arrived_is_kept_for_the_next_process(hub: HubServer, library_at: Maker, tmp_path: Path):
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 120_000:
            raise Stopped

    with pytest.raises(Stopped):
        library_at(tmp_path).pull("vae", progress=stop)
    first = sum(seen.sent for seen in hub.served("diffusion_pytorch_model.safetensors"))
    assert not library_at(tmp_path).get("vae").installed
    row = library_at(tmp_path).pull("vae")
    assert row.installed
    again = hub.served("diffusion_pytorch_model.safetensors")[-1]
    start = int(again.headers["range"].removeprefix("bytes=").rstrip("-"))
    whole = len(hub.repos["maker/vae"]["diffusion_pytorch_model.safetensors"])
    assert 100_000 < start <= first
    assert again.sent == whole - start
    assert len(hub.served("config.json")) == 1, "a finished file was fetched twice"


def test_a_hub_that_ignores_ranges_still_gives_the_right_file(hub: HubServer, library_at: Maker, tmp_path: Path):
    hub.ignore_range = True
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=100_000)]
    row = library_at(tmp_path).pull("vae")
    expected = hub.repos["maker/vae"]["diffusion_pytorch_model.safetensors"]
    assert (row.path / "diffusion_pytorch_model.safetensors").read_bytes() == expected
    assert [seen.status for seen in hub.served("diffusion_pytorch_model.safetensors")] == [200, 200]


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json"])
def test_a_truncated_file_never_becomes_a_model(hub: HubServer, library_at: Maker, tmp_path: Path, name: str):
    """The hub's own copy ends early: every answer is a whole one for fewer bytes than were stated."""
    library = library_at(tmp_path)
    describe = hub._describe
    stated = json.loads(json.dumps(describe("maker/vae")))
    hub.repos["maker/vae"][name] = hub.repos["maker/vae"][name][:-1]
    hub._describe = lambda repo: stated  # type: ignore[method-assign]
    with pytest.raises(TransferFailed):
        library.pull("vae")
    assert not library.get("vae").installed


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json"])
def test_a_wrong_hash_is_reported_and_the_file_deleted(hub: HubServer, library_at: Maker, tmp_path: Path, name: str):
    library = library_at(tmp_path)
    right = hub.repos["maker/vae"][name]
    stated = hub._describe("maker/vae")
    describe = hub._describe
    hub._describe = lambda repo: stated  # type: ignore[method-assign]
    hub.repos["maker/vae"][name] = bytes(byte ^ 1 for byte in right[:10]) + right[10:]
    with pytest.raises(TransferFailed, match="another hash"):
        library.pull("vae")
    assert not library.get("vae").installed
    assert not [path for path in (tmp_path / "models").rglob("*") if path.name.startswith(name)]
    hub._describe = describe  # type: ignore[method-assign]
    hub.repos["maker/vae"][name] = right
    assert (library.pull("vae").path / name).read_bytes() == right


def test_the_token_goes_to_the_hub_and_not_to_its_cdn(hub: HubServer, library_at: Maker, tmp_path: Path):
    hub.gated["maker/vae"] = "hf_secret"
    with pytest.raises(InvalidRequest, match="EIS_HUB_TOKEN"):
        library_at(tmp_path).pull("vae")
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=100_000)]
    library_at(tmp_path, hub_token="hf_secret").pull("vae")
    by_server = {"hub": set(), "cdn": set()}
    for seen in hub.seen[1:]:
        by_server[seen.server].add(seen.headers.get("authorization"))
    assert by_server == {"hub": {"Bearer hf_secret"}, "cdn": {None}}
    resumed = hub.served("diffusion_pytorch_model.safetensors")[-1]
    asked_again = [seen for seen in hub.seen if seen.server == "hub" and "range" in seen.headers]
    assert resumed.headers["range"] == "bytes=100000-"
    assert [seen.headers["authorization"] for seen in asked_again] == ["Bearer hf_secret"], (
        "the token is kept on resume"
    )


def test_the_token_is_in_no_file(hub: HubServer, library_at: Maker, tmp_path: Path):
    library_at(tmp_path, hub_token="hf_secret").pull("vae")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_a_limiting_licence_is_asked_before_anything_is_fetched(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    with pytest.raises(Conflict, match=r"OpenRAIL \(https://example.org/openrail\)") as caught:
        library.pull("fast")
    asked = {"name": "OpenRAIL", "url": "https://example.org/openrail", "commercial": True, "ask": True}
    assert caught.value.details["licences"] == [asked]
    assert hub.seen == []
    row = library.pull("fast", accept_licence=True)
    assert row.path == tmp_path / "models" / "fast" / "files" / "fast_unet.safetensors" and row.path.is_file()
    assert library.get("base").installed and library.get("vae").installed


def test_other_bytes_than_the_catalog_knows_are_refused_before_they_are_fetched(hub, library_at: Maker, tmp_path: Path):
    import dataclasses

    vae = CATALOG[-1]
    known = {"diffusion_pytorch_model.safetensors": "0" * 64}
    library = library_at(tmp_path, catalog=(*CATALOG[:-1], dataclasses.replace(vae, sha256=known)))
    with pytest.raises(TransferFailed, match="other bytes"):
        library.pull("vae")
    assert not [seen for seen in hub.seen if seen.server == "cdn"]


def without_hashes(hub: HubServer, *, lfs: bool = True) -> None:
    """Let the hub state sizes alone, for LFS files as some mirrors do, or for every file as a plain one does."""
    describe = hub._describe

    def silent(repo: str) -> dict:
        described = json.loads(json.dumps(describe(repo)))
        for entry in described["siblings"]:
            del entry["blobId"]
            if entry.pop("lfs", None) and lfs:
                entry["lfs"] = {"size": entry["size"]}
        return described

    hub._describe = silent  # type: ignore[method-assign]


@pytest.mark.parametrize("lfs", [True, False])
def test_a_known_hash_holds_where_the_hub_states_none(hub: HubServer, library_at: Maker, tmp_path: Path, lfs: bool):
    import dataclasses

    without_hashes(hub, lfs=lfs)
    name = "diffusion_pytorch_model.safetensors"
    right = hub.repos["maker/vae"][name]
    known = {name: hashlib.sha256(right).hexdigest()}
    library = library_at(tmp_path, catalog=(*CATALOG[:-1], dataclasses.replace(CATALOG[-1], sha256=known)))
    hub.repos["maker/vae"][name] = weights(9)
    with pytest.raises(TransferFailed, match="other bytes than are known"):
        library.pull("vae")
    assert not library.get("vae").installed
    assert not [path for path in (tmp_path / "models").rglob("*") if path.name.startswith(name)]
    hub.repos["maker/vae"][name] = right
    assert library.pull("vae").sha256 == known[name]


def test_a_file_that_an_earlier_attempt_finished_is_held_against_the_known_hash_too(hub, library_at: Maker, tmp_path):
    library = library_at(tmp_path)
    library.pull("vae")
    library.remove("vae")
    without_hashes(hub)
    left = tmp_path / "models" / ".staging" / "vae" / hub.commits["maker/vae"] / "files"
    left.mkdir(parents=True)
    (left / "config.json").write_bytes(b"[]")
    with pytest.raises(TransferFailed, match="other bytes than are known"):
        library.pull("vae")
    assert library.pull("vae").installed


@pytest.mark.parametrize("lfs", [True, False])
def test_weights_without_any_hash_are_not_pulled(hub: HubServer, library_at: Maker, tmp_path: Path, lfs: bool):
    without_hashes(hub, lfs=lfs)
    with pytest.raises(TransferFailed, match="no hash"):
        library_at(tmp_path).pull("vae")
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]


def test_a_later_pull_brings_the_commit_of_the_first(hub: HubServer, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    library.pull("vae")
    first = hub.commits["maker/vae"]
    library.remove("vae")
    hub.put("maker/vae", {"config.json": b"{}", "diffusion_pytorch_model.safetensors": weights(9)}, commit=first)
    with pytest.raises(TransferFailed, match="other bytes"):
        library.pull("vae")
    hub.put("maker/vae", {"config.json": b"{}", "diffusion_pytorch_model.safetensors": weights(9)})
    hub.seen.clear()
    library.pull("vae")
    assert hub.seen[0].path == f"/api/models/maker/vae/revision/{first}"
    library.remove("vae")
    hub.seen.clear()
    library.pull("vae", update=True)
    assert hub.seen[0].path == "/api/models/maker/vae/revision/main"


def test_a_disk_without_room_is_said_before_anything_is_fetched(hub, library_at: Maker, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(installing, "RESERVED_BYTES", 2**62)
    with pytest.raises(StorageFull, match="must stay free"):
        library_at(tmp_path).pull("vae")
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]


def test_a_disk_that_fills_up_on_the_way_is_said_and_the_pull_goes_on_later(hub, library_at: Maker, tmp_path: Path):
    library = library_at(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageFull, match="filled up"):
            library.pull("vae")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert library.pull("vae").installed
    assert int(hub.served("diffusion_pytorch_model.safetensors")[-1].headers["range"][6:-1]) > 50_000


def test_a_hub_that_is_not_trusted_and_not_public_is_refused(hub: HubServer, library_at: Maker, tmp_path: Path):
    with pytest.raises(UrlNotAllowed, match="EIS_TRUSTED_HOSTS"):
        library_at(tmp_path, trusted_hosts=()).pull("vae")
    with pytest.raises(UrlNotAllowed, match="EIS_TRUSTED_HOSTS"):
        library_at(tmp_path, trusted_hosts=hub.hosts[:1]).pull("vae")
    assert not [seen for seen in hub.seen if seen.server == "cdn"]


def test_missing_repositories_and_files_are_named(hub: HubServer, library_at: Maker, tmp_path: Path):
    del hub.repos["maker/painter"]
    with pytest.raises(NotFound, match="maker/painter"):
        library_at(tmp_path).pull("painter", accept_licence=True)
    del hub.repos["maker/vae"]["config.json"]
    with pytest.raises(NotFound, match=r"config\.json"):
        library_at(tmp_path).pull("vae")


@pytest.mark.parametrize(
    "path", ["../outside.json", "/etc/outside.json", "a/../../outside.json", "..\\outside.json", ".git/x.json"]
)
def test_a_hostile_path_writes_nothing_outside(hub: HubServer, library_at: Maker, tmp_path: Path, path: str):
    import dataclasses

    hub.repos["maker/vae"][path] = b"{}"
    catalog = (*CATALOG[:-1], dataclasses.replace(CATALOG[-1], files=(path,)))
    with pytest.raises(NotFound):
        library_at(tmp_path / "home", catalog=catalog).pull("vae")
    assert not list(tmp_path.rglob("outside.json"))


def test_garbage_from_the_hub_is_a_failed_transfer(hub: HubServer, library_at: Maker, tmp_path: Path):
    for answer in ([], {"sha": "main", "siblings": []}, {"sha": "a" * 40}, {"sha": "a" * 40, "siblings": [{}]}):
        hub._describe = lambda repo, answer=answer: answer  # type: ignore[method-assign]
        with pytest.raises(TransferFailed):
            library_at(tmp_path).pull("vae")


def test_two_pulls_at_once_fetch_once(hub: HubServer, library_at: Maker, tmp_path: Path):
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=50_000, ending="stall")]
    rows, errors = [], []

    def pull() -> None:
        try:
            rows.append(library_at(tmp_path).pull("vae"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(rows) == 4
    whole = hub.repos["maker/vae"]["diffusion_pytorch_model.safetensors"]
    assert (rows[0].path / "diffusion_pytorch_model.safetensors").read_bytes() == whole
    assert sum(seen.sent for seen in hub.served("diffusion_pytorch_model.safetensors")) == len(whole)
    assert library_at(tmp_path).verify("vae") == []


def _pull_in_a_process(home: Path, url: str, hosts: tuple[str, ...]) -> None:
    ModelLibrary(home, hub_url=url, trusted_hosts=hosts, catalog=CATALOG).pull("vae")


def test_a_killed_pull_is_taken_up_by_another_process(hub: HubServer, library_at: Maker, tmp_path: Path):
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=150_000, ending="stall")]
    process = multiprocessing.get_context("spawn").Process(
        target=_pull_in_a_process, args=(tmp_path, hub.url, hub.hosts)
    )
    process.start()
    library = library_at(tmp_path)
    wait_for(lambda: any(path.stat().st_size >= 140_000 for path in tmp_path.rglob("*.part")), 30)
    with pytest.raises(Conflict, match="being pulled"):
        library.remove("vae")
    process.kill()
    process.join()
    assert not library.get("vae").installed
    row = library.pull("vae")
    whole = hub.repos["maker/vae"]["diffusion_pytorch_model.safetensors"]
    assert (row.path / "diffusion_pytorch_model.safetensors").read_bytes() == whole
    assert hub.served("diffusion_pytorch_model.safetensors")[-1].sent <= len(whole) - 140_000


def test_the_public_client_library_sees_the_same_repository(hub: HubServer, library_at: Maker, tmp_path: Path):
    """The little hub speaks the protocol: the hub's own client reads the same facts and fetches the same bytes."""
    from huggingface_hub import HfApi, hf_hub_download

    info = HfApi(endpoint=hub.url, token=False).model_info("maker/base", revision="main", files_metadata=True)
    row = library_at(tmp_path / "home").pull("base")
    record = json.loads((tmp_path / "home" / "models" / "base" / "model.json").read_text())
    assert record["commit"] == info.sha
    by_name = {entry.rfilename: entry for entry in info.siblings}
    assert by_name[WEIGHTS].lfs.sha256 == record["files"][WEIGHTS]["sha256"] == row.sha256
    for name, file in record["files"].items():
        assert by_name[name].size == file["bytes"]
        theirs = hf_hub_download(
            "maker/base", name, revision=info.sha, endpoint=hub.url, cache_dir=tmp_path / "cache", token=False
        )
        assert Path(theirs).read_bytes() == (row.path / name).read_bytes()
