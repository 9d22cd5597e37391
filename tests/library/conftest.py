"""A hub with small repositories, and a library that knows them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save

from app.models.download import Patience
from app.models.library import ModelLibrary
from app.models.spec import Licence, ModelSpec, Recommended
from tests.library.hub_server import HubServer, hub_server

FREE = Licence("MIT", "https://example.org/mit", commercial=True)
LIMITED = Licence("OpenRAIL", "https://example.org/openrail", commercial=True, ask=True)
TASKS = ("text-to-image", "image-to-image", "inpaint")
SIZE = Recommended(4, 1.0, "Euler", 64, 64)

WEIGHTS = "unet/diffusion_pytorch_model.fp16.safetensors"
CATALOG = (
    ModelSpec(
        id="base",
        title="Base",
        kind="checkpoint",
        family="sdxl",
        licence=FREE,
        bytes=1,
        repo="maker/base",
        files=("model_index.json", "tokenizer/*", "unet/config.json", WEIGHTS),
        tasks=TASKS,
        recommended=SIZE,
        parts=("vae",),
        rank=10,
        options={"layout": "diffusers", "variant": "fp16"},
    ),
    ModelSpec(
        id="fast",
        title="Fast",
        kind="checkpoint",
        family="sdxl",
        licence=LIMITED,
        bytes=1,
        repo="maker/fast",
        files=("fast_unet.safetensors",),
        tasks=TASKS,
        recommended=SIZE,
        parts=("base", "vae"),
        rank=20,
        options={"layout": "component", "component": "unet"},
    ),
    ModelSpec(
        id="painter",
        title="Painter",
        kind="checkpoint",
        family="sdxl",
        licence=LIMITED,
        bytes=1,
        repo="maker/painter",
        files=("model_index.json",),
        tasks=("inpaint",),
        rank=5,
        options={"layout": "diffusers"},
    ),
    ModelSpec(
        id="vae",
        title="VAE",
        kind="vae",
        family="sdxl",
        licence=FREE,
        bytes=1,
        repo="maker/vae",
        files=("config.json", "diffusion_pytorch_model.safetensors"),
        options={"layout": "diffusers"},
    ),
)


def weights(seed: int, count: int = 60_000) -> bytes:
    """A real `.safetensors` file of random numbers."""
    return save({"conv_in.weight": numpy.random.default_rng(seed).standard_normal(count, dtype=numpy.float32)})


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The hub, with the repositories of `CATALOG`."""
    with hub_server() as server:
        server.put(
            "maker/base",
            {
                "model_index.json": json.dumps({"_class_name": "StableDiffusionXLPipeline"}).encode(),
                "README.md": b"hello",
                "pickle/weights.bin": b"\x80\x04.",
                "tokenizer/vocab.json": b"{}",
                "tokenizer/merges.txt": b"#version: 0.2\n",
                "tokenizer/run.py": b"print('no')",
                "unet/config.json": b"{}",
                WEIGHTS: weights(1),
                "unet/diffusion_pytorch_model.safetensors": weights(2),
            },
        )
        server.put("maker/fast", {"fast_unet.safetensors": weights(3)})
        server.put("maker/painter", {"model_index.json": b"{}"})
        server.put("maker/vae", {"config.json": b"{}", "diffusion_pytorch_model.safetensors": weights(4)})
        yield server


@pytest.fixture
def library_at(hub: HubServer) -> Callable[..., ModelLibrary]:
    """Make a library in a home folder, with little patience."""

    def make(home: Path, **options: object) -> ModelLibrary:
        patience = Patience(attempts=3, first_wait=0.01, longest_wait=0.5, read_seconds=1.5)
        settings = {"hub_url": hub.url, "trusted_hosts": hub.hosts, "catalog": CATALOG, "patience": patience}
        return ModelLibrary(home, **{**settings, **options})

    return make
