"""Through a real browser: pull from a small hub with progress and licence, add a file, use it, remove it."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.numpy import save

from app.imaging.infotext import build_infotext
from app.models.catalog import CATALOG as PRODUCT
from app.ui.model_choices import ModelChoices
from app.ui.panel import Panel
from tests.api.serving import Running, serving
from tests.api.test_models import lora_file, safetensors
from tests.library.conftest import CATALOG, hub, library_at  # noqa: F401 - fixtures
from tests.library.hub_server import Fault, HubServer
from tests.ui.serving import answers

pytestmark = pytest.mark.browser
FORMS = "tests.ui.capabilities:DRAWING"


@pytest.fixture
def pulling(tmp_path, monkeypatch, library_at) -> Iterator[Running]:  # noqa: F811
    """A server with a page, whose models come from the small hub."""
    monkeypatch.setattr("app.core.service.ModelLibrary", lambda home, **settings: library_at(home))
    with serving(tmp_path / "home", ui=True, catalog=FORMS) as running:
        for _ in range(600):
            if answers(f"{running.address}/config", ""):
                break
        yield running


@pytest.fixture
def knowing_faces(tmp_path, monkeypatch, library_at) -> Iterator[Running]:  # noqa: F811
    """The same, with a face stack and a Qwen-Image-Edit of the product's catalog in its own."""
    rows = (*CATALOG, *(spec for spec in PRODUCT if spec.id in {"buffalo_l", "qwen-image-edit-2511"}))
    monkeypatch.setattr("app.core.service.ModelLibrary", lambda home, **settings: library_at(home, catalog=rows))
    with serving(tmp_path / "home", ui=True, catalog=FORMS) as running:
        yield running


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_pull_with_progress_and_licence_then_the_form_offers_it(
    pulling: Running,
    hub: HubServer,  # noqa: F811
    open_page,
) -> None:
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=100_000, ending="stall")]
    page = open_page(pulling.address)
    model, steps = (page.get_by_label(name, exact=True).locator("visible=true") for name in ("Model", "Steps"))
    model.click()
    page.get_by_role("option", name="Base · not installed", exact=True).click()
    page.locator("[placeholder='auto (4)']:visible").wait_for()
    tab(page, "Models")
    vae = page.locator("[data-model=vae]")
    vae.get_by_role("button", name="Pull").click()
    vae.locator(".eis-progress").wait_for()
    vae.locator("text=/ of /").wait_for()
    vae.locator("text=Installed").wait_for()

    painter = page.locator("[data-model=painter]")
    painter.get_by_role("button", name="Pull").click()
    assert "OpenRAIL" in painter.locator(".eis-ask").inner_text()
    painter.get_by_role("button", name="I accept, pull").click()
    painter.locator("text=Installed").wait_for()

    tab(page, "Inpaint")
    model.click()
    page.get_by_role("option", name="Painter", exact=True).click()

    tab(page, "Text to image")
    assert model.input_value().startswith("Base") and steps.get_attribute("placeholder") == "auto (4)"

    tab(page, "Models")
    painter.get_by_role("button", name="Remove").click()
    painter.get_by_role("button", name="Remove its files?").click()
    painter.locator("text=Not installed").wait_for()
    tab(page, "Inpaint")
    page.locator("text=painter is not installed here; auto stands in its place").locator("visible=true").wait_for()
    assert model.input_value().startswith("auto")


def test_an_added_lora_is_offered_with_a_weight_and_travels_with_the_wish(
    pulling: Running, open_page, tmp_path
) -> None:
    page = open_page(pulling.address)
    tab(page, "Models")
    file = tmp_path / "my style.safetensors"
    file.write_bytes(lora_file())
    page.locator("[data-model=vae]").wait_for()
    page.locator(".eis-add input[type=file]").set_input_files(file)
    page.locator("[data-model=my-style] >> text=Installed").wait_for()

    tab(page, "Text to image")
    page.get_by_role("button", name="Add a LoRA").locator("visible=true").click()
    weight = page.get_by_label("Weight").locator("visible=true")
    weight.fill("0.65")
    weight.press("Tab")
    page.locator(".eis-prompt textarea:visible").fill("with a style")
    with page.expect_request(lambda request: '"weight":0.65' in (request.post_data or "")) as sent:
        page.locator("#generate-text-to-image").click()
    assert '"model":"my-style"' in sent.value.post_data
    page.wait_for_selector("#stage-text-to-image >> text=/eis models pull/")
    assert page.locator(".eis-lora:visible").count() == 1

    tab(page, "Models")
    row = page.locator("[data-model=my-style]")
    row.get_by_role("button", name="Remove").click()
    row.get_by_role("button", name="Remove its files?").click()
    row.wait_for(state="detached")
    tab(page, "Text to image")
    page.locator("text=No LoRA is installed").locator("visible=true").wait_for()


def test_what_a_page_learned_at_its_opening_does_not_undo_later_news(
    pulling: Running, open_page, tmp_path, monkeypatch
) -> None:
    """The forms as they were at the opening are known before a LoRA is added, and answered after it."""
    original, known, answer = Panel.restored, threading.Event(), threading.Event()

    def late(panel: Panel, *of: Any) -> dict[Any, Any]:
        found = original(panel, *of)
        if panel.name == "text-to-image":
            known.set()
            assert answer.wait(300)
        return found

    monkeypatch.setattr(Panel, "restored", late)
    try:
        page = open_page(pulling.address)
        assert known.wait(300)
        tab(page, "Models")
        file = tmp_path / "my style.safetensors"
        file.write_bytes(lora_file())
        page.locator("[data-model=vae]").wait_for()
        with page.expect_request(lambda request: '"gone"' in (request.post_data or "")):
            page.locator(".eis-add input[type=file]").set_input_files(file)
        tab(page, "Text to image")
        page.wait_for_timeout(1000)
    finally:
        answer.set()
    add = page.get_by_role("button", name="Add a LoRA").locator("visible=true")
    add.wait_for()
    page.wait_for_timeout(1500)
    assert add.count() == 1, "an older answer came last"


def test_of_two_models_chosen_quickly_the_last_one_counts(pulling: Running, open_page, monkeypatch) -> None:
    original, asked, answer = ModelChoices.automatic, threading.Event(), threading.Event()

    def slow(choices: ModelChoices, model: str, name: str) -> str:
        if model == "base":
            asked.set()
            assert answer.wait(300)
        return original(choices, model, name)

    monkeypatch.setattr(ModelChoices, "automatic", slow)
    page = open_page(pulling.address)
    model, steps = (page.get_by_label(name, exact=True).locator("visible=true") for name in ("Model", "Steps"))
    try:
        model.click()
        page.get_by_role("option", name="Base · not installed", exact=True).click()
        assert asked.wait(300)
        page.get_by_role("option").first.wait_for(state="detached")
        model.click()
        page.get_by_role("option", name="auto").locator("visible=true").click()
        page.wait_for_timeout(500)
        with page.expect_request(lambda request: request.url.partition("?")[0].endswith("/queue/join")):
            answer.set()
    finally:
        answer.set()
    page.locator("[placeholder='auto (4)']:visible").wait_for(state="detached")
    assert steps.get_attribute("placeholder") == "auto" and model.input_value().startswith("auto")


def test_a_look_that_began_earlier_does_not_undo_a_later_one(pulling: Running, open_page, tmp_path) -> None:
    file = tmp_path / "my style.safetensors"
    file.write_bytes(lora_file())
    pulling.service.models.add(file)
    page = open_page(pulling.address)
    tab(page, "Models")
    row = page.locator("[data-model=my-style]")
    row.wait_for()
    held: list[Any] = []

    def hold_the_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    tab(page, "Gallery")
    page.route("**/api/v1/models", hold_the_first)
    with page.expect_request("**/api/v1/models"):
        tab(page, "Models")
    row.get_by_role("button", name="Remove").click()
    row.get_by_role("button", name="Remove its files?").click()
    row.wait_for(state="detached")
    ((route, old),) = held
    assert '"my-style"' in old.text()
    page.evaluate(
        """() => {
            window.cameBack = false;
            const look = () => { window.cameBack ||= document.querySelector("[data-model=my-style]") !== null; };
            new MutationObserver(look)
                .observe(document.querySelector("#model-list"), { childList: true, subtree: true });
        }"""
    )
    with page.expect_response("**/api/v1/models"):
        route.fulfill(response=old)
    page.wait_for_timeout(1000)
    assert not page.evaluate("window.cameBack"), "an older look came after a newer one"


def test_a_licence_that_allows_no_commercial_use_is_said_and_asked_for_at_an_upload(
    knowing_faces: Running, open_page, tmp_path
) -> None:
    page = open_page(knowing_faces.address)
    tab(page, "Models")
    file = tmp_path / "faceid.safetensors"
    shapes = {"image_proj.proj.0.weight": [1024, 512], "image_proj.norm.weight": [768]}
    file.write_bytes(safetensors(shapes | {"ip_adapter.1.to_k_ip.weight": [320, 768]}))
    page.locator("[data-model=vae]").wait_for()
    page.locator(".eis-add input[type=file]").set_input_files(file)
    question = page.locator(".eis-add .eis-ask")
    assert "allows no commercial use" in question.inner_text() and "FaceID" in question.inner_text()
    question.get_by_role("button", name="Not now").click()
    question.wait_for(state="detached")
    assert page.locator("[data-model=faceid]").count() == 0
    page.locator(".eis-add input[type=file]").set_input_files(file)
    question.get_by_role("button", name="I accept, add").click()
    row = page.locator("[data-model=faceid]")
    row.locator("text=no commercial use").wait_for()
    assert page.locator("h2", has_text="IP-Adapters").count() == 1
    assert all("409" in complaint for complaint in open_page.complaints), open_page.complaints
    open_page.complaints.clear()


def test_a_row_says_its_own_family(knowing_faces: Running, open_page) -> None:
    page = open_page(knowing_faces.address)
    tab(page, "Models")
    facts = page.locator("[data-model=qwen-image-edit-2511] .eis-hint").first.inner_text()
    assert "Qwen-Image · 1024 × 1024" in facts and "SDXL" not in facts


def test_a_pull_is_stopped_and_its_looks_leave_the_other_rows_alone(
    pulling: Running,
    hub: HubServer,  # noqa: F811
    open_page,
    tmp_path,
) -> None:
    file = tmp_path / "my style.safetensors"
    file.write_bytes(lora_file())
    pulling.service.models.add(file)
    hub.faults["diffusion_pytorch_model.safetensors"] = [Fault(after=1000, ending="stall") for _ in range(200)]
    page = open_page(pulling.address)
    tab(page, "Models")
    vae = page.locator("[data-model=vae]")
    vae.get_by_role("button", name="Pull").click()
    vae.locator(".eis-progress").wait_for()
    row = page.locator("[data-model=my-style]")
    row.evaluate("row => { row.marked = true; }")
    for _ in range(2):
        page.wait_for_event("response", lambda response: response.url.endswith("/api/v1/models"))
    assert row.evaluate("row => row.marked"), "a look at the pull made a row anew that had not changed"
    row.get_by_role("button", name="Remove").click()
    page.wait_for_event("response", lambda response: response.url.endswith("/api/v1/models"))
    assert row.get_by_role("button").inner_text() == "Remove its files?", "a look took the question away"

    with page.expect_request(lambda request: request.method == "DELETE") as asked:
        vae.get_by_role("button", name="Stop").click()
    assert asked.value.url.endswith("/api/v1/models/vae/pull")
    vae.get_by_role("button", name="Pull").wait_for()
    vae.locator("text=Not installed").wait_for()
    assert vae.locator(".eis-progress").count() == 0
    hub.faults.clear()
    vae.get_by_role("button", name="Pull").click()
    vae.locator("text=Installed").wait_for()


def test_an_open_list_lies_above_the_labels_around_it(pulling: Running, open_page) -> None:
    page = open_page(pulling.address)
    page.get_by_label("Model", exact=True).locator("visible=true").click()
    page.get_by_role("option", name="Base · not installed", exact=True).click()
    page.locator("[placeholder='auto (4)']:visible").wait_for()
    page.get_by_role("option").first.wait_for(state="detached")
    page.get_by_label("Size", exact=True).locator("visible=true").click()
    options = page.get_by_role("option")
    options.filter(has_text="Landscape").wait_for()
    covered = options.evaluate_all(
        """entries => entries.filter((entry) => {
            const box = entry.getBoundingClientRect();
            const shares = [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95];
            return shares.some((across) => shares.some((down) => !entry.contains(
                document.elementFromPoint(box.left + across * box.width, box.top + down * box.height))));
        }).map((entry) => entry.textContent)"""
    )
    assert options.count() > 2 and not covered, f"something is printed across {covered}"


def made_before(running: Running, request: dict[str, Any]) -> None:
    """A picture in the gallery that a text-to-image job of this request left."""
    recipe = {"capability": "text-to-image", "request": request, "model": request["model"]}
    infotext = build_infotext(request, seed=request["seed"], size=(64, 64), version="test")
    image = Image.new("RGB", (64, 64), "green")
    stored = running.service.storage.save_result(image, recipe=recipe, infotext=infotext)
    running.service.record_upload(stored, kind="result")


def test_use_settings_brings_a_lora_and_its_weight_back(pulling: Running, open_page, tmp_path) -> None:
    file = tmp_path / "my style.safetensors"
    file.write_bytes(lora_file())
    pulling.service.models.add(file)
    wish = {"prompt": "in my style", "model": "base", "seed": 3, "loras": [{"model": "my-style", "weight": 0.65}]}
    made_before(pulling, wish)
    page = open_page(pulling.address)
    tab(page, "Gallery")
    page.locator(".eis-tile").click()
    page.locator("#gallery-detail").get_by_text("Use settings").click()
    row = page.locator(".eis-lora:visible")
    row.wait_for()
    assert row.get_by_label("Weight").input_value() == "0.65"
    assert row.get_by_label("LoRA").input_value() == "my-style"
    assert page.locator(".eis-prompt textarea:visible").input_value() == "in my style"


def test_loras_of_another_family_are_laid_aside_and_come_back(pulling: Running, open_page, tmp_path) -> None:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora"
    small = tmp_path / "small style.safetensors"
    shapes = {f"{name}_A.weight": (4, 768), f"{name}_B.weight": (640, 4)}
    small.write_bytes(save({key: numpy.zeros(shape, "f2") for key, shape in shapes.items()}))
    large = tmp_path / "large style.safetensors"
    large.write_bytes(lora_file())
    for file in (small, large):
        pulling.service.models.add(file)
    page = open_page(pulling.address)
    page.get_by_role("button", name="Add a LoRA").locator("visible=true").click()
    row = page.locator(".eis-lora:visible")
    assert row.locator("option").count() == 2, "no model is installed: nothing is known against either"
    row.get_by_label("LoRA").select_option("small-style")
    weight = row.get_by_label("Weight")
    weight.fill("0.4")
    weight.press("Tab")

    model = page.get_by_label("Model", exact=True).locator("visible=true")
    model.click()
    page.get_by_role("option", name="Base · not installed", exact=True).click()
    page.locator("text=Laid aside, not installed for this model: small-style").locator("visible=true").wait_for()
    assert row.count() == 0
    page.get_by_role("button", name="Add a LoRA").locator("visible=true").click()
    assert row.get_by_label("LoRA").locator("option").all_inner_texts() == ["large style"]
    row.get_by_role("button", name="Remove").click()

    model.click()
    page.get_by_role("option", name="auto").locator("visible=true").click()
    row.wait_for()
    assert row.get_by_label("LoRA").input_value() == "small-style" and row.get_by_label("Weight").input_value() == "0.4"
