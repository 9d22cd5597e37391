"""Qwen-Image-Edit at work: the stock diffusers pipelines, which let other jobs come in between their steps.

A call holds the device but for the network's forwards, each of which waits for its turn; between two of them the job
may end. Which pipeline serves is plain: with a mask the inpainting one, else the one that the checkpoint was made for.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from app.models import previews
from app.models.adapters import Addition
from app.models.dressed_editing import MULTIPLE, DressedEditor
from app.models.offloading import working_device

AREA = 1024 * 1024
NOTHING = " "
"""What guidance leads away from where nothing is named: without any text there would be no guidance."""
FLAT_SIDE = 32
"""Pixels of the flat pictures from which the preview's colours are fitted."""


class QwenEditor(DressedEditor):
    """One run's hold on an opened Qwen-Image-Edit."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._schedule: Mapping[str, Any] = {}
        self._stock: Any = None
        self._cells = (0, 0)

    @contextmanager
    def wearing(self, additions: Sequence[Addition]) -> Iterator[None]:
        """LoRAs for the calls of the block; one that was distilled brings the schedule that it knows."""
        shifts = [addition.shift for addition in additions if addition.shift is not None]
        self._schedule = schedule_of(shifts[-1]) if shifts else {}
        with super().wearing(additions):
            yield

    @torch.no_grad()
    def __call__(
        self,
        *,
        prompt: str,
        image: Sequence[Image.Image],
        negative_prompt: str | None = None,
        true_cfg_scale: float = 4.0,
        mask_image: Image.Image | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
        **arguments: Any,
    ) -> Any:
        """The stock pipeline's answer, its `.images` PIL RGB; `image` are the pictures, the one to change first.

        With no picture at all the network draws from the words, as Qwen-Image does.
        """
        opened = self._opened
        kind = "inpaint" if mask_image else "plus" if opened.takes_several else "edit"
        stock = opened.view(kind if image else "draw", self._schedule)
        several = opened.takes_several and mask_image is None
        if len(image) > 1 and not (arguments.get("width") or arguments.get("height")):
            # The stock pipeline would take the shape of the last one.
            arguments["width"], arguments["height"] = working_size(image[0].size)
        told = arguments | {
            "prompt": prompt,
            **({"image": list(image) if several else image[0]} if image else {}),
            "true_cfg_scale": true_cfg_scale,
            "negative_prompt": (negative_prompt or NOTHING) if true_cfg_scale > 1 else None,
            **({"mask_image": mask_image} if mask_image else {}),
        }

        def on_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self.num_timesteps = pipeline.num_timesteps
            if callback_on_step_end is not None:
                callback_on_step_end(self, index, timestep, tensors)
            return tensors

        def run() -> Any:
            session = self.session
            with self._batcher.turn(session), previews.watching(stock.scheduler):
                # Now, while the autoencoder is needed anyway: between two steps the network would have to make room.
                previews.remember_colours(opened.vae, colours_of)
                stock.transformer = self._noting_cells(self._batcher.view(opened.transformer, session))
                self._stock = stock
                return stock(**told, callback_on_step_end=on_step)

        return self._relieved(run, arguments["generator"])

    def count_timesteps(self, num_inference_steps: int, strength: float | None = None) -> int:
        """How often a call reports a step; `strength` leaves the first out."""
        if strength is None:
            return num_inference_steps
        return num_inference_steps - int(max(num_inference_steps - num_inference_steps * strength, 0))

    def _noting_cells(self, view: Any) -> Any:
        """The network's view, which remembers how many places down and across the picture has."""
        forward = view.forward

        def noting(*given: Any, img_shapes: Any, **named: Any) -> Any:
            self._cells = img_shapes[0][0][1:]
            return forward(*given, img_shapes=img_shapes, **named)

        view.__dict__["forward"] = noting
        return view

    def preview(self, latents: torch.Tensor) -> Image.Image:
        """What the last step foretells of the finished picture; `latents` [1, places, channels] are packed."""
        foretold = previews.estimate(self._stock.scheduler, latents)
        height, width = (cells * MULTIPLE for cells in self._cells)
        whole = self._stock._unpack_latents(foretold, height, width, MULTIPLE // 2)
        return previews.draw(whole[:, :, 0], self._opened.vae)


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the area that the model draws, in the shape of a picture of this size; multiples of 32."""
    shape = size[0] / size[1]
    width = math.sqrt(AREA * shape)
    return round(width / 32) * 32, round(width / shape / 32) * 32


def schedule_of(shift: float) -> dict[str, Any]:
    """The scheduler's configuration for one shift at every size, to the very end of the noise."""
    return {"base_shift": math.log(shift), "max_shift": math.log(shift), "shift_terminal": None}


def colours_of(vae: Any) -> torch.Tensor:
    """[channels + 1, 3]: the linear map from its normalised latents to colours; the last row is the offset."""
    colours = previews.flat_colours()
    pictures = colours[:, :, None, None, None].expand(-1, -1, 1, FLAT_SIDE, FLAT_SIDE)
    encoded = vae.encode(pictures.to(working_device(vae), vae.dtype)).latent_dist.mode()[:, :, 0].float().cpu()
    mean, deviation = (torch.tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return previews.fit((encoded - mean) / deviation, colours)
