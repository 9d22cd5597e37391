"""One library of tiny models for all tests here, added as a user adds files, and one runtime on the CPU."""

import gc

import pytest


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Modules this small run faster on one thread than on several that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def short_collections():
    """A device looks for garbage whenever a model moves; it need not look through all that the suite imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """The files as somebody published them: folder `sd15`, `sdxl`, and everything that goes with them."""
    from tests.models import tiny_checkpoints as tiny

    root = tmp_path_factory.mktemp("published")
    sd15, sdxl = tiny.make_sd15(root / "tiny-sd15", 3), tiny.make_sdxl(root / "tiny-sdxl", 4)
    tiny.make_sd15_single_file(root / "single15" / "single-sd15.safetensors", 3)
    tiny.make_sdxl_single_file(root / "singlexl" / "single-sdxl.safetensors", 4)
    for family, checkpoint in (("sd15", sd15), ("sdxl", sdxl)):
        tiny.make_lora_diffusers(root / f"lora-{family}-diffusers.safetensors", checkpoint, 5)
        tiny.make_lora_kohya(root / f"lora-{family}-kohya.safetensors", checkpoint, 6)
    tiny.make_embedding_sd15(root / "moody.safetensors", 7)
    tiny.make_embedding_sd15(root / "long-moody.safetensors", 8, vectors=3)
    tiny.make_embedding_sd15(root / "named.safetensors", 9, token="<cat-toy>")
    tiny.make_embedding_sdxl(root / "moodyxl.safetensors", 10, vectors=2)
    return root


@pytest.fixture(scope="session")
def library(sources, tmp_path_factory):
    """A home folder into which every published file was added."""
    from app.models.library import ModelLibrary

    library = ModelLibrary(tmp_path_factory.mktemp("home"))
    for folder in ("tiny-sd15", "tiny-sdxl"):
        library.add(sources / folder)
    for file in [*sources.glob("single*/*.safetensors"), *sources.glob("*.safetensors")]:
        library.add(file)
    return library


@pytest.fixture(scope="session")
def runtime(library):
    """The CPU in float32, as a worker opens it."""
    from app.models.runtime import open_runtime

    runtime = open_runtime(device="cpu", library=library, precision="float32")
    yield runtime
    runtime.close()
