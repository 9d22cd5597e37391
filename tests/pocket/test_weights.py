"""The shipped weights: small, stock, quick, and they follow a prompt."""

import json
import time

import pytest

torch = pytest.importorskip("torch")

from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline  # noqa: E402
from PIL import Image  # noqa: E402

from app.pocket import captions, check, classifier, measure, spec, world  # noqa: E402

PROMPTS = (
    "a red car, blue background", "a yellow star on a black background", "a green tree on a white background",
    "a purple fish, orange background", "a white boat on a blue background", "a pink flower against a gray background",
    "a black cat on a yellow background", "a blue mug, pink background", "a cyan bird on a red background",
    "a smiling woman with long brown hair, green background",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline():
    assert (spec.WEIGHTS / "model_index.json").exists(), "the embedded weights are missing from the checkout"
    return check.load(spec.WEIGHTS)


@pytest.fixture(scope="module")
def pictures(pipeline):
    return check.draw(pipeline, list(PROMPTS), 5, spec.NUM_INFERENCE_STEPS, spec.GUIDANCE_SCALE)


def test_the_folder_is_small_and_holds_only_safetensors():
    files = [path for path in spec.WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 60_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    index = json.loads((spec.WEIGHTS / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["tokenizer"] == index["tokenizer_2"] == ["transformers", "CLIPTokenizer"]
    assert spec.LICENCE == "Apache-2.0"


def test_conditioning_is_that_of_sdxl(pipeline):
    assert pipeline.unet.config.addition_embed_type == "text_time"
    assert pipeline.vae_scale_factor == 8 and pipeline.vae.config.latent_channels == 4
    assert not pipeline.vae.config.force_upcast
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    scheduler = pipeline.scheduler.config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr, scheduler.timestep_spacing) == (
        "v_prediction",
        True,
        "trailing",
    )


def test_prompts_are_followed(pictures):
    backgrounds = [
        measure.background_colour(picture) == captions.parse(prompt).background
        for prompt, picture in zip(PROMPTS, pictures, strict=True)
    ]
    assert sum(backgrounds) >= 9
    colours = [
        (found := measure.find(picture)) is not None
        and measure.colour_of(found) == captions.parse(prompt).things[0].colour
        for prompt, picture in zip(PROMPTS[:-1], pictures, strict=False)
    ]
    assert sum(colours) >= 8
    network = classifier.load()
    things = [
        (found := measure.find(picture)) is not None
        and classifier.name_of(network, found) == captions.parse(prompt).things[0].name
        for prompt, picture in zip(PROMPTS[:-1], pictures, strict=False)
    ]
    assert sum(things) >= 8
    assert measure.is_portrait(pictures[-1])


def test_an_unknown_word_changes_little(pipeline):
    plain, with_words = (
        check.draw(pipeline, ["a red car on a blue background"], 1, 8, 3.0),
        check.draw(pipeline, ["a photorealistic red car on a blue background, masterpiece"], 1, 8, 3.0),
    )
    assert measure.background_colour(plain[0]) == measure.background_colour(with_words[0]) == "blue"


@pytest.mark.alone
def test_a_warm_picture_takes_at_most_two_seconds(pipeline):
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine is not the model's
        started = time.monotonic()
        check.draw(pipeline, ["a red car"], 0, spec.NUM_INFERENCE_STEPS, spec.GUIDANCE_SCALE)
        seconds.append(time.monotonic() - started)
    assert min(seconds) <= 2.0


def test_the_autoencoder_keeps_the_picture(pipeline):
    from app.pocket.encoding import to_tensor

    rng = check.rng_of("autoencoder test")
    images = to_tensor([world.draw(world.random_scene(rng)) for _ in range(12)])
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(images).latent_dist.mean).sample
    assert (decoded - images).abs().mean() < 0.045  # of 2: white is 1, black is -1


def test_image_to_image_and_inpaint_work_on_the_same_components(pipeline):
    start = world.draw(world.Scene("blue", (world.Thing("car", "red"),)))
    changed = StableDiffusionXLImg2ImgPipeline(**pipeline.components)
    changed.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    picture = changed(
        "a green car on a blue background",
        image=start,
        strength=0.8,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=generator,
    ).images[0]
    assert picture.size == start.size and measure.background_colour(picture) == "blue"
    mask = Image.new("L", start.size)
    mask.paste(255, (64, 0, 128, 128))
    painted = StableDiffusionXLInpaintPipeline(**pipeline.components)
    painted.set_progress_bar_config(disable=True)
    picture = painted(
        "a red car on a blue background",
        image=start,
        mask_image=mask,
        width=128,
        height=128,
        num_inference_steps=6,
        generator=generator,
    ).images[0]
    assert picture.size == start.size


def test_the_classifier_knows_the_renderers_things():
    assert classifier.held_out_accuracy(classifier.load(), batches=4) >= 0.97


def test_the_check_measures_and_draws_its_sheet(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    check.main(["--prompts", "4", "--steps", "6", "--seed", "11", "--out", str(sheet)])
    assert Image.open(sheet, formats=["PNG"]).width > 1000
    assert "background colour" in capsys.readouterr().out


def test_the_check_scores_the_renderers_own_pictures_as_right():
    tally, network = check.Tally(), classifier.load()
    for number in range(150):
        rng = check.rng_of("own pictures", number)
        scene = world.random_scene(rng)
        prompt = captions.caption(scene, rng)
        tally.add(prompt, world.draw(scene), network)
    assert all(tally.share(question) >= 0.97 for question in check.GOALS)
