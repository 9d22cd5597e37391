"""Outpaint: the picture stays the picture, the border is new."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from app.core.outpaint import OutpaintRequest, check
from app.core.outpaint import run as outpaint
from app.errors import TooLarge
from tests.capabilities.studio import noise, pixels

COMMON = {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 5.0, "seed": 7}


def test_every_pixel_of_the_picture_stays(studio, family):
    image = noise((45, 50))
    request = OutpaintRequest(
        **COMMON, model=family, image=studio.put(image), left=11, right=30, bottom=8, num_images_per_prompt=2
    )
    result = outpaint(request, studio)
    steps = studio.steps_reported()
    assert steps == [(number + 1, len(steps)) for number in range(len(steps))]
    for picture in result.images:
        assert picture.size == (86, 58)
        assert (pixels(picture.crop((11, 0, 56, 50))) == pixels(image)).all()
    assert result.images[0].tobytes() != result.images[1].tobytes()
    alone = outpaint(request.model_copy(update={"seed": 8, "num_images_per_prompt": 1}), studio).images[0]
    assert alone.tobytes() == result.images[1].tobytes()


def test_a_seam_changes_only_the_edge(mirrors):
    image = Image.new("RGB", (40, 40), "black")
    result = outpaint(OutpaintRequest(**COMMON, image=mirrors.put(image), right=24, seam=8), mirrors)
    row = pixels(result.images[0])[20, :, 0]
    assert (row[:32] == 0).all() and (row[40:] == 255).all() and (np.diff(row[31:41]) > 0).all()


def test_what_the_model_is_asked_to_paint(mirrors, mirror):
    outpaint(OutpaintRequest(**COMMON, image=mirrors.put(noise((40, 40))), top=24), mirrors)
    mask = pixels(mirror.calls[0]["mask_image"])
    assert mask.shape == (64, 40) and (mask[:24] == 255).all() and (mask[24:] == 0).all()


def test_a_large_picture_is_painted_at_its_border_only(mirrors, mirror):
    image = noise((600, 300))
    result = outpaint(OutpaintRequest(**COMMON, image=mirrors.put(image), right=32), mirrors)
    left, top, right, bottom = result.data["box"]
    assert right == 632 and right - left == 300 and (top, bottom) == (0, 300)
    assert (pixels(result.images[0].crop((0, 0, 600, 300))) == pixels(image)).all()
    assert "128x128" in result.notes[0]


def test_a_wish_that_adds_nothing_is_refused():
    with pytest.raises(ValidationError, match="more than 0"):
        OutpaintRequest(prompt="x", image="a" * 26)


def test_a_canvas_beyond_the_limit_is_refused(mirrors):
    request = OutpaintRequest(**COMMON, image=mirrors.put(Image.new("RGB", (16_000, 20))), top=2048, bottom=2048)
    with pytest.raises(TooLarge, match="64,000,000"):
        check(request, mirrors)
