"""Tiny checkpoints in a model library and a real runtime over them, made once for all capability tests."""

import pytest
import torch

from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from tests.capabilities.studio import Mirror, Studio, stock_pipelines
from tests.models.tiny_checkpoints import make_sd15, make_sdxl


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {
        "tiny-sd15": make_sd15(root / "sd15"),
        "tiny-sdxl": make_sdxl(root / "sdxl"),
        "tiny-sd15-inpaint": make_sd15(root / "sd15-inpaint", in_channels=9),
        "tiny-sdxl-inpaint": make_sdxl(root / "sdxl-inpaint", in_channels=9),
    }


@pytest.fixture(scope="session")
def library(checkpoints, tmp_path_factory):
    library = ModelLibrary(tmp_path_factory.mktemp("home"))
    for name, folder in checkpoints.items():
        library.add(folder, id=name)
    return library


@pytest.fixture(scope="session")
def one_thread():
    """Pictures this small lose more by waking threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def runtime(library, one_thread):
    opened = open_runtime(device="cpu", library=library, precision="float32")
    yield opened
    opened.close()


@pytest.fixture(scope="session", params=["tiny-sd15", "tiny-sdxl"])
def family(request):
    return request.param


@pytest.fixture(scope="session")
def stock(family, checkpoints):
    """task -> a stock pipeline, of SD 1.5 and of SDXL."""
    return stock_pipelines(checkpoints[family])


@pytest.fixture
def studio(runtime, library, tmp_path):
    """A Context over the real runtime."""
    return Studio(tmp_path, runtime, library)


@pytest.fixture
def mirror():
    return Mirror()


@pytest.fixture
def mirrors(mirror, tmp_path):
    """A Context whose every pipeline answers the negative."""
    return Studio(tmp_path, mirror)
