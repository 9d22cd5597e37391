"""From a hub to a picture: what the library pulls by the catalog's own rows, the runtime opens."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, ImageChops

from app.errors import InvalidRequest
from app.models.catalog import CATALOG
from app.models.library import ModelLibrary
from tests.library.hub_server import HubServer, hub_server
from tests.models import tiny_checkpoints as tiny


def publish(hub: HubServer, repo: str, folder: Path, *, variant: bool) -> None:
    """Put a diffusers folder on the hub under the names of the half-precision files."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name.replace(".safetensors", ".fp16.safetensors") if variant else name] = path.read_bytes()
    hub.put(repo, files)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory):
    """A hub with tiny checkpoints in the place of the catalog's real ones."""
    folder = tmp_path_factory.mktemp("published")
    sdxl, other = tiny.make_sdxl(folder / "sdxl"), tiny.make_sdxl(folder / "other", seed=1)
    with hub_server() as server:
        by_id = {spec.id: spec for spec in CATALOG}
        publish(server, by_id["sdxl"].repo, sdxl, variant=True)
        publish(server, by_id["sd15"].repo, tiny.make_sd15(folder / "sd15"), variant=True)
        publish(server, by_id["sdxl-inpainting"].repo, tiny.make_sdxl(folder / "nine", in_channels=9), variant=True)
        publish(server, by_id["sdxl-vae-fp16-fix"].repo, other / "vae", variant=False)
        unet = (other / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        server.put(by_id["sdxl-lightning-4step"].repo, {"sdxl_lightning_4step_unet.safetensors": unet})
        lora = tiny.make_lora_kohya(folder / "lora.safetensors", sdxl, rank=8)
        server.put(by_id["lcm-lora-sdxl"].repo, {"pytorch_lora_weights.safetensors": lora.read_bytes()})
        for name, commit in server.commits.items():
            fixed = next(spec.revision for spec in CATALOG if spec.repo == name)
            server.commits[name] = fixed if fixed != "main" else commit
        yield server


@pytest.fixture(scope="module")
def library(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> ModelLibrary:
    """A library of the catalog's own rows, less the hashes of the real weights."""
    rows = tuple(dataclasses.replace(spec, sha256={}) for spec in CATALOG)
    return ModelLibrary(tmp_path_factory.mktemp("home"), hub_url=hub.url, trusted_hosts=hub.hosts, catalog=rows)


@pytest.fixture(scope="module")
def runtime(library: ModelLibrary):
    import torch

    from app.models.runtime import open_runtime

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # modules this small run slower on several
    opened = open_runtime(
        device="cpu", library=library, precision="float32", model_memory_bytes=10**9, parked_memory_bytes=10**9
    )
    yield opened
    opened.close()
    torch.set_num_threads(threads)


def draw(runtime, model: str, task: str = "text-to-image", loras: tuple = (), **more: object) -> Image.Image:
    with runtime.borrow(model, task=task, loras=loras) as pipeline:
        arguments = {"prompt": "a red car", "num_inference_steps": 2, "guidance_scale": 5.0, "width": 64, "height": 64}
        generator = runtime.generators(7, 1)
        return pipeline(**arguments | more, generator=generator).images[0]


def test_the_catalogs_rows_are_pulled_and_draw(library: ModelLibrary, runtime):
    for model in ("sd15", "sdxl-lightning-4step", "sdxl-inpainting", "lcm-lora-sdxl"):
        library.pull(model, accept_licence=True)
    base, fast = draw(runtime, "sdxl"), draw(runtime, "sdxl-lightning-4step")
    assert base.size == fast.size == (64, 64)
    assert ImageChops.difference(base, fast).getbbox(), "the distilled UNet took the base's place"
    assert draw(runtime, "sd15").size == (64, 64)
    styled = draw(runtime, "sdxl", loras=(SimpleNamespace(model="lcm-lora-sdxl", weight=1.0),))
    assert ImageChops.difference(base, styled).getbbox(), "the LoRA has an effect"
    assert not ImageChops.difference(base, draw(runtime, "sdxl")).getbbox(), "and is off again"
    picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    painted = draw(runtime, "sdxl-inpainting", "inpaint", image=picture, mask_image=mask, strength=1.0)
    assert painted.size == (64, 64)
    with pytest.raises(InvalidRequest):
        draw(runtime, "sdxl-inpainting")


def test_the_vae_part_replaces_the_bases(library: ModelLibrary, runtime):
    import torch
    from safetensors.torch import load_file

    library.pull("sdxl", accept_licence=True)
    with runtime.borrow("sdxl", task="text-to-image") as pipeline:
        found = pipeline.stock.vae.state_dict()["decoder.conv_in.weight"]
    vae = library.require("sdxl-vae-fp16-fix").path
    expected = json.loads((vae / "config.json").read_text())
    assert expected["scaling_factor"] == 0.13025
    weights = load_file(vae / "diffusion_pytorch_model.safetensors")["decoder.conv_in.weight"]
    assert torch.equal(found, weights)
