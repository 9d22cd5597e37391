"""What the tests of trainers share: the module's own `folder` as the one model, its runtime, pictures and a plan."""

import numpy as np
import pytest
from PIL import Image

from app.core.training_fields import TrainingPlan
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime

PLAN = TrainingPlan(resolution=64, seed=11, rank=4, lora_alpha=8.0, learning_rate=1e-2, max_train_steps=6)


@pytest.fixture(scope="module")
def library(folder, tmp_path_factory):
    library = ModelLibrary(tmp_path_factory.mktemp("home"))
    library.add(folder, id="tiny")
    return library


@pytest.fixture(scope="module")
def runtime(library):
    opened = open_runtime(device="cpu", library=library, precision="float32")
    yield opened
    opened.close()


def pictures(seed=3):
    chance = np.random.default_rng(seed)
    sizes = [(64, 64), (96, 64), (80, 80)]
    return [Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]
