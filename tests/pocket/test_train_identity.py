"""The identity modules train from nothing, go on where they were cut off, and end in files that the product opens."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from app.core import ecomid_settings  # noqa: E402
from app.models import ecomid, eva_clip, faces, instantid, pulid  # noqa: E402
from app.models.device import TorchDevice  # noqa: E402
from app.pocket import train_ecomid, train_identity  # noqa: E402


def command(folder, *more):
    return [
        "--preset", "tiny", "--work", str(folder / "work"), "--out", str(folder / "out"),
        "--measure", str(folder), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after one step of every stage."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_identity.main(command(folder)) == 0
    return folder


def test_every_stage_ends_in_files_that_the_product_opens(trained):
    out, device = trained / "out", TorchDevice("cpu")
    clip = eva_clip.open_file(out / "pocket-clip/eva02_clip.safetensors", 32)
    faces.open_analyser([out / "pocket-faces"], device, clip)
    for row, version in (("pocket-pulid", "v1.1"), ("pocket-pulid-v1", "v1")):
        file = next((out / row).glob("*.safetensors"))
        assert pulid.load(SimpleNamespace(id=row, options={}), file, device).version == version
    opened = instantid.load(SimpleNamespace(id="pocket-instantid", options={}), out / "pocket-instantid", device)
    assert opened.adapter.tokens(torch.zeros(512)).prompt.shape == (1, 8, 256)
    row = SimpleNamespace(id="pocket-ecomid", options={})
    parts = [
        SimpleNamespace(spec=SimpleNamespace(id=id, options={}, tasks=(task,)), path=path)
        for id, task, path in (
            ("pocket-pulid-v1", "pulid", next((out / "pocket-pulid-v1").glob("*.safetensors"))),
            ("pocket-instantid", "instantid", out / "pocket-instantid"),
        )
    ]
    assert ecomid.load(row, out / "pocket-ecomid", device, parts).identity.version == "v1"
    assert (trained / "likeness.safetensors").exists()
    for folder in out.iterdir():
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 15_000_000


def test_ecomid_learns_in_the_modes_of_its_methods():
    assert train_ecomid.MODES == ecomid_settings.METHODS


def test_without_a_lora_it_says_what_makes_one(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_identity.main(command(tmp_path, "--lora", str(tmp_path / "none")))
    assert "eis pocket train-steering" in capsys.readouterr().err and not (tmp_path / "work").exists()


def test_a_stage_that_was_cut_off_goes_on(trained):
    before = torch.load(trained / "work/pulid-v1.1.pt", weights_only=True)
    assert train_identity.main(command(trained, "--only", "pulid-v1.1", "--steps", "2")) == 0
    after = torch.load(trained / "work/pulid-v1.1.pt", weights_only=True)
    assert (before["number"], after["number"]) == (1, 2)


def test_a_stage_that_is_not_complete_holds_up_those_behind_it(trained, capsys):
    asked = ["--only", "tell-instantid", "instantid", "ecomid", "--steps", "3", "--seconds", "0"]
    kept = (trained / "work/ecomid.pt").read_bytes()
    assert train_identity.main(command(trained, *asked)) == 0
    assert "not complete yet" in capsys.readouterr().out
    assert torch.load(trained / "work/tell-instantid.pt", weights_only=True)["number"] < 3
    assert torch.load(trained / "work/instantid.pt", weights_only=True)["number"] == 1
    assert (trained / "work/ecomid.pt").read_bytes() == kept
