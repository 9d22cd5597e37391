"""Inpaint: the stock pipeline's picture inside the mask, the input's bytes outside it."""

import numpy as np
import pytest
from diffusers import AutoPipelineForInpainting
from PIL import Image

from app.core.inpaint import InpaintRequest, check
from app.core.inpaint import run as inpaint
from app.errors import InvalidRequest
from tests.capabilities.studio import block, noise, pixels, seeded

COMMON = {"prompt": "a red car", "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 7}
BY_HAND = {"prompt": "a red car", "num_inference_steps": 4, "guidance_scale": 5.0}


def wish(studio, image, mask, **more):
    return InpaintRequest(**COMMON | {"image": studio.put(image), "mask_image": studio.put(mask, "mask")} | more)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_whole_picture_equals_the_stock_pipelines_before_it_is_laid_over(studio, stock, family, strength):
    image, mask = noise((64, 48)), block((64, 48), (13, 5, 47, 30))
    more = {"padding_mask_crop": None, "num_images_per_prompt": 2}
    request = wish(studio, image, mask, strength=strength, model=family, **more)
    raw = inpaint(request.model_copy(update={"overlay": False}), studio)
    steps = studio.steps_reported()
    assert steps == [(number + 1, len(steps)) for number in range(len(steps))]
    sharp = inpaint(request.model_copy(update={"mask_blur": 0}), studio)
    for seed, picture, laid_over in zip([7, 8], raw.images, sharp.images, strict=True):
        by_hand = stock["inpaint"](
            **BY_HAND, image=image, mask_image=mask, width=64, height=48, strength=strength, generator=seeded(seed)
        ).images[0]
        assert (pixels(picture) == pixels(by_hand)).all()
        assert (pixels(laid_over) == np.where(pixels(mask)[..., None] > 0, pixels(by_hand), pixels(image))).all()


@pytest.mark.parametrize("padding", [None, 0, 32])
@pytest.mark.parametrize(("blur", "size"), [(0, (64, 64)), (4, (61, 83)), (4, (200, 90))])
def test_outside_the_mask_the_bytes_are_the_inputs(studio, family, padding, blur, size):
    image, mask = noise(size), block(size, (21, 17, 40, 41))
    result = inpaint(wish(studio, image, mask, padding_mask_crop=padding, mask_blur=blur, model=family), studio)
    outside = pixels(mask) == 0
    painted = result.images[0]
    assert painted.size == size
    assert (pixels(painted)[outside] == pixels(image)[outside]).all()
    inside = np.abs(pixels(painted) - pixels(image))[pixels(mask) == 255]
    assert (inside.max(axis=-1) > 0).mean() > 0.8


@pytest.mark.parametrize(("steps", "strength"), [(1, 1.0), (4, 1.0), (9, 1.0), (10, 0.99), (30, 0.99)])
def test_no_strength_said_repaints_wholly_also_in_few_steps(studio, stock, family, steps, strength):
    image, mask = noise((64, 64)), block((64, 64), (16, 8, 40, 48))
    more = {"num_inference_steps": steps, "model": family, "padding_mask_crop": None, "overlay": False}
    request = wish(studio, image, mask, **more)
    assert request.strength == request.model_dump(mode="json")["strength"] == strength
    check(request, studio)
    result = inpaint(request, studio)
    assert result.notes == [] and studio.steps_reported()[-1][0] >= int(strength * steps)
    by_hand = stock["inpaint"](
        **BY_HAND | {"num_inference_steps": steps},
        image=image,
        mask_image=mask,
        width=64,
        height=64,
        strength=strength,
        generator=seeded(7),
    ).images[0]
    assert (pixels(result.images[0]) == pixels(by_hand)).all()


def test_no_strength_said_waits_for_the_steps(studio):
    image, mask = noise((64, 64)), block((64, 64), (16, 8, 40, 48))
    waiting = wish(studio, image, mask, num_inference_steps=None)
    assert waiting.strength is None
    assert wish(studio, image, mask, num_inference_steps=None, strength=0.5).strength == 0.5
    assert InpaintRequest.model_validate(waiting.model_dump() | {"num_inference_steps": 4}).strength == 1.0


def test_steps_that_a_strength_leaves_out_are_said(mirrors):
    image, mask = noise((64, 64)), block((64, 64), (16, 8, 40, 48))
    notes = inpaint(wish(mirrors, image, mask, strength=0.99), mirrors).notes
    assert len(notes) == 1 and "strength 0.99 leaves 3" in notes[0] and "0.75" in notes[0]
    assert inpaint(wish(mirrors, image, mask, strength=0.8), mirrors).notes == []


def test_a_part_larger_than_the_models_size_keeps_its_pixels_as_far_as_the_model_works_well(mirrors, mirror):
    image = noise((400, 400))
    for side, worked_on, said in ((100, 100, False), (128, 128, False), (200, 128, True)):
        box = (50, 50, 50 + side, 50 + side)
        result = inpaint(wish(mirrors, image, block((400, 400), box), padding_mask_crop=0), mirrors)
        assert result.data["box"] == list(box)
        assert result.data["work_size"] == [worked_on, worked_on]
        assert bool(result.notes) is said
        if side == 100:
            assert (pixels(mirror.calls[-1]["image"])[:100, :100] == pixels(image)[50:150, 50:150]).all()
    assert "200x200" in result.notes[0] and "128x128" in result.notes[0]


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("size", [(61, 43), (64, 64), (5, 9)])
def test_nothing_shifts(mirrors, mirror, padding, size):
    """A pipeline that answers the negative must leave the negative exactly where the mask is."""
    image, mask = noise(size), block(size, (0, 0, 4, 7))
    mirror.default_size = (64, 64)
    result = inpaint(wish(mirrors, image, mask, padding_mask_crop=padding, mask_blur=0), mirrors)
    if padding is None:
        expected = np.where(pixels(mask)[..., None] > 0, 255 - pixels(image), pixels(image))
        assert (pixels(result.images[0]) == expected).all()
    for call in mirror.calls:
        assert call["image"].size == call["mask_image"].size == (call["width"], call["height"])


def test_the_part_around_the_mask_is_worked_on_at_the_models_size(mirrors, mirror):
    image, mask = noise((400, 300)), block((400, 300), (100, 100, 140, 120))
    result = inpaint(wish(mirrors, image, mask, padding_mask_crop=10), mirrors)
    assert result.data == {"box": [90, 80, 150, 140], "work_size": [64, 64]}
    handed = mirror.calls[0]
    assert handed["image"].size == (64, 64)
    expected = image.crop((90, 80, 150, 140)).resize((64, 64), Image.Resampling.LANCZOS)
    assert (pixels(handed["image"]) == pixels(expected)).all()
    assert 255 in pixels(handed["mask_image"])[20:40, 20:40] and pixels(handed["mask_image"])[:8].max() == 0


def test_at_the_edge_of_a_narrow_picture_the_shape_is_kept(mirrors, mirror):
    image, mask = noise((400, 50)), block((400, 50), (390, 0, 400, 50))
    result = inpaint(wish(mirrors, image, mask, padding_mask_crop=32), mirrors)
    left, top, right, bottom = result.data["box"]
    assert (top, right, bottom) == (0, 400, 50) and right - left == 50
    width, height = result.data["work_size"]
    assert (width, height) == (64, 64)


def test_the_fade_lies_inside_the_mask(mirrors):
    image, mask = Image.new("RGB", (64, 64), "black"), block((64, 64), (16, 16, 48, 48))
    result = inpaint(wish(mirrors, image, mask, padding_mask_crop=None, mask_blur=4), mirrors)
    row = pixels(result.images[0])[32, :, 0]
    assert (row[:16] == 0).all() and (row[48:] == 0).all() and (row[20:44] == 255).all()
    assert (np.diff(row[15:21]) > 0).all()


@pytest.mark.parametrize("model", ["tiny-sd15-inpaint", "tiny-sdxl-inpaint"])
def test_an_inpainting_checkpoint_of_nine_channels(studio, checkpoints, model):
    image, mask = noise((64, 64)), block((64, 64), (16, 8, 40, 48))
    by_hand = AutoPipelineForInpainting.from_pretrained(checkpoints[model], local_files_only=True)
    expected = by_hand(
        **BY_HAND, image=image, mask_image=mask, width=64, height=64, strength=1.0, generator=seeded(7)
    ).images[0]
    whole = wish(studio, image, mask, model=model, strength=1.0, padding_mask_crop=None, overlay=False)
    assert (pixels(inpaint(whole, studio).images[0]) == pixels(expected)).all()
    part = inpaint(wish(studio, image, mask, model=model, padding_mask_crop=4), studio).images[0]
    assert (pixels(part)[pixels(mask) == 0] == pixels(image)[pixels(mask) == 0]).all()
    assert (pixels(part) != pixels(image)).any()


def test_an_empty_mask_is_refused(studio):
    image = noise((64, 64))
    for grey in (0, 100):
        with pytest.raises(InvalidRequest, match="no white"):
            check(wish(studio, image, Image.new("L", (64, 64), grey), model="tiny-sdxl"), studio)


def test_a_stroke_that_the_model_would_not_see_is_refused_or_worked_on_closely(studio):
    image, mask = noise((64, 64)), block((64, 64), (9, 0, 11, 64))
    with pytest.raises(InvalidRequest, match="padding_mask_crop"):
        inpaint(wish(studio, image, mask, padding_mask_crop=None, model="tiny-sdxl"), studio)
    result = inpaint(wish(studio, image, mask, padding_mask_crop=8, mask_blur=0, model="tiny-sdxl"), studio)
    changed = np.abs(pixels(result.images[0]) - pixels(image)).max(axis=-1) > 0
    assert changed[:, 9:11].mean() > 0.9 and not changed[:, :9].any() and not changed[:, 11:].any()


def test_a_picture_too_large_for_the_model_is_said(mirrors):
    image, mask = noise((400, 300)), block((400, 300), (100, 100, 240, 220))
    result = inpaint(wish(mirrors, image, mask, padding_mask_crop=None), mirrors)
    assert "400x300" in result.notes[0] and "147x110" in result.notes[0]
    assert (pixels(result.images[0])[pixels(mask) == 0] == pixels(image)[pixels(mask) == 0]).all()


def test_a_white_mask_repaints_everything(studio, stock, family):
    image, mask = noise((64, 64)), Image.new("L", (64, 64), 255)
    result = inpaint(wish(studio, image, mask, strength=1.0, model=family), studio)
    by_hand = stock["inpaint"](
        **BY_HAND,
        image=image,
        mask_image=mask,
        width=64,
        height=64,
        strength=1.0,
        generator=seeded(7),
    ).images[0]
    assert (pixels(result.images[0]) == pixels(by_hand)).all(), "no fade at the picture's own edge"
