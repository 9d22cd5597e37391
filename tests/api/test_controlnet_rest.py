"""ControlNets through REST draw what the stock diffusers pipelines draw, pixel for pixel, alone and beside other jobs.

Tiny random checkpoints and networks in float32 on the CPU, as in `test_equality_rest`.
"""

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from app.models.library import ModelLibrary
from tests.api.serving import Running, serving
from tests.api.test_equality_rest import (  # noqa: F401 (one_thread is a fixture)
    SEED,
    STRENGTH,
    WORDS,
    data_uri,
    mask,
    noise,
    one_thread,
    picture,
    pixels,
    require_same,
)
from tests.models.tiny_checkpoints import make_sd15, make_sdxl
from tests.models.tiny_controlnets import make_controlnet, make_union

STEPS = 4
CLASSES: dict[tuple[str, str], Any] = {
    ("sd15", "text-to-image"): diffusers.StableDiffusionControlNetPipeline,
    ("sd15", "image-to-image"): diffusers.StableDiffusionControlNetImg2ImgPipeline,
    ("sd15", "inpaint"): diffusers.StableDiffusionControlNetInpaintPipeline,
    ("sdxl", "text-to-image"): diffusers.StableDiffusionXLControlNetPipeline,
    ("sdxl", "image-to-image"): diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
    ("sdxl", "inpaint"): diffusers.StableDiffusionXLControlNetInpaintPipeline,
}
UNIONS: dict[str, Any] = {
    "text-to-image": diffusers.StableDiffusionXLControlNetUnionPipeline,
    "image-to-image": diffusers.StableDiffusionXLControlNetUnionImg2ImgPipeline,
    "inpaint": diffusers.StableDiffusionXLControlNetUnionInpaintPipeline,
}
SCALES, STARTS, ENDS = [0.9, 0.6], [0.0, 0.25], [0.75, 1.0]
TASKS = ("text-to-image", "image-to-image", "inpaint")


@dataclass(frozen=True, eq=False)
class Family:
    """A tiny checkpoint and its networks on disk."""

    name: str
    folder: Path
    nets: tuple[Path, Path]
    union: Path | None = None

    @property
    def model(self) -> str:
        return f"tiny-{self.name}"

    def net_ids(self) -> list[str]:
        return [f"canny-{self.name}", f"depth-{self.name}"]

    def stock(self, task: str, count: int) -> Any:
        """diffusers' own pipeline, opened by diffusers alone."""
        nets = [diffusers.ControlNetModel.from_pretrained(path, use_safetensors=True) for path in self.nets[:count]]
        return self.opened(CLASSES[self.name, task], nets[0] if count == 1 else nets)

    def stock_union(self, task: str) -> Any:
        return self.opened(UNIONS[task], diffusers.ControlNetUnionModel.from_pretrained(self.union))

    def opened(self, pipeline_class: Any, controlnet: Any) -> Any:
        more = {"requires_safety_checker": False, "safety_checker": None} if self.name == "sd15" else {}
        pipeline = pipeline_class.from_pretrained(self.folder, controlnet=controlnet, use_safetensors=True, **more)
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    root = tmp_path_factory.mktemp("controlnets")
    found = {}
    for seed, (name, make) in enumerate({"sd15": make_sd15, "sdxl": make_sdxl}.items()):
        folder = make(root / name, seed)
        nets = tuple(
            make_controlnet(root / f"{kind}-{name}", folder, seed + n) for n, kind in enumerate(("canny", "depth"))
        )
        union = make_union(root / "union", folder, 5) if name == "sdxl" else None
        found[name] = Family(name, folder, nets, union)
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, families: dict[str, Family]) -> Iterator[Running]:
    """A server with the real catalog and the real runtime, whose worker runs four jobs at once."""
    home = tmp_path_factory.mktemp("studio")
    library = ModelLibrary(home)
    for family in families.values():
        library.add(family.folder, id=family.model)
        for id, net in zip(family.net_ids(), family.nets, strict=True):
            library.add(net, id=id)
        if family.union:
            library.add(family.union, id="union-sdxl")
    with serving(
        home,
        engine={"runtime": "app.models.runtime:open_runtime"},
        catalog="app.core.catalog:CATALOG",
        precision="float32",
        jobs_at_once=4,
    ) as running:
        yield running


def edges() -> Image.Image:
    image = Image.new("RGB", (64, 64))
    ImageDraw.Draw(image).rectangle((12, 12, 50, 50), outline=(255, 255, 255))
    return image


def slope() -> Image.Image:
    return Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))).convert("RGB")


def wish_for(family: Family, task: str, count: int) -> dict[str, Any]:
    """A wish with every parameter said; control pictures go as they are."""
    wish = WORDS | {"model": family.model, "seed": SEED, "num_inference_steps": STEPS, "scheduler": "Euler"}
    wish |= {
        "control_image": [data_uri(image) for image in (edges(), slope())[:count]],
        "control_type": ["canny", "depth"][:count],
        "controlnet_model": family.net_ids()[:count],
        "controlnet_conditioning_scale": SCALES[:count],
        "control_guidance_start": STARTS[:count],
        "control_guidance_end": ENDS[:count],
        "preprocess": ["off"],
    }
    if task == "text-to-image":
        return wish | {"width": 64, "height": 64}
    wish |= {"image": data_uri(picture()), "strength": STRENGTH}
    if task == "inpaint":
        wish |= {"mask_image": data_uri(mask()), "padding_mask_crop": None, "overlay": False}
    return wish


def stock_arguments(task: str, images: list[Any], count: int) -> dict[str, Any]:
    """The same for a stock pipeline."""
    alone = count == 1
    arguments: dict[str, Any] = {**WORDS, "num_inference_steps": STEPS, "generator": noise()}
    arguments |= {
        "controlnet_conditioning_scale": SCALES[0] if alone else SCALES,
        "control_guidance_start": STARTS[0] if alone else STARTS,
        "control_guidance_end": ENDS[0] if alone else ENDS,
    }
    arguments["image" if task == "text-to-image" else "control_image"] = images[0] if alone else images
    if task == "text-to-image":
        return arguments | {"width": 64, "height": 64}
    arguments |= {"image": picture(), "strength": STRENGTH}
    if task == "inpaint":
        arguments |= {"mask_image": mask(), "width": 64, "height": 64}
    return arguments


def through_rest(studio: Running, wish: dict[str, Any], path: str = "controlnet/generate") -> np.ndarray:
    answer = studio.client.post(f"/api/v1/{path}?wait=120", json=wish, headers={"accept": "image/png"}, timeout=130)
    assert answer.headers["content-type"] == "image/png", answer.text
    return pixels(Image.open(io.BytesIO(answer.content), formats=["PNG"]))


def drawn_with(family: Family, task: str, count: int) -> np.ndarray:
    arguments = stock_arguments(task, [edges(), slope()][:count], count)
    return pixels(family.stock(task, count)(**arguments).images[0])


@pytest.mark.parametrize("count", [1, 2], ids=["one-net", "two-nets"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_pixels_are_those_of_the_stock_pipeline(
    studio: Running, families: dict[str, Family], family: str, task: str, count: int
) -> None:
    wish = wish_for(families[family], task, count)
    ours = through_rest(studio, wish)
    require_same(ours, drawn_with(families[family], task, count))
    without = through_rest(studio, wish | {"controlnet_conditioning_scale": [0.0]})
    assert (ours != without).mean() > 0.1, "the networks change the picture"


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_pixels_stay_those_while_forwards_are_shared_with_plain_jobs(
    studio: Running, families: dict[str, Family], family: str
) -> None:
    """Long plain jobs of the same size run meanwhile; the picture may differ by the rounding of a larger batch."""
    model = families[family].model
    plain = WORDS | {"model": model, "width": 64, "height": 64, "scheduler": "Euler", "num_inference_steps": 120}
    alone = through_rest(studio, wish_for(families[family], "text-to-image", 2))
    beside = [
        threading.Thread(target=through_rest, args=(studio, plain | {"seed": seed}, "text-to-image")) for seed in (1, 2)
    ]
    before = forwards(studio)
    for thread in beside:
        thread.start()
    shared = through_rest(studio, wish_for(families[family], "text-to-image", 2))
    for thread in beside:
        thread.join()
    after = forwards(studio)
    assert after["forwards"] - before["forwards"] < after["calls"] - before["calls"], "nothing was shared"
    assert np.abs(shared.astype(int) - alone.astype(int)).max() <= 1


def forwards(studio: Running) -> dict[str, int]:
    (worker,) = studio.service.readiness()["workers"]
    return worker["memory"].get("forwards") or {"forwards": 0, "calls": 0}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kinds", [["depth"], ["canny", "depth"]], ids=["one-type", "two-types"])
def test_a_union_network_is_stock_with_one_type_and_with_two(
    studio: Running, families: dict[str, Family], task: str, kinds: list[str]
) -> None:
    family, count = families["sdxl"], len(kinds)
    maps = {"canny": edges(), "depth": slope()}
    modes = {"canny": 3, "depth": 1}
    wish = wish_for(family, task, count) | {
        "controlnet_model": ["union-sdxl"],
        "control_type": kinds,
        "control_image": [data_uri(maps[kind]) for kind in kinds],
    }
    arguments = stock_arguments(task, [maps[kind] for kind in kinds], count)
    images = arguments.pop("image") if task == "text-to-image" else arguments.pop("control_image")
    arguments |= {"control_image": images, "control_mode": [modes[kind] for kind in kinds]}
    require_same(through_rest(studio, wish), pixels(family.stock_union(task)(**arguments).images[0]))


def test_an_inpainting_network_sees_what_is_masked(studio: Running, families: dict[str, Family]) -> None:
    """diffusers' recipe for such networks: the picture, and -1 where it is masked."""
    family = families["sd15"]
    wish = wish_for(family, "inpaint", 1) | {
        "control_type": ["inpaint"],
        "control_image": [data_uri(picture())],
        "preprocess": ["auto"],
        "controlnet_model": ["own-sd15"],
    }
    own = family.nets[0].parent / "own"
    own.mkdir(exist_ok=True)
    for file in family.nets[0].iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    if not any(row.spec.id == "own-sd15" for row in studio.service.models.rows()):
        studio.service.models.add(own, id="own-sd15")
    seen = np.asarray(picture(), np.float32) / 255
    seen[np.asarray(mask()) > 127] = -1
    conditioning = torch.from_numpy(seen).permute(2, 0, 1)[None]
    arguments = stock_arguments("inpaint", [conditioning], 1)
    require_same(through_rest(studio, wish), pixels(family.stock("inpaint", 1)(**arguments).images[0]))


def test_a_network_for_another_base_is_one_refusal_with_both_names(
    studio: Running, families: dict[str, Family]
) -> None:
    wish = wish_for(families["sd15"], "text-to-image", 1) | {"controlnet_model": ["canny-sdxl"]}
    before = studio.stored()
    answer = studio.client.post("/api/v1/controlnet/generate", json=wish)
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "canny-sdxl" in message and "tiny-sd15" in message
    assert studio.stored() == before


def test_auto_finds_the_network_by_type_and_the_base_by_the_network(
    studio: Running, families: dict[str, Family]
) -> None:
    """The file's name told that it follows edges; a named network chooses among bases, the best first."""
    wish = wish_for(families["sd15"], "text-to-image", 1)
    answer = studio.client.post(
        "/api/v1/controlnet/generate?wait=120", json=wish | {"controlnet_model": ["auto"]}, timeout=130
    ).json()
    assert answer["request"]["controlnet_model"] == ["canny-sd15"], answer
    answer = studio.client.post(
        "/api/v1/controlnet/generate?wait=120", json=wish | {"model": "auto"}, timeout=130
    ).json()
    assert answer["model"] == "tiny-sd15"


def test_the_answer_holds_the_map_beside_the_picture(studio: Running, families: dict[str, Family]) -> None:
    """Of a photograph edges are drawn; a picture of edges is followed as it is."""
    wish = wish_for(families["sd15"], "text-to-image", 1) | {"preprocess": ["auto"]}
    photo = wish | {"control_image": [data_uri(picture())]}
    for sent, how in ((photo, "drawn"), (wish, "as it is")):
        job = studio.client.post("/api/v1/controlnet/generate?wait=120", json=sent, timeout=130).json()
        assert job["result"]["data"]["controls"][0]["map"] == how
        images = job["result"]["images"]
        assert [image["seed"] for image in images] == [SEED, None]
        shown = studio.client.get(images[1]["url"]).content
        levels = np.unique(pixels(Image.open(io.BytesIO(shown), formats=["PNG"])))
        assert levels.tolist() == [0, 255]


REFUSED = [
    ({"control_type": ["canny", "depth", "depth"]}, "control_type"),
    ({"control_image": []}, "control_image"),
    ({"control_type": ["inpaint"], "preprocess": ["auto"]}, "inpaint"),
    ({"control_guidance_start": [0.9], "control_guidance_end": [0.5]}, "control_guidance_start"),
    ({"mask_image": data_uri(mask())}, "mask_image"),
]


@pytest.mark.parametrize(("change", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_what_could_only_fail_is_refused(
    studio: Running, families: dict[str, Family], change: dict[str, Any], word: str
) -> None:
    wish = wish_for(families["sd15"], "text-to-image", 1) | change
    answer = studio.client.post("/api/v1/controlnet/generate", json=wish)
    assert answer.status_code == 422 and word in str(answer.json()["error"])
