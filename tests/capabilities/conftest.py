"""Tiny checkpoints in a model library and a real runtime over them, made once for all capability tests."""

from types import SimpleNamespace

import pytest
import torch

from app.core.capability import image_fields
from app.core.submission import Submission
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from tests.capabilities.studio import Mirror, Studio, noise, stock_pipelines
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


@pytest.fixture
def picture():
    """A picture in which no two pixels are alike."""
    return noise((64, 48))


@pytest.fixture
def run_capability(studio, library):
    """Runs a capability as the engine does: pictures are stored, nulls filled at the door. Answers the Result."""
    door = Submission(studio.storage, library, SimpleNamespace(get=lambda reference: None))

    def run(capability, **wish):
        for name, kind in image_fields(capability.request).items():
            if kind == "images":
                wish[name] = [studio.put(image) for image in wish.get(name) or ()]
            elif wish.get(name) is not None:
                wish[name] = studio.put(wish[name], kind)
        prepared = door.prepare(capability, door.read(capability, wish), "")
        return capability.run(capability.request.model_validate(prepared.request), studio)

    return run
