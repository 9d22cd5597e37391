"""Every scheduler name finishes on every kind of checkpoint, and where the right answer is known, it lands there."""

import inspect
import typing

import numpy as np
import pytest
import torch

from app.core.fields import SchedulerName
from app.errors import InvalidRequest
from app.models import schedulers

PUBLISHED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
CHECKPOINTS = {
    "sd15": {"_class_name": "PNDMScheduler", **PUBLISHED},
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler",
        **PUBLISHED,
        "timestep_spacing": "leading",
        "prediction_type": "epsilon",
    },
    "zero-snr": {
        "_class_name": "DDIMScheduler",
        **PUBLISHED,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}
NAMES = typing.get_args(SchedulerName)


def test_the_table_holds_exactly_the_names_of_the_requests():
    assert set(schedulers.SCHEDULERS) == set(NAMES)


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("name", NAMES)
def test_with_a_perfect_model_of_a_known_world_it_draws_that_world(name, kind):
    """The data are normal with mean 0.7 and deviation 0.4, so the best prediction is known in closed form."""
    config, mean, deviation = CHECKPOINTS[kind], 0.7, 0.4
    alphas = schedulers.create("DDPM", config).alphas_cumprod.double().clamp(min=schedulers.SMALLEST_ALPHA)
    scheduler = schedulers.create(name, config)
    scheduler.set_timesteps(20)
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 32, 32, generator=draw) * scheduler.init_noise_sigma
    more = {"generator": draw} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(sample, timestep).double()
        below = int(timestep)
        above, part = min(below + 1, 999), float(timestep) - below
        alpha = alphas[below] * (1 - part) + alphas[above] * part
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        shrink = signal * deviation**2 / (alpha * deviation**2 + 1 - alpha)
        clean = mean + shrink * (noisy - signal * mean)
        error = (noisy - signal * clean) / noise
        predicted = signal * error - noise * clean if kind == "zero-snr" else error
        sample = scheduler.step(predicted.float(), timestep, sample, return_dict=False, **more)[0]
    assert torch.isfinite(sample).all()
    assert sample.mean().item() == pytest.approx(mean, abs=0.05)
    assert 0.2 < sample.std().item() < 0.5


@pytest.mark.parametrize("steps", [8, 25])
def test_from_the_first_sigma_on_it_is_k_diffusions_own_sampler(steps):
    """dpmpp_2m on Karras' sigmas in plain words, with a model that is any smooth function of its input and time."""
    scheduler = schedulers.create("DPM++ 2M Karras", CHECKPOINTS["sdxl"])
    cumulative = scheduler.alphas_cumprod.double()
    known = ((1 - cumulative) / cumulative).sqrt()
    ends = known[[-1, 0]] ** (1 / 7)
    sigmas = (ends[0] + torch.linspace(0, 1, steps, dtype=torch.float64) * (ends[1] - ends[0])) ** 7
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def predicted(sample, timestep):
        return torch.tanh(1.7 * sample + timestep / 900) * 0.9

    wanted, before = noise * sigmas[0], None
    for number in range(steps):
        sigma, after = sigmas[number], sigmas[number + 1]
        timestep = (known.log() - sigma.log()).abs().argmin()
        clean = wanted - sigma * predicted(wanted / (1 + sigma**2).sqrt(), timestep)
        if before is None or after == 0:
            mixed = clean
        else:
            # The last step's length over this one's, in log sigma.
            ratio = (sigmas[number - 1] / sigma).log() / (sigma / after).log()
            mixed = clean + (clean - before) / (2 * ratio)
        wanted, before = after / sigma * wanted + (1 - after / sigma) * mixed, clean

    def drawn(scheduler):
        scheduler.set_timesteps(steps)
        sample = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            sample = scheduler.step(predicted(sample, timestep), timestep, sample, return_dict=False)[0]
        return sample

    apart = {"stock": (drawn(scheduler) - wanted).norm() / wanted.norm()}
    scheduler = schedulers.create("DPM++ 2M Karras", CHECKPOINTS["sdxl"])
    schedulers.start_at_sigma(scheduler)
    assert scheduler.init_noise_sigma == pytest.approx(0.99767, abs=1e-5)
    apart["ours"] = (drawn(scheduler) - wanted).norm() / wanted.norm()
    assert apart["ours"] < 1e-5 and apart["stock"] > 20 * apart["ours"], apart


def test_no_other_scheduler_begins_at_its_sigma():
    for name in NAMES:
        scheduler = schedulers.create(name, CHECKPOINTS["sdxl"])
        before = scheduler.init_noise_sigma
        schedulers.start_at_sigma(scheduler)
        assert (float(scheduler.init_noise_sigma) == float(before)) is (name != "DPM++ 2M Karras"), name


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_name_draws_a_picture(runtime, family):
    drawn = {}
    for name in NAMES:
        with runtime.borrow(f"tiny-{family}", task="text-to-image", scheduler=name) as pipeline:
            image = pipeline(
                prompt="a red car", width=64, height=64, num_inference_steps=3, generator=runtime.generators(1, 1)
            ).images[0]
            assert pipeline.num_inference_timesteps == pipeline.count_timesteps(3)
        pixels = np.asarray(image)
        assert 5 < pixels.mean() < 250 and pixels.std() > 5, name
        drawn[name] = pixels.tobytes()
    assert len(set(drawn.values())) >= 10


def test_the_checkpoints_own_schedule_is_kept():
    for name in NAMES:
        scheduler = schedulers.create(name, CHECKPOINTS["zero-snr"])
        assert scheduler.config.prediction_type == "v_prediction"
        assert scheduler.config.get("timestep_spacing", "trailing") == "trailing"
        assert scheduler.alphas_cumprod[-1] < 1e-6, f"{name} does not start from pure noise"
        assert not scheduler.config.get("clip_sample", False)
    published = schedulers.create("DPM++ 2M", CHECKPOINTS["sdxl"])
    assert published.alphas_cumprod[-1] > 1e-3
    assert published.config.timestep_spacing == "leading"


def test_the_names_of_noise_schedules_replace_the_checkpoints_own():
    config = {**CHECKPOINTS["sdxl"], "use_karras_sigmas": True}
    assert not schedulers.create("DPM++ 2M", config).config.use_karras_sigmas
    assert schedulers.create("DPM++ 2M Karras", config).config.use_karras_sigmas
    assert not schedulers.create("Euler", config).config.use_karras_sigmas


def test_no_name_is_the_checkpoints_own_scheduler_and_overrides_reach_it():
    assert type(schedulers.create(None, CHECKPOINTS["sd15"])).__name__ == "PNDMScheduler"
    assert schedulers.create("Euler", CHECKPOINTS["sdxl"], timestep_spacing="trailing").config.timestep_spacing == (
        "trailing"
    )


def test_every_borrow_has_a_scheduler_of_its_own(runtime):
    with (
        runtime.borrow("tiny-sd15", task="text-to-image", scheduler="Euler") as one,
        runtime.borrow("tiny-sd15", task="inpaint", scheduler="Euler") as other,
    ):
        assert one.stock.unet is other.stock.unet
        assert one.stock.scheduler is not other.stock.scheduler


def test_unknown_names_and_impossible_step_counts_are_told(runtime):
    with pytest.raises(InvalidRequest, match="no scheduler named 'Nope'; there are: DDIM"):
        schedulers.create("Nope", CHECKPOINTS["sd15"])
    with runtime.borrow("tiny-sd15", task="text-to-image", scheduler="LCM") as pipeline:
        assert pipeline.count_timesteps(8) == 8
        with pytest.raises(InvalidRequest, match="at most 50 steps, not 60"):
            pipeline(prompt="x", width=64, height=64, num_inference_steps=60)


def test_steps_are_counted_as_they_will_run(runtime):
    picture = torch.zeros(1, 3, 64, 64)
    for name in ("Euler", "Heun", "DPM2", "PNDM", "DDIM"):
        with runtime.borrow("tiny-sd15", task="image-to-image", scheduler=name) as pipeline:
            ran = []

            def count(stock, index, timestep, tensors, ran=ran):
                ran.append(index)
                return tensors

            arguments = {"num_inference_steps": 5, "strength": 0.61}
            pipeline(prompt="x", image=picture, callback_on_step_end=count, **arguments)
            assert len(ran) == pipeline.count_timesteps(**arguments), name


def test_less_than_one_step_is_refused(runtime):
    picture = torch.zeros(1, 3, 64, 64)
    with (
        runtime.borrow("tiny-sd15", task="image-to-image", scheduler="DDIM") as pipeline,
        pytest.raises(InvalidRequest, match=r"5 steps at strength 0\.1 are less than one step"),
    ):
        pipeline(prompt="x", image=picture, num_inference_steps=5, strength=0.1)
