"""Diffusion upscale: one part is the stock pipeline's own call on the larger picture; several fade into each other."""

import numpy as np
import pytest
from PIL import Image

from app.core.catalog import find
from app.errors import InvalidRequest
from tests.capabilities.studio import pixels

UPSCALE = find("upscale-diffusion")
WISH = {"model": "tiny-sd15", "prompt": "a cat", "seed": 5, "num_inference_steps": 4, "strength": 0.5}


def test_a_picture_of_one_part_is_image_to_image_of_the_larger_picture(run_capability, picture):
    """Byte for byte."""
    result = run_capability(UPSCALE, image=picture, scale=2, tile_size=128, **WISH)
    larger = picture.resize((128, 96), Image.Resampling.LANCZOS)
    expected = run_capability(find("image-to-image"), image=larger, **WISH)
    assert result.data["tiles"] == 1 and result.images[0].tobytes() == expected.images[0].tobytes()
    assert any("tile ControlNet" in note for note in result.notes) and any("Lanczos" in note for note in result.notes)


def test_every_part_is_drawn_and_its_steps_are_reported(run_capability, studio, picture):
    result = run_capability(UPSCALE, image=picture, scale=3, tile_size=96, tile_overlap=16, **WISH)
    assert result.images[0].size == (192, 144) and result.data["tiles"] == 9
    assert studio.steps_reported()[-1] == (18, 18), "two steps of each of nine parts"
    larger = picture.resize((192, 144), Image.Resampling.LANCZOS)
    assert (np.abs(pixels(result.images[0]) - pixels(larger)).max(-1) > 0).mean() > 0.9
    again = run_capability(UPSCALE, image=picture, scale=3, tile_size=96, tile_overlap=16, **WISH)
    assert again.images[0].tobytes() == result.images[0].tobytes()


def test_what_is_transparent_stays_so(run_capability, picture):
    alpha = Image.linear_gradient("L").resize(picture.size)
    clear = picture.copy()
    clear.putalpha(alpha)
    (image,) = run_capability(UPSCALE, image=clear, scale=2, tile_size=128, **WISH).images
    assert image.getchannel("A").tobytes() == alpha.resize((128, 96), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize(
    ("wish", "error", "said"),
    [
        ({"scale": 5}, InvalidRequest, "scale"),
        ({"strength": 0.1}, InvalidRequest, "leaves no step"),
        ({"tile_size": 60}, InvalidRequest, "tile_size"),
        ({"tile_controlnet": "tiny-sdxl"}, InvalidRequest, "is no ControlNet"),
        ({"image": Image.new("RGB", (4000, 3000)), "scale": 4}, InvalidRequest, "16000x12000"),
    ],
)
def test_what_could_only_fail_is_refused_at_the_door(run_capability, picture, wish, error, said):
    with pytest.raises(error, match=said):
        run_capability(UPSCALE, **{"image": picture, **WISH, **wish})
