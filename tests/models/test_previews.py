"""Previews are cheap and show the colours that the decoder will show."""

import inspect
import time

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from app.models import previews, schedulers
from tests.models.tiny_checkpoints import PUBLISHED_SCHEDULE


@pytest.fixture(scope="module")
def colour_vae():
    """A small autoencoder whose encoder and decoder were set by hand: it carries the mean colour, in odd units."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.7,
    ).eval()
    mixing = torch.tensor([[1.0, 0.2, 0.0], [0.0, 1.0, -0.4], [0.5, 0.0, 1.0], [0.3, 0.3, 0.3]])

    class Encode(torch.nn.Module):
        def forward(self, pictures):
            small = torch.nn.functional.avg_pool2d(pictures, 2)
            mean = torch.einsum("lc,bchw->blhw", mixing, small) + 0.25
            return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)

    vae.encoder = Encode()
    vae.quant_conv = torch.nn.Identity()
    return vae


def encoded(vae, picture):
    with torch.no_grad():
        return vae.encode(picture).latent_dist.mean * vae.config.scaling_factor


def test_a_fitted_map_gives_the_colours_back(colour_vae):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    picture = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(picture, 8), size=(32, 32), mode="nearest"
    )
    image = previews.preview(colour_vae, encoded(colour_vae, picture))
    assert image.mode == "RGB"
    assert image.size == (256, 256)
    shown = np.asarray(image.resize((32, 32))).astype(float) / 127.5 - 1
    wanted = picture[0].movedim(0, -1).numpy()
    assert np.abs(shown - wanted).mean() < 0.08
    assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.98


def test_noise_of_any_scale_is_shown(colour_vae):
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    one, other = previews.preview(colour_vae, latents), previews.preview(colour_vae, latents * 4096)
    assert np.asarray(one).std() > 20
    assert np.asarray(other).std() > 20


@pytest.mark.parametrize(("scaling", "expected"), [(0.18215, previews.SD15_MAP), (0.13025, previews.SDXL_MAP)])
def test_published_autoencoders_have_known_maps(scaling, expected):
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=tuple(previews.PUBLISHED_CHANNELS),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            scaling_factor=scaling,
        )
    previews.preview(vae, torch.zeros(1, 4, 8, 8))
    assert torch.equal(previews._colour_map(vae), torch.tensor(expected))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", schedulers.SCHEDULERS)
def test_every_step_foretells_the_finished_latents(name, prediction_type):
    """A model that knows the picture: whatever the noise, each step's estimate is that picture."""
    scheduler = schedulers.create(name, {**PUBLISHED_SCHEDULE, "prediction_type": prediction_type})
    draw = torch.Generator().manual_seed(3)
    finished = torch.randn(1, 4, 8, 8, generator=draw)
    scheduler.set_timesteps(8)
    sample = torch.randn(1, 4, 8, 8, generator=draw) * scheduler.init_noise_sigma
    cumulative = scheduler.alphas_cumprod.double().numpy()
    plain = inspect.signature(scheduler.step)
    with previews.watching(scheduler):
        assert inspect.signature(scheduler.step) == plain
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(sample, timestep)
            sigma = np.interp(float(timestep), range(1000), ((1 - cumulative) / cumulative) ** 0.5)
            kept = 1 / (sigma**2 + 1)
            noise = (seen - kept**0.5 * finished) / (1 - kept) ** 0.5
            said = noise if prediction_type == "epsilon" else kept**0.5 * noise - (1 - kept) ** 0.5 * finished
            before, sample = sample, scheduler.step(said.float(), timestep, sample, return_dict=False)[0]
            foretold = previews.estimate(scheduler, sample)
            assert (foretold - finished).abs().mean() < 0.12
            assert foretold.shape == before.shape
    assert previews.estimate(scheduler, sample) is sample
    assert "step" not in vars(scheduler)


@pytest.mark.alone
def test_a_preview_of_a_large_picture_takes_less_than_fifteen_milliseconds(runtime):
    with runtime.borrow("tiny-sdxl", task="text-to-image") as pipeline:
        latents = torch.randn(1, 4, 128, 128)
        runtime.preview(pipeline, latents)
        taken = []
        for _ in range(9):
            start = time.process_time()
            image = runtime.preview(pipeline.stock, latents)
            taken.append(time.process_time() - start)
    assert image.size == (256, 256)
    assert min(taken) < 0.015
