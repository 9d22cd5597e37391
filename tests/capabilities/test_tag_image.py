"""Tags end to end: over REST, by pocket's own tagger and by an added one, and captions beside a folder's pictures."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app import cli
from app.models.library import ModelLibrary
from app.pocket import tagger as pocket
from app.pocket import world
from tests.api.serving import Running, serving
from tests.models.onnx_taggers import make_tagger

WAIT = "/api/v1/tag-image?wait=120"
RED, GREEN, BLUE = ((250, 5, 5), (5, 250, 5), (5, 5, 250))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tagging")
    ModelLibrary(home).add(make_tagger(tmp_path_factory.mktemp("taggers") / "plain-colours"))
    return home


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[Running]:
    runtime = {"runtime": "app.models.runtime:open_runtime"}
    with serving(home, catalog="app.core.catalog:CATALOG", engine=runtime, ready_seconds=300) as running:
        yield running


def tagged(studio: Running, images: list[Image.Image], **wish: Any) -> dict[str, Any]:
    first, *more = [studio.upload(png(image)) for image in images]
    answer = studio.client.post(WAIT, json={"image": first, "further_images": more, **wish}, timeout=180)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def test_an_added_tagger_serves_and_answers_in_order(studio: Running) -> None:
    result = tagged(studio, [plain(RED), plain(GREEN), plain(BLUE)] * 7)
    assert result["data"]["tagger"] == "plain-colours" and result["notes"] == []
    captions = [picture["caption"] for picture in result["data"]["pictures"]]
    assert captions == ["saber (fate), red (colour)", "green grass", "blue sky"] * 7
    first = result["data"]["pictures"][0]
    assert first["rating"] == "general" and set(first["ratings"]) == {"general", "sensitive"}
    assert [one["tag"] for one in first["tags"]["character"]] == ["saber (fate)"]
    assert first["tags"]["character"][0]["score"] > 0.85 and result["images"] == []


def test_a_wish_changes_words_and_thresholds(studio: Running) -> None:
    wish = {"escape_brackets": True, "exclude": ["Red (Colour)"], "prepend": ["mystyle"], "rating_in_caption": True}
    assert (
        tagged(studio, [plain(RED)], **wish)["data"]["pictures"][0]["caption"] == "mystyle, saber \\(fate\\), general"
    )
    nothing = tagged(studio, [plain((128, 128, 128))], threshold=1, character_threshold=1)["data"]
    assert nothing["pictures"][0]["caption"] == ""
    assert nothing["stages"] == [{"stage": "caption", "text": "No tag reached the threshold."}]


@pytest.mark.parametrize(
    "wish", [{"threshold": 1.1}, {"exclude": [""]}, {"tagger": "pocket"}, {"further_images": ["x"]}]
)
def test_what_cannot_be_is_refused(studio: Running, wish: dict[str, Any]) -> None:
    answer = studio.client.post(WAIT, json={"image": studio.upload(png(plain(RED))), **wish})
    assert 400 <= answer.status_code < 500, answer.text


def test_pockets_tagger_names_what_pockets_pictures_show(studio: Running) -> None:
    scenes = [world.random_scene(random.Random(f"tag test {number}")) for number in range(60)]
    result = tagged(studio, [world.draw(scene) for scene in scenes], tagger="pocket-tagger", underscores=True)
    right = told = wanted = 0
    for scene, picture in zip(scenes, result["data"]["pictures"], strict=True):
        found, truth = {one["tag"] for one in picture["tags"]["general"]}, pocket.tags_of(scene)
        right, told, wanted = right + len(found & truth), told + len(found), wanted + len(truth)
        assert picture["rating"] == "general"
    assert right / told > 0.85 and right / wanted > 0.85, (right / told, right / wanted)
    assert "pocket's own world" in result["notes"][0]


def test_a_folder_gets_captions_beside_its_pictures(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EIS_HOME", str(tmp_path / "home"))
    ModelLibrary(tmp_path / "home").add(make_tagger(tmp_path / "plain-colours"))
    folder = tmp_path / "training"
    (folder / "more").mkdir(parents=True)
    plain(RED).save(folder / "red.png")
    plain(GREEN).save(folder / "green.webp", lossless=True)
    plain(BLUE).save(folder / "more" / "blue.png")
    plain(BLUE).save(folder / "mine.png")
    (folder / "mine.txt").write_text("written by hand\n")
    (folder / "broken.png").write_bytes(b"no picture")
    stored = tmp_path / "home" / "images"
    assert cli.main(["tag", str(folder), "--prepend", "mystyle", "--quiet"]) == 1
    told = capsys.readouterr()
    assert "2 captions written, 1 left as they were, 1 pictures not read" in told.out and "broken.png" in told.err
    texts = {path.name: path.read_text() for path in folder.rglob("*.txt")}
    assert texts == {
        "red.txt": "mystyle, saber (fate), red (colour)\n",
        "green.txt": "mystyle, green grass\n",
        "mine.txt": "written by hand\n",
    }
    assert not [path for path in folder.rglob("*.part")] and not [*stored.rglob("*.png")]
    (folder / "broken.png").unlink()
    assert cli.main(["tag", str(folder), "--recursive", "--overwrite", "--underscores", "--quiet"]) == 0
    assert (folder / "mine.txt").read_text() == "blue_sky\n" == (folder / "more" / "blue.txt").read_text()


def test_two_pictures_never_share_a_caption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain(RED).save(tmp_path / "a.png")
    plain(RED).save(tmp_path / "a.jpg")
    assert cli.main(["tag", str(tmp_path)]) == 2
    assert "would share one caption" in capsys.readouterr().err and not (tmp_path / "a.txt").exists()
    assert cli.main(["tag", str(tmp_path / "nowhere")]) == 2
