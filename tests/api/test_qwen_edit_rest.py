"""Qwen-Image-Edit through REST draws what the stock diffusers pipelines draw, to the pixel; and what could only fail.

The stock pipelines draw a million pixels whatever they are shown. Here both sides are told of 256 x 256, by the one
function of diffusers that says so; what else happens is theirs and ours.
"""

import importlib
import io
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from app.core.catalog import CATALOG
from app.core.handlers import resolve
from app.core.staying_put import stay_put
from app.imaging.masks import fade_inwards
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from app.models.step_batching import Session
from tests.api.serving import Running, serving
from tests.api.test_equality_rest import one_thread, pixels, require_same  # noqa: F401 (one_thread is a fixture)
from tests.models import tiny_qwen

SIDE, SEED, STEPS = 256, 5, 2
PATH = "/api/v1/qwen-edit?wait=500"
WORDS = "make the car green"
STOCK = "diffusers.pipelines.qwenimage.pipeline_qwenimage_"
EDIT, PLUS = "tiny-qwen", "tiny-qwen-2511"
CLASSES: dict[str, Any] = {EDIT: diffusers.QwenImageEditPipeline, PLUS: diffusers.QwenImageEditPlusPipeline}
LIGHTNING = "qwen-image-edit-lightning-4steps"


def photo(turn: int = 0) -> Image.Image:
    return Image.effect_mandelbrot((SIDE, SIDE), (-2, -1.2, 0.8, 1.2), 60).convert("RGB").rotate(turn)


def round_mask(size: int = SIDE) -> Image.Image:
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 4, size // 4, size * 3 // 4, size * 3 // 4))
    return mask


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """A smaller area for the pipelines."""
    patch = pytest.MonkeyPatch()
    sized = tiny_qwen.smaller(SIDE * SIDE)
    for name in ("edit", "edit_inpaint"):
        patch.setattr(
            importlib.import_module(STOCK + name), "calculate_dimensions", lambda *told: (*sized(*told), None)
        )
    patch.setattr(importlib.import_module(STOCK + "edit_plus"), "calculate_dimensions", sized)
    patch.setattr("app.models.qwen_editing.AREA", SIDE * SIDE)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("editors")
    return {
        EDIT: tiny_qwen.make_folder(root / EDIT),
        PLUS: tiny_qwen.make_folder(root / PLUS, plus=True, zero_cond_t=True),
    }


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LoRA of random matrices, named as the published ones are."""
    noise = torch.Generator().manual_seed(8)
    width = tiny_qwen.HEADS * tiny_qwen.HEAD
    state = {
        f"transformer.transformer_blocks.{block}.attn.{name}.lora_{side}.weight": torch.randn(shape, generator=noise)
        / 3
        for block in range(2)
        for name in ("to_q", "add_k_proj")
        for side, shape in (("A", (4, width)), ("B", (width, 4)))
    }
    file = tmp_path_factory.mktemp("loras") / f"{LIGHTNING}.safetensors"
    save_file(state, file)
    return file


@pytest.fixture(scope="module")
def studio(
    tmp_path_factory: pytest.TempPathFactory,
    folders: dict[str, Any],
    lora: Any,
    one_thread: None,  # noqa: F811
) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("studio")
    library = ModelLibrary(home)
    for model, folder in folders.items():
        library.add(folder, id=model)
    library.add(lora)
    engine = {"runtime": "app.models.runtime:open_runtime"}
    with serving(home, engine=engine, catalog="app.core.catalog:CATALOG", precision="float32") as running:
        yield running


@pytest.fixture(scope="module")
def uploaded(studio: Running) -> dict[str, str]:
    pictures = {f"photo{turn}": png(photo(turn)) for turn in (0, 90, 180)}
    found = {name: studio.upload(data) for name, data in pictures.items()}
    found["wide"] = studio.upload(png(photo().resize((320, 200))))
    found["mask"] = studio.upload(png(round_mask()), "mask")
    found["small mask"] = studio.upload(png(round_mask(64)), "mask")
    return found


def wish(uploaded: dict[str, str], model: str = EDIT, **more: Any) -> dict[str, Any]:
    common = {"prompt": WORDS, "image": uploaded["photo0"], "model": model, "num_inference_steps": STEPS, "seed": SEED}
    return {**common, "align": False, **more}


def edited(studio: Running, asked: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The job, and the pixels of its pictures."""
    job = studio.client.post(PATH, json=asked, timeout=520).json()
    assert job.get("status") == "succeeded", job
    files = [studio.client.get(image["url"]).content for image in job["result"]["images"]]
    return job, [pixels(Image.open(io.BytesIO(file), formats=["PNG"])) for file in files]


def stock(folder: Any, kind: Any, *, lora: Any = None, schedule: dict[str, Any] | None = None, **told: Any) -> Any:
    """What stock diffusers makes of it, as its documentation has it."""
    pipeline = kind.from_pretrained(folder, use_safetensors=True)
    if schedule is not None:
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            {**pipeline.scheduler.config, **schedule}
        )
    if lora is not None:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipeline.set_progress_bar_config(disable=True)
    common = {"prompt": WORDS, "negative_prompt": " ", "num_inference_steps": STEPS, "true_cfg_scale": 4.0}
    return pipeline(**common | {"generator": torch.Generator().manual_seed(SEED)} | told).images[0]


def test_folders_are_recognised_and_several_pictures_are_what_the_newer_ones_take(studio: Running) -> None:
    models = studio.service.models
    assert models.get(EDIT).spec.tasks == ("qwen-edit",)
    assert models.get(PLUS).spec.tasks == ("qwen-edit", "qwen-edit-plus")
    assert {models.get(model).spec.family for model in (EDIT, PLUS, LIGHTNING)} == {"qwen-image"}
    assert models.get(LIGHTNING).spec.recommended.num_inference_steps == 4


def test_edit_is_the_stock_pipeline_to_the_pixel(studio: Running, uploaded: Any, folders: Any) -> None:
    job, (ours,) = edited(studio, wish(uploaded))
    assert job["request"]["true_cfg_scale"] == 4.0 and job["model"] == EDIT
    require_same(ours, pixels(stock(folders[EDIT], CLASSES[EDIT], image=photo())))
    _, (unguided,) = edited(studio, wish(uploaded, true_cfg_scale=1.0))
    require_same(unguided, pixels(stock(folders[EDIT], CLASSES[EDIT], image=photo(), true_cfg_scale=1.0)))
    assert (ours != unguided).mean() > 0.1


def test_edit_plus_is_the_stock_pipeline_with_one_picture_and_with_three(
    studio: Running, uploaded: Any, folders: Any
) -> None:
    _, (alone,) = edited(studio, wish(uploaded, PLUS))
    require_same(alone, pixels(stock(folders[PLUS], CLASSES[PLUS], image=[photo()])))
    further = [uploaded["photo90"], uploaded["wide"]]
    _, (ours,) = edited(studio, wish(uploaded, PLUS, further_images=further, negative_prompt="blurry"))
    shown = [photo(), photo(90), photo().resize((320, 200))]
    # The shape is the first picture's; the stock pipeline must be told, or it takes the last one's.
    whole = {"negative_prompt": "blurry", "width": SIDE, "height": SIDE}
    require_same(ours, pixels(stock(folders[PLUS], CLASSES[PLUS], image=shown, **whole)))
    assert (ours != alone).mean() > 0.1


@pytest.mark.parametrize("model", [EDIT, PLUS])
def test_inpaint_is_the_stock_pipeline_and_keeps_every_byte_outside_the_mask(
    studio: Running, uploaded: Any, folders: Any, model: str
) -> None:
    asked = wish(uploaded, model, mask_image=uploaded["mask"], strength=0.9, num_inference_steps=3)
    _, (own,) = edited(studio, asked | {"overlay": False})
    told = {"image": photo(), "mask_image": round_mask(), "strength": 0.9, "num_inference_steps": 3}
    wanted = stock(folders[model], diffusers.QwenImageEditInpaintPipeline, **told)
    require_same(own, pixels(wanted))
    _, (ours,) = edited(studio, asked)
    outside = np.asarray(round_mask()) == 0
    assert np.array_equal(ours[outside], pixels(photo())[outside])
    require_same(ours, pixels(Image.composite(wanted, photo(), fade_inwards(round_mask(), 4))))


def test_a_lightning_lora_brings_its_steps_its_schedule_and_no_guidance(
    studio: Running, uploaded: Any, folders: Any, lora: Any
) -> None:
    asked = wish(uploaded, loras=[{"model": LIGHTNING}])
    del asked["num_inference_steps"]
    job, (ours,) = edited(studio, asked)
    assert job["request"]["num_inference_steps"] == 4 and job["request"]["true_cfg_scale"] == 1.0
    told = {"image": photo(), "num_inference_steps": 4, "true_cfg_scale": 1.0, "negative_prompt": None}
    shift = float(np.log(3))
    schedule = {"base_shift": shift, "max_shift": shift, "shift_terminal": None}
    require_same(ours, pixels(stock(folders[EDIT], CLASSES[EDIT], lora=lora, schedule=schedule, **told)))
    # The next edit without it is as if it had never been there, its schedule too.
    _, (plain,) = edited(studio, wish(uploaded, num_inference_steps=4, true_cfg_scale=1.0))
    require_same(plain, pixels(stock(folders[EDIT], CLASSES[EDIT], **told)))
    assert (plain != ours).mean() > 0.1


def test_each_picture_has_its_seed_and_stays_put(studio: Running, uploaded: Any, folders: Any) -> None:
    keeping = {"align": True, "paste_changes": True, "paste_grow": 2, "paste_feather": 3}
    job, found = edited(studio, wish(uploaded, num_images_per_prompt=2, **keeping))
    assert [image["seed"] for image in job["result"]["images"]] == [SEED, SEED + 1]
    for seed, ours, told in zip((SEED, SEED + 1), found, job["result"]["data"]["kept"], strict=True):
        noise = torch.Generator().manual_seed(seed)
        plain = stock(folders[EDIT], CLASSES[EDIT], image=photo(), generator=noise)
        kept, said, _ = stay_put(SimpleNamespace(**keeping), photo(), plain)
        require_same(ours, pixels(kept))
        assert told == {"work_size": [SIDE, SIDE], **said}


def test_a_size_may_be_asked_for_and_else_the_picture_keeps_its_own(
    studio: Running, uploaded: Any, folders: Any
) -> None:
    _, (asked,) = edited(studio, wish(uploaded, width=320))
    require_same(asked, pixels(stock(folders[EDIT], CLASSES[EDIT], image=photo(), width=320, height=320)))
    job, (own,) = edited(studio, wish(uploaded, image=uploaded["wide"]))
    assert own.shape == (200, 320, 3) and job["result"]["data"]["kept"][0]["work_size"] == [320, 192]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompt": ""}, "instruction is empty"),
        ({"prompt": "  "}, "instruction is empty"),
        (
            {"model": PLUS, "further_images": ["photo90", "photo180", "wide"]},
            "further_images: Tuple should have at most 2 items",
        ),
        ({"further_images": ["photo90"]}, "'tiny-qwen' takes one picture"),
        ({"mask_image": "small mask"}, "64x64"),
        ({"mask_image": "mask", "width": 256}, "keeps its size"),
        ({"mask_image": "mask", "paste_changes": True}, "A mask keeps"),
        ({"model": PLUS, "mask_image": "mask", "further_images": ["photo90"]}, "one picture alone"),
        ({"mask_image": "mask", "strength": 0.3}, "no step"),
        ({"width": 264}, "multiples of 16"),
        ({"loras": [{"model": "pocket"}]}, "no LoRA"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale"),
    ],
)
def test_what_could_only_fail_is_one_clear_refusal(
    studio: Running, uploaded: Any, change: dict[str, Any], word: str
) -> None:
    named = {
        name: [uploaded.get(one, one) for one in value]
        if name == "further_images"
        else uploaded.get(value, value)
        if isinstance(value, str)
        else value
        for name, value in change.items()
    }
    before = studio.stored()
    answer = studio.client.post(PATH, json=wish(uploaded) | named)
    assert answer.status_code == 422 and word in answer.json()["error"]["message"], answer.text
    assert studio.stored() == before


def test_a_side_that_follows_the_shape_may_be_too_long(studio: Running, uploaded: Any) -> None:
    answer = studio.client.post(PATH, json=wish(uploaded, image=uploaded["wide"], height=4096))
    assert answer.status_code == 413 and "6560x4096" in answer.json()["error"]["message"]


def test_a_lora_of_another_family_is_refused_with_both_names(studio: Running, uploaded: Any, lora: Any) -> None:
    asked = {"prompt": "a cat", "model": "pocket", "loras": [{"model": LIGHTNING}]}
    answer = studio.client.post("/api/v1/text-to-image", json=asked)
    assert answer.status_code == 422 and "qwen-image" in answer.json()["error"]["message"]


def test_a_job_ends_within_a_step_and_shows_a_picture_on_the_way(studio: Running, uploaded: Any) -> None:
    job = studio.service.submit("qwen-edit", wish(uploaded, num_inference_steps=60))
    steps, previews = [], 0
    for event in studio.service.watch_blocking(job.id, preview=True):
        if event.kind == "step":
            steps.append(event.data["step"])
            assert event.data["steps"] == 60
        previews += event.kind == "preview"
        if previews:
            studio.service.cancel(job.id)
    assert previews and len(steps) < 30
    assert studio.service.get(job.id).status.value == "cancelled"


def test_edit_means_this_editor_where_it_is_installed(studio: Running) -> None:
    assert resolve("edit", CATALOG, studio.service.models).name == "qwen-edit"


def test_another_job_comes_in_between_two_steps(studio: Running) -> None:
    """A turn on the device is asked for while an edit runs, and given before the edit's end."""
    runtime = open_runtime(device="cpu", library=studio.service.models, precision="float32")
    order: list[str] = []
    try:
        with runtime.editor(EDIT, task="qwen-edit") as editor:

            def on_step(_editor: Any, index: int, _timestep: Any, tensors: Any) -> None:
                order.append("step")
                if index == 0:
                    waiting.start()

            def take() -> None:
                with runtime.batcher.turn(Session(priority=9)):
                    order.append("other")

            waiting = threading.Thread(target=take)
            editor(prompt=WORDS, image=[photo()], num_inference_steps=6, true_cfg_scale=1.0,
                   generator=torch.Generator().manual_seed(1), callback_on_step_end=on_step)  # fmt: skip
            order.append("end")
            waiting.join(60)
    finally:
        runtime.close()
    assert order.index("other") < order.index("end")
