"""Live previews through the real Context, Runtime and pipelines: what is becoming of the picture, not its noise."""

from types import SimpleNamespace

import pytest
import torch

from app.core.text_to_image import TextToImageRequest
from app.core.text_to_image import run as text_to_image
from app.models import previews
from tests.capabilities.studio import pixels

COMMON = {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 5.0, "seed": 7}


@pytest.mark.parametrize("scheduler", ["Euler", "DPM++ 2M Karras", "PNDM"])
def test_whoever_watches_sees_what_becomes_of_the_noise(studio, monkeypatch, scheduler):
    """Each step's preview is of what the step foretells, not of its noisy latents, and changes no pixel."""
    monkeypatch.setattr("app.core.context.time", SimpleNamespace(monotonic=lambda: 0.0))
    monkeypatch.setattr("app.core.context.PREVIEW_SECONDS", 0.0)
    request = TextToImageRequest(**COMMON, model="tiny-sd15", scheduler=scheduler, width=64, height=64)
    alone = text_to_image(request, studio).images[0]
    assert {kind for kind, _ in studio.reports} == {"step"}
    steps = len(studio.steps_reported())
    shown, noisy = [], []
    draw, on_step = previews.preview, studio.on_step
    monkeypatch.setattr(previews, "preview", lambda vae, latents: (shown.append(latents), draw(vae, latents))[1])
    studio.on_step = lambda *told: (noisy.append(told[3]["latents"]), on_step(*told))[1]
    studio._previewed.set()
    assert (pixels(text_to_image(request, studio).images[0]) == pixels(alone)).all()
    pictures = [data["image"] for kind, data in studio.reports if kind == "preview"]
    assert len(pictures) == len(shown) == len(noisy) == steps
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)
    assert not any(torch.equal(*pair) for pair in zip(shown[:-1], noisy[:-1], strict=True))
