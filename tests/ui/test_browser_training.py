"""In a real browser on a fresh machine: pictures and an archive become a training, its loss curve and a sample."""

import io
import random
import zipfile

import numpy as np
import pytest

from app.imaging.loss_curve import loss_curve
from app.pocket import world
from tests.ui.serving import server
from tests.ui.test_browser_identity import asked
from tests.ui.test_browser_jobs import tab
from tests.ui.test_browser_pictures import fetch

pytestmark = pytest.mark.browser
STAGE = "#stage-lora-training"


@pytest.fixture(scope="module")
def training_server(tmp_path_factory):
    with server(
        tmp_path_factory.mktemp("training"), catalog="tests.ui.training_alone:CATALOG", devices="cpu"
    ) as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An archive of two captioned pictures; a third picture, and the first of the archive once more, made smaller."""
    folder = tmp_path_factory.mktemp("pictures")
    chance = random.Random(4)
    drawn = [world.draw(world.random_scene(chance)) for _ in range(3)]
    with zipfile.ZipFile(folder / "two.zip", "w") as archive:
        for number, image in enumerate(drawn[:2]):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            archive.writestr(f"{number}.png", buffer.getvalue())
            archive.writestr(f"{number}.txt", f"scene {number}")
    drawn[2].save(folder / "third.png")
    drawn[0].resize((96, 96)).save(folder / "again.png")
    return folder


def captions(page):
    return [box.input_value() for box in page.locator(".eis-dataset:visible textarea").all()]


def fill(page, name, text):
    """A box by its label, under which a sentence may stand."""
    labelled = page.locator("label").filter(has=page.get_by_text(name, exact=True)).locator("visible=true").first
    box = labelled.locator("input, textarea").first
    box.fill(text)
    box.press("Tab")


def test_pictures_are_reviewed_learned_from_and_the_loss_is_seen(training_server, open_page, folder, tmp_path):
    page = open_page(training_server)
    tab(page, "Training")
    dataset = page.locator(".eis-dataset:visible").first
    chosen = dataset.locator("input[type=file]")
    rows = dataset.locator(".eis-dataset-row")
    chosen.set_input_files(folder / "two.zip")
    rows.nth(1).wait_for()
    assert captions(page) == ["scene 0", "scene 1"]
    chosen.set_input_files([folder / "third.png", folder / "again.png"])
    rows.nth(3).wait_for()

    dataset.get_by_text("looks like 1", exact=True).wait_for()
    assert dataset.locator(".twin").count() == 1 and "1 of them looks like another" in dataset.inner_text()
    page.screenshot(path=str(tmp_path / "review.png"))
    dataset.locator(".twin").get_by_role("button", name="Remove").click()
    dataset.get_by_text("3 pictures", exact=True).wait_for()
    assert dataset.locator(".twin").count() == 0
    box = dataset.get_by_label("Caption of picture 2", exact=True)
    box.fill("a boat by night")
    box.press("Tab")

    of_the_class = page.locator(".eis-with-class_prompt")
    assert of_the_class.count() == 2 and not of_the_class.locator("visible=true").count(), "no class is wished for"
    fill(page, "Its class", "a boat")
    of_the_class.nth(1).wait_for()
    assert "class" in of_the_class.first.inner_text()
    fill(page, "Its class", "")
    of_the_class.nth(1).wait_for(state="hidden")
    assert not of_the_class.first.is_visible()

    fill(page, "Name", "Boats")
    fill(page, "Trigger word", "zorp")
    fill(page, "Training steps", "2")
    fill(page, "Steps", "2")
    page.get_by_text("Advanced", exact=True).locator("visible=true").click()
    assert page.get_by_text("adamw-8bit needs a CUDA device", exact=False).locator("visible=true").count() == 1
    fill(page, "Validation prompts", "a zorp boat")
    page.get_by_role("button", name="Train", exact=True).click()
    done = page.locator(f"{STAGE} .eis-result:visible")
    done.wait_for()
    shown = page.locator(f"{STAGE} .eis-result .eis-picture")
    page.screenshot(path=str(tmp_path / "learned.png"), full_page=True)
    found = [fetch(page, training_server, picture) for picture in shown.all()]
    sample, curve = found
    assert np.asarray(sample).std() > 10, "the sample shows something"
    assert curve.size == loss_curve([], 2).size
    colours = curve.getcolors(curve.width * curve.height)
    assert sum(count for count, (red, _, blue) in colours if blue > 200 and red < 170) > 50, "no curve is drawn"
    request = asked(page, "lora-training")
    assert request["captions"] == ["scene 0", "a boat by night", ""]
    assert len(request["images"]) == 3 and request["max_train_steps"] == 2
