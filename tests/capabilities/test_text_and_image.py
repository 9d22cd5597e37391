"""Text to image and image to image: the stock pipelines' pictures, each reproducible alone."""

import pytest
from PIL import Image

from app.core.image_to_image import ImageToImageRequest
from app.core.image_to_image import check as check_image_to_image
from app.core.image_to_image import run as image_to_image
from app.core.text_to_image import TextToImageRequest
from app.core.text_to_image import check as check_text_to_image
from app.core.text_to_image import run as text_to_image
from app.errors import InvalidRequest, JobCancelled, TooLarge
from tests.capabilities.studio import noise, pixels, seeded

COMMON = {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 5.0, "seed": 2**32 - 2}
BY_HAND = {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 5.0}


def test_pictures_equal_the_stock_pipelines_and_each_is_reproducible_alone(studio, stock, family):
    request = TextToImageRequest(**COMMON, model=family, num_images_per_prompt=3, width=96, height=64)
    result = text_to_image(request, studio)
    assert result.seeds == [2**32 - 2, 2**32 - 1, 0]
    steps = studio.steps_reported()
    assert steps == [(number + 1, len(steps)) for number in range(len(steps))]
    for image, seed in zip(result.images, result.seeds, strict=True):
        alone = text_to_image(request.model_copy(update={"seed": seed, "num_images_per_prompt": 1}), studio).images
        by_hand = stock["text-to-image"](**BY_HAND, width=96, height=64, generator=seeded(seed)).images
        assert (pixels(image) == pixels(alone[0])).all() and (pixels(image) == pixels(by_hand[0])).all()
    assert len({image.tobytes() for image in result.images}) == 3


def test_no_negative_prompt_and_an_empty_one_are_each_what_stock_makes_of_them(studio, stock, family):
    """SDXL was trained with zeros in the place of no negative prompt; the words "" are another thing to it."""
    drawn = {}
    for negative in (None, ""):
        request = TextToImageRequest(**COMMON, model=family, width=64, height=64, negative_prompt=negative)
        ours = text_to_image(request, studio).images[0]
        by_hand = stock["text-to-image"](
            **BY_HAND, negative_prompt=negative, width=64, height=64, generator=seeded(COMMON["seed"])
        ).images[0]
        assert (pixels(ours) == pixels(by_hand)).all()
        drawn[negative] = ours.tobytes()
    assert (drawn[None] == drawn[""]) is (family == "tiny-sd15")


@pytest.mark.parametrize("scheduler", ["Euler", "Heun", "PNDM", "DPM++ 2M Karras", "DPM2 a", "LMS", "UniPC"])
def test_progress_counts_to_its_end_with_every_kind_of_scheduler(studio, scheduler):
    request = TextToImageRequest(
        **COMMON,
        model="tiny-sd15",
        scheduler=scheduler,
        width=64,
        height=64,
        second_pass_scale=1,
        num_images_per_prompt=2,
    )
    text_to_image(request, studio)
    steps = studio.steps_reported()
    assert steps == [(number + 1, len(steps)) for number in range(len(steps))]


def test_the_second_pass_is_image_to_image_over_the_enlarged_first(studio, stock, family):
    request = TextToImageRequest(
        **COMMON,
        model=family,
        num_images_per_prompt=2,
        width=64,
        height=64,
        second_pass_scale=1.4,
        second_pass_strength=0.7,
    )
    result = text_to_image(request, studio)
    assert [image.size for image in result.images] == [(96, 96)] * 2
    assert "64x64" in result.notes[0] and "96x96" in result.notes[0]
    for image, seed in zip(result.images, result.seeds, strict=True):
        first = stock["text-to-image"](**BY_HAND, width=64, height=64, generator=seeded(seed)).images[0]
        enlarged = first.resize((96, 96), Image.Resampling.LANCZOS)
        second = stock["image-to-image"](**BY_HAND, image=enlarged, strength=0.7, generator=seeded(seed)).images[0]
        assert (pixels(image) == pixels(second)).all()


def test_a_second_pass_may_have_its_own_steps(studio):
    request = TextToImageRequest(
        **COMMON,
        model="tiny-sdxl",
        scheduler="Euler",
        width=64,
        height=64,
        second_pass_scale=1,
        second_pass_steps=10,
    )
    text_to_image(request, studio)
    assert studio.steps_reported()[-1] == (3 + 5, 3 + 5)


def test_a_second_pass_beyond_the_limit_is_refused(studio):
    request = TextToImageRequest(**COMMON, model="tiny-sdxl", width=4096, height=4096, second_pass_scale=2)
    for refuse in (check_text_to_image, text_to_image):
        with pytest.raises(TooLarge, match="8192x8192"):
            refuse(request, studio)
    assert studio.steps_reported() == []


def test_additions_and_the_model_are_asked_for(mirrors, mirror):
    mirror.default_size = (64, 64)
    image = mirrors.put(noise((64, 64)))
    request = ImageToImageRequest(
        **COMMON,
        image=image,
        model="mine",
        loras=[{"model": "style", "weight": 0.5}],
        textual_inversions=["neg"],
        scheduler="DDIM",
        vae_tiling=True,
        clip_skip=2,
        negative_prompt="blurry",
    )
    image_to_image(request, mirrors)
    additions = {"loras": request.loras, "textual_inversions": ("neg",), "scheduler": "DDIM", "vae_tiling": True}
    assert mirrors.borrowed == [("mine", {"task": "image-to-image", "attachments": (), **additions})]
    told = {name: mirror.calls[0][name] for name in ("prompt", "negative_prompt", "clip_skip", "num_inference_steps")}
    assert told == {"prompt": "a red car", "negative_prompt": "blurry", "clip_skip": 2, "num_inference_steps": 3}


def test_image_to_image_equals_the_stock_pipeline(studio, stock, family):
    image = noise((64, 48))
    request = ImageToImageRequest(
        **COMMON, model=family, image=studio.put(image), strength=0.7, num_images_per_prompt=2
    )
    result = image_to_image(request, studio)
    steps = studio.steps_reported()
    assert result.notes == [] and steps == [(number + 1, len(steps)) for number in range(len(steps))]
    for picture, seed in zip(result.images, result.seeds, strict=True):
        by_hand = stock["image-to-image"](**BY_HAND, image=image, strength=0.7, generator=seeded(seed)).images[0]
        assert (pixels(picture) == pixels(by_hand)).all()


@pytest.mark.parametrize("size", [(61, 43), (1, 1), (64, 65), (7, 120)])
def test_any_size_comes_back_unshifted(mirrors, size):
    image = noise(size)
    result = image_to_image(ImageToImageRequest(**COMMON, image=mirrors.put(image), strength=1.0), mirrors)
    assert (pixels(result.images[0]) == 255 - pixels(image)).all() and result.notes == []


def test_a_picture_too_large_is_scaled_and_the_answer_says_so(mirrors):
    image = Image.linear_gradient("L").convert("RGB").resize((300, 200))
    result = image_to_image(ImageToImageRequest(**COMMON, image=mirrors.put(image)), mirrors)
    assert result.images[0].size == (156, 104) and 156 * 104 <= 4 * 64 * 64
    assert "300x200" in result.notes[0] and "156x104" in result.notes[0]
    small = image.resize((156, 104), Image.Resampling.LANCZOS)
    assert (255 - pixels(result.images[0]) == pixels(small)).all()


@pytest.mark.parametrize(
    ("asked", "size"),
    [({"width": 64}, (64, 128)), ({"height": 64}, (32, 64)), ({"width": 128, "height": 64}, (128, 64))],
)
def test_another_size_may_be_asked_for(mirrors, asked, size):
    request = ImageToImageRequest(**COMMON, image=mirrors.put(noise((50, 100))), **asked)
    assert image_to_image(request, mirrors).images[0].size == size


def test_a_size_that_the_model_cannot_make_is_refused(mirrors, mirror):
    mirror.size_multiple = 32
    with pytest.raises(InvalidRequest, match="multiples of 32"):
        text_to_image(TextToImageRequest(**COMMON, width=72, height=64), mirrors)
    with pytest.raises(InvalidRequest, match="multiples of 32"):
        image_to_image(ImageToImageRequest(**COMMON, image=mirrors.put(noise((50, 100))), width=72), mirrors)


def test_a_shape_that_grows_beyond_the_limit_is_refused(mirrors):
    request = ImageToImageRequest(**COMMON, image=mirrors.put(Image.new("RGB", (4000, 10))), height=4096)
    for refuse in (check_image_to_image, image_to_image):
        with pytest.raises(TooLarge, match="16,777,216 pixels"):
            refuse(request, mirrors)


def test_a_strength_that_leaves_no_step_is_refused(studio):
    with pytest.raises(InvalidRequest, match="leaves no step"):
        check_image_to_image(ImageToImageRequest(**COMMON, image=studio.put(noise((8, 8))), strength=0.3), studio)
    second = {"second_pass_scale": 2, "second_pass_strength": 0.5}
    with pytest.raises(InvalidRequest, match="leaves no step"):
        check_text_to_image(TextToImageRequest(**COMMON, **second, second_pass_steps=1), studio)


def test_steps_that_a_strength_leaves_out_are_said(mirrors):
    image = mirrors.put(noise((64, 64)))
    notes = image_to_image(ImageToImageRequest(**COMMON, image=image, strength=0.6), mirrors).notes
    assert len(notes) == 1 and "strength 0.6 leaves 1" in notes[0] and "0.33" in notes[0]
    assert image_to_image(ImageToImageRequest(**COMMON, image=image, strength=0.7), mirrors).notes == []


def test_cancelling_stops_within_the_step(studio):
    studio._report = lambda kind, data: (studio.reports.append((kind, data)), studio.cancelled.set())
    with pytest.raises(JobCancelled):
        text_to_image(TextToImageRequest(**COMMON, model="tiny-sd15", width=64, height=64), studio)
    assert len(studio.steps_reported()) == 1
