"""Pictures made larger by any network that spandrel knows, part by part and without seams.

What spandrel leaves open stands here: how far a network looks (which is how much must be seen around a part), how large
a part the device's memory takes, the weights between two siblings (denoise strength), and half precision that comes
back black. Everything that a network is found out about is found out once, when the first picture needs it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

from app.errors import InvalidRequest, OutOfMemory
from app.imaging.tiles import Enlarged, Grid, Pass, enlarge, grid_of_area, grid_of_side, sizes_on_the_way
from app.models.device import TorchDevice
from app.models.network_reach import Reach, bytes_per_pixel, measure_reach
from app.models.spec import ModelSpec
from app.models.weights import Weights

Turn = Callable[[], AbstractContextManager[None]]
Check = Callable[[], None]

WRAPPERS = ("params_ema.", "params.")
"""Under which of these names training scripts of this family publish the weights, the better ones first."""
WORK_ON_A_CPU = 700 * 2**20
"""Bytes that a part's computation may take of RAM: larger parts are no faster there."""
SHARE_OF_A_GPU = 0.6
BLACK = 1 / 255
"""Mean of a part below which it is black."""


class Upscaler(Weights):
    """An image network of spandrel, and its sibling's tensors where the two can be mixed."""

    def __init__(
        self, model: ImageModelDescriptor[Any], device: TorchDevice, sibling: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        super().__init__(device, [model.model.eval().requires_grad_(False)])
        self._model = model
        self._sibling = sibling
        self.dtype = device.dtype if device.dtype is torch.float32 or _takes(model, device.dtype) else torch.float32
        is_kept = sibling is not None or self.dtype is not torch.float32
        self._own = {name: value.clone() for name, value in model.model.state_dict().items()} if is_kept else {}
        self._strength = 1.0
        self._lock = threading.Lock()
        self._reach: Reach | None = None
        self._bytes_per_pixel: float | None = None

    @property
    def scale(self) -> int:
        """How many times as large its answer is."""
        return self._model.scale

    @property
    def multiple(self) -> int:
        """Sides of its input are padded to multiples of this."""
        return self._model.size_requirements.multiple_of

    def place(self) -> None:
        """Move it to the device, in the format that it computes in."""
        self._model.model.to(self.device.torch_device, self.dtype)

    def at_work(self, turn: Turn, check: Check) -> "Upscaling":
        """What a run is handed: each part waits for its turn at the device."""
        return Upscaling(self, turn, check)

    def check_strength(self, strength: float | None) -> None:
        """`InvalidRequest` where there is no sibling to mix with."""
        if strength is not None and self._sibling is None:
            raise InvalidRequest("This upscaler has no weaker sibling to mix with.", field="denoise_strength")

    def mix(self, strength: float | None) -> None:
        """Put on the weights that stand `strength` of the way from the sibling's to its own."""
        wanted = 1.0 if strength is None else strength
        if self._sibling is not None and wanted != self._strength:
            self._lay_on(wanted)

    def _lay_on(self, strength: float) -> None:
        standing = self._model.model.state_dict()
        for name, own in self._own.items():
            is_mixed = self._sibling is not None and own.is_floating_point()
            standing[name].copy_(torch.lerp(self._sibling[name].float(), own.float(), strength) if is_mixed else own)
        self._strength = strength

    def reach(self) -> Reach:
        """How far it looks; measured where it stands, in 32-bit numbers, while nobody else has a turn."""
        with self._lock:
            if self._reach is None:
                dtype, self.dtype = self.dtype, torch.float32
                self._model.model.to(dtype=torch.float32)
                try:
                    self._reach = measure_reach(self.run_tensor, self._model.input_channels, self.scale, self.multiple)
                finally:
                    self.dtype = dtype
                    self._model.model.to(dtype=dtype)
            return self._reach

    def area(self, free: int) -> float:
        """The most pixels of a part, by the bytes that are free."""
        with self._lock:
            if self._bytes_per_pixel is None:
                self._bytes_per_pixel = bytes_per_pixel(self.run_tensor, self._model.input_channels, self.multiple)
        most = free * SHARE_OF_A_GPU if self.device.keeps_parked else min(free / 2, WORK_ON_A_CPU)
        return most / self._bytes_per_pixel

    def in_full_precision(self) -> None:
        """Compute in 32-bit numbers from now on."""
        self.dtype = torch.float32
        self._model.model.to(dtype=torch.float32)
        self._lay_on(self._strength)

    @torch.inference_mode()
    def run_tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """The network's answer [1, channels, height, width] to pixels in 0..1, in its own format."""
        return self._model(pixels.to(self.device.torch_device, self.dtype))

    @torch.inference_mode()
    def run(self, part: Image.Image) -> tuple[Image.Image, bool]:
        """The part (PIL RGB) enlarged, and whether it came back black or not finite though it is not."""
        is_grey = self._model.input_channels == 1
        seen = np.asarray(part.convert("L"))[..., None] if is_grey else np.asarray(part)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None] / 255
        answer = self.run_tensor(pixels)[0].float()
        is_lost = not bool(torch.isfinite(answer).all()) or bool(answer.mean() < BLACK <= pixels.mean() / 4)
        bytes_ = answer.mul_(255).round_().byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(bytes_[..., 0]).convert("RGB") if bytes_.shape[-1] == 1 else Image.fromarray(bytes_)
        return image, is_lost


class Upscaling:
    """One run's upscaler; see `app.core.capability.Upscaler`."""

    def __init__(self, upscaler: Upscaler, turn: Turn, check: Check) -> None:
        self._upscaler, self._turn, self._check = upscaler, turn, check

    def __call__(
        self,
        image: Image.Image,
        size: tuple[int, int],
        *,
        tile_size: int | None = None,
        denoise_strength: float | None = None,
        on_tile: Callable[[int, int], None] = lambda done, count: None,
    ) -> Enlarged:
        """The picture (PIL RGB) at this size."""
        upscaler, notes = self._upscaler, []
        upscaler.check_strength(denoise_strength)
        steps = self._passes(image.size, size, tile_size)
        shrunk = 1.0
        while True:
            try:
                return self._run(image, steps, denoise_strength, on_tile, notes)
            except Exception as error:
                if not upscaler.device.is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the failed part's tensors alive.
            upscaler.device.empty_cache()
            if tile_size is not None or shrunk < 1 / 64:
                raise OutOfMemory("The device's memory did not suffice for a part; lower tile_size.")
            shrunk /= 4
            steps = self._passes(image.size, size, None, shrunk)
            notes = ["The device's memory did not suffice for the parts first chosen, so smaller ones were taken."]

    def _passes(self, size: tuple[int, int], target: tuple[int, int], side: int | None, share: float = 1) -> list[Pass]:
        upscaler, found, now = self._upscaler, [], size
        for wanted in sizes_on_the_way(size, target, upscaler.scale):
            with self._turn():
                free = upscaler.device.free_bytes()
                area = upscaler.area(free) * share
                fits = side is None and now[0] * now[1] <= area
                reach = 0 if fits or (side is not None and side >= max(now)) else upscaler.reach().pixels
            grid = Grid(1, 1) if fits else grid_of_side(now, side) if side else grid_of_area(now, area, reach)
            found.append(Pass(now, wanted, grid))
            now = wanted
        return found

    def _run(
        self,
        image: Image.Image,
        steps: Sequence[Pass],
        strength: float | None,
        on_tile: Callable[[int, int], None],
        notes: list[str],
    ) -> Enlarged:
        upscaler, done, count = self._upscaler, 0, sum(step.grid.count for step in steps)
        notes = list(notes)

        def network(part: Image.Image) -> Image.Image:
            self._check()
            with self._turn():
                upscaler.mix(strength)
                answer, is_lost = upscaler.run(part)
                if is_lost and upscaler.dtype is not torch.float32:
                    notes.append(
                        "A part came back black in 16-bit numbers, so it and what followed was made in 32-bit ones."
                    )
                    upscaler.in_full_precision()
                    answer, _ = upscaler.run(part)
            return answer

        def one_more() -> None:
            nonlocal done
            done += 1
            on_tile(done, count)

        on_tile(0, count)
        reach = upscaler.reach() if any(step.grid.count > 1 for step in steps) else None
        for step in steps:
            image = enlarge(
                image,
                step,
                network,
                scale=upscaler.scale,
                reach=reach.pixels if reach else 0,
                multiple=reach.period if reach else 1,
                ramp=reach.ramp if reach else 0,
                on_tile=one_more,
            )
        if reach and not reach.is_whole:
            notes.append(
                f"This network looks further than the {reach.pixels} pixels around each part; the parts were faded "
                "into each other and may differ a little from what the whole picture at once would give."
            )
        return Enlarged(image, len(steps), count, reach.pixels if reach else 0, notes)


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[Any] = ()) -> Upscaler:
    """Open a `.safetensors` file of an image network; `InvalidRequest` where it is something else.

    A part is the sibling with which its weights are mixed.
    """
    model = open_network(spec, path)
    if model.purpose == "FaceSR" or model.input_channels not in {1, 3}:
        raise _unfit(spec)
    sibling = unwrapped(load_file(parts[0].path)) if parts else None
    return Upscaler(model, device, sibling)


def open_network(spec: ModelSpec, path: Path) -> ImageModelDescriptor[Any]:
    """Spandrel's image network of a file; `InvalidRequest` where it is none."""
    try:
        model = ModelLoader(device="cpu").load_from_state_dict(unwrapped(load_file(path)))
    except (UnsupportedModelError, RuntimeError, KeyError, ValueError, AssertionError):
        raise _unfit(spec) from None
    if not isinstance(model, ImageModelDescriptor):
        raise _unfit(spec)
    return model


def unwrapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under their own names, without what a training script put before them."""
    for wrapper in WRAPPERS:
        inner = {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}
        if inner:
            return inner
    return tensors


def _takes(model: ImageModelDescriptor[Any], dtype: torch.dtype) -> bool:
    return model.supports_half if dtype is torch.float16 else model.supports_bfloat16


def _unfit(spec: ModelSpec) -> InvalidRequest:
    return InvalidRequest(
        f"The model {spec.id!r} is not one that makes pictures larger or restores them.", model=spec.id
    )
