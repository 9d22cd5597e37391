"""A borrowed pipeline: a stock diffusers pipeline, called by diffusers' argument names, that takes turns on its device.

A call leaves the shared modules as it found them, and a lack of memory is met with one measure after the other before
it is told.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from app.errors import InvalidRequest
from app.models import controls
from app.models.attached import Attached
from app.models.attention import faster_attention, sliced_attention
from app.models.device import TorchDevice
from app.models.prompts import PromptEncoder
from app.models.relief import IN_TILES, ONE_AT_A_TIME, STREAMED, Measure, Room, relieved
from app.models.row_attention import Part, attending
from app.models.step_batching import Call, Session, StepBatcher

PROMPT_ARGUMENTS = ("prompt", "negative_prompt", "clip_skip")


class BorrowedPipeline:
    """A stock diffusers pipeline, called with diffusers' argument names; prompts are understood by `prompts`.

    When a call runs out of memory it is repeated, from the same noise, after one measure of `_measures` after the
    other. `notes` says in sentences what such a measure changed about the picture.
    """

    def __init__(
        self,
        stock: Any,
        prompts: PromptEncoder,
        task: str,
        *,
        device: TorchDevice,
        batcher: StepBatcher | None = None,
        session: Session | None = None,
        room: Room | None = None,
        vae_tiling: bool = False,
        sliced_attention: bool = False,
        compiled: bool = False,
        attached: Attached | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.stock = stock
        self.task = task
        self.notes: list[str] = list(notes)
        self._prompts = prompts
        self._device = device
        self._batcher = batcher or StepBatcher()
        self._session = session or Session()
        self._room = room or Room()
        self._one_at_a_time = False
        self._vae_tiling = vae_tiling
        self._sliced_attention = sliced_attention
        self._compiled = compiled
        self._attached = attached or Attached()
        self._is_standing = False

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this (pixels)."""
        return self.stock.vae_scale_factor

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) that the model was trained at."""
        sample = self.stock.unet.config.sample_size
        width, height = (sample[1], sample[0]) if isinstance(sample, list | tuple) else (sample, sample)
        return width * self.stock.vae_scale_factor, height * self.stock.vae_scale_factor

    @property
    def num_inference_timesteps(self) -> int:
        """How many steps the running call takes; 0 before the first."""
        return getattr(self.stock, "_num_timesteps", 0) or 0

    def count_timesteps(self, num_inference_steps: int, strength: float | None = None) -> int:
        """How many steps a call will take: some schedulers take two for one, and `strength` leaves the first out.

        `InvalidRequest` where the scheduler cannot take that many.
        """
        scheduler = type(self.stock.scheduler).from_config(self.stock.scheduler.config)
        try:
            scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:
            limit = scheduler.config.get("original_inference_steps")
            most = f" at most {limit}" if limit else " fewer"
            raise InvalidRequest(
                f"This scheduler takes{most} steps, not {num_inference_steps}.", field="num_inference_steps"
            ) from error
        if strength is None:
            return len(scheduler.timesteps)
        first = max(num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps), 0)
        return max(0, len(scheduler.timesteps) - first * scheduler.order)

    def __call__(self, **arguments: Any) -> Any:
        """Run the stock pipeline; the answer has `.images`, a list of PIL RGB pictures."""
        steps, strength = arguments.get("num_inference_steps"), arguments.get("strength")
        if steps is not None and not self.count_timesteps(steps, strength):
            raise InvalidRequest(
                f"{steps} steps at strength {strength:g} are less than one step; raise one of them.", field="strength"
            )
        self._one_at_a_time = False
        with self.working(guided=self._is_guided(arguments)):
            return self._run(self._with_controls(self._as_taken(arguments)))

    @contextmanager
    def working(self, *, guided: bool = True) -> Iterator[Any]:
        """Hold the device: the stock pipeline, whose modules share their forwards and have on what was attached.

        `guided`: a forward's rows are a negative prompt's and then a prompt's.
        """
        session = replace(self._session, dress=self._dress, branches=self._attached.branches, guided=guided)
        with self._batcher.turn(session):
            unet = self.stock.unet
            # Made while the device is held: nobody else has the modules in another format meanwhile.
            views = {
                "unet": self._batcher.view(unet, session, around=lambda batch: attending(unet, _parts_of(batch))),
                "vae": self._batcher.view_of_vae(self.stock.vae, session),
            }
            if self._attached.controls:
                views["controlnet"] = controls.standing(self._attached.controls, self._batcher, session)
            with _standing_in(self.stock, views):
                self._is_standing = True
                self._dress()
                try:
                    yield self.stock
                finally:
                    self._is_standing = self.stock.vae.use_tiling = False

    def _is_guided(self, arguments: Mapping[str, Any]) -> bool:
        guidance = arguments.get("guidance_scale", _default(self.stock, "guidance_scale"))
        return guidance > 1 and self.stock.unet.config.time_cond_proj_dim is None

    def _as_taken(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments as this stock pipeline takes them: editors differ in whether they ask for the picture's size,
        and those of the older form in how they report steps.
        """
        taken = inspect.signature(type(self.stock).__call__).parameters
        rest = dict(arguments)
        if self.task == "instruct-pix2pix" and "width" in taken:
            rest |= {"width": rest["image"].width, "height": rest["image"].height}
        on_step = rest.get("callback_on_step_end")
        if on_step is not None and "callback_on_step_end" not in taken and "callback" in taken:

            def callback(index: int, timestep: Any, latents: torch.Tensor) -> None:
                on_step(self.stock, index, timestep, {"latents": latents})

            rest = {name: value for name, value in rest.items() if name != "callback_on_step_end"}
            rest["callback"] = callback
        return rest

    def _with_controls(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, `control_image` (a list, one for each ControlNet) as the stock pipeline wants it."""
        rest = dict(arguments)
        images = rest.pop("control_image", ())
        if not self._attached.controls:
            return rest
        return rest | controls.arguments_for(self._attached.controls, images, self.task)

    def _dress(self) -> None:
        """What this call needs on the shared modules, each time that it gets its turn."""
        self._session.dress()
        if self._is_standing:
            self.stock.vae.use_tiling = self._vae_tiling

    def _run(self, arguments: dict[str, Any]) -> Any:
        sources = _as_sources(arguments.get("generator"))

        def run() -> Any:
            with torch.no_grad(), _kept_format(self.stock.vae), self._attention():
                return self._draw(arguments)

        return relieved(run, self._device, self._measures(len(sources)), sources)

    def _attention(self) -> AbstractContextManager[None]:
        if self._sliced_attention:
            return sliced_attention()
        # A compiler does not see through the block that measures; it writes attention's surroundings anew itself.
        return faster_attention() if self._device.has_cpu_profile and not self._compiled else nullcontext()

    def _draw(self, arguments: dict[str, Any]) -> Any:
        """The stock pipeline's answer; its pictures one after the other where memory did not suffice for all."""
        if not self._one_at_a_time:
            return self.stock(**self._with_embeddings(arguments))
        images = []
        for source in _as_sources(arguments["generator"]):
            alone = arguments | {"num_images_per_prompt": 1, "generator": [source]}
            answer = self.stock(**self._with_embeddings(alone))
            images += answer.images
        answer.images = images
        return answer

    def _measures(self, pictures: int) -> tuple[Measure, ...]:
        """What is tried against a lack of memory, mildest first; each answers whether it could do anything."""

        def lower_the_batch() -> bool:
            self._one_at_a_time = pictures > 1
            if self._one_at_a_time:
                self.notes.append(ONE_AT_A_TIME)
            return self._one_at_a_time

        return self._room.park_others, self._stream_weights, self._decode_in_tiles, lower_the_batch

    def _stream_weights(self) -> bool:
        if not self._room.stream():
            return False
        # Streaming moved the shared modules undressed.
        self._dress()
        self.notes.append(STREAMED)
        return True

    def _decode_in_tiles(self) -> bool:
        if self._vae_tiling:
            return False
        self._vae_tiling = True
        self.stock.vae.enable_tiling()
        self.notes.append(IN_TILES)
        return True

    def _with_embeddings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in arguments.items() if name not in PROMPT_ARGUMENTS}
        if "prompt" not in arguments:
            return rest
        prompts = _as_list(arguments["prompt"])
        negative = arguments.get("negative_prompt")
        negatives = None if negative is None else _as_list(negative)
        if negatives is not None and len(negatives) == 1:
            negatives *= len(prompts)
        embeddings = self._prompts.arguments(
            prompts,
            negatives,
            guided=self._is_guided(arguments),
            clip_skip=arguments.get("clip_skip"),
        )
        return rest | embeddings


def _parts_of(batch: Sequence[Call]) -> list[Part]:
    """The rows of a UNet's forward, by call."""
    return [
        Part(call.rows, call.session.branches, call.session.guided, lambda call=call: _timestep(call)) for call in batch
    ]


def _timestep(call: Call) -> float:
    return float(torch.as_tensor(call.args[1]).reshape(-1)[0])


@contextmanager
def _standing_in(stock: Any, views: Mapping[str, Any]) -> Iterator[None]:
    """Views that park their calls stand in the modules' places for the block."""
    modules = {name: getattr(stock, name) for name in views}
    for name, view in views.items():
        setattr(stock, name, view)
    try:
        yield
    finally:
        for name, module in modules.items():
            setattr(stock, name, module)


@contextmanager
def _kept_format(vae: Any) -> Iterator[None]:
    """The VAE's number format comes back: SDXL decodes in float32 and is left there when a run breaks off."""
    dtype = vae.dtype
    try:
        yield
    finally:
        if vae.dtype != dtype:
            vae.to(dtype=dtype)


def _as_sources(generator: Any) -> list[torch.Generator]:
    if generator is None:
        return []
    return list(generator) if isinstance(generator, list | tuple) else [generator]


def _as_list(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _default(stock: Any, name: str) -> Any:
    return inspect.signature(type(stock).__call__).parameters[name].default
