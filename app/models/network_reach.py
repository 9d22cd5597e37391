"""What a picture network is found out by trying it: how far it looks, and what a pixel costs in memory.

How far: a pixel that is not a number spoils exactly what depends on it, so one of them in the middle of a picture shows
the receptive field, whatever the weights are. Where that is too wide to be of use (deep residual networks, windows,
attention), what counts is measured: a picture is answered whole and cut, and the distance from the cut beyond which the
two agree is how much must be seen. What never agrees looks at the whole picture. A network that works in windows
answers a part as it answers the whole only where the part begins at a window.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Run = Callable[[torch.Tensor], torch.Tensor]

WIDEST = 48
"""Pixels up to which the receptive field itself is what is seen around a part."""
LONGEST_PROBE = 128
"""Pixels on each side of a cut that are looked at."""
AGREES = 0.25 / 255
MARGIN = 1.25
PERIODS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MOST_OFFSETS = 4
ENDLESS = 64
"""Pixels that are seen around a part where no number would be enough."""
RAMP = 8
"""Pixels over which the parts of a network without an end fade into each other."""
WORKSPACE = 1.3
"""What convolutions take beside the tensors that live, as a share of those."""


@dataclass(frozen=True)
class Reach:
    """How many pixels must be seen around a part, and multiples of what a part must begin at.

    `is_whole` where nothing further away matters.
    """

    pixels: int
    period: int = 1
    is_whole: bool = True

    @property
    def ramp(self) -> int:
        """Pixels over which parts fade into each other."""
        return 0 if self.is_whole else RAMP


def measure_reach(run: Run, channels: int, scale: int, multiple: int) -> Reach:
    """How far this network looks; `run` computes in 32-bit numbers."""
    picture = _picture(channels, -(-64 // multiple) * multiple, 2 * LONGEST_PROBE)
    whole = run(picture)[0].float().cpu()
    period = _period(run, picture, whole, scale, multiple)
    if period is None:
        return Reach(ENDLESS, -(-16 // multiple) * multiple, is_whole=False)
    exact = _receptive_field(run, channels, scale, period) if period <= MOST_OFFSETS else None
    return Reach(exact, period) if exact is not None else _cut(run, picture, whole, scale, period)


def _picture(channels: int, height: int, width: int) -> torch.Tensor:
    """Smooth shapes with a little noise."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, channels, height // 4, width // 4), generator=source)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + 0.1 * torch.rand(smooth.shape, generator=source) - 0.05).clamp(0, 1)


def _period(run: Run, picture: torch.Tensor, whole: torch.Tensor, scale: int, multiple: int) -> int | None:
    """The step by which a picture may be moved so that its answer moves along: 1, or the size of windows and folds."""
    far = picture.shape[-1] * 7 // 8
    for period in (period for period in PERIODS if period % multiple == 0):
        moved = run(picture[..., period:])[0].float().cpu()
        apart = (whole[..., far * scale :] - moved[..., (far - period) * scale :]).abs().amax()
        if bool(apart <= AGREES):
            return period
    return None


def _receptive_field(run: Run, channels: int, scale: int, period: int) -> int | None:
    """Exactly, in pixels; None where it is wider than `WIDEST` or the network swallows what is not a number."""
    middle = -(-(WIDEST + 2) // period) * period
    side = 2 * middle + period
    reached = 0
    # A network that works on blocks of pixels sees further from one pixel of the block than from another.
    for offset in range(period):
        place = middle + offset
        pixels = torch.full((1, channels, side, side), 0.5)
        pixels[0, :, place, place] = torch.nan
        spoilt = torch.isnan(run(pixels)[0].float()).any(0).nonzero().cpu()
        if not len(spoilt):
            return None
        first, last = spoilt.min(0).values, spoilt.max(0).values
        low, high = int(first.min()) // scale, int(last.max()) // scale
        if low <= 0 or high >= side - 1:
            return None
        reached = max(reached, place - low, high - place)
    return -(-reached // period) * period


def _cut(run: Run, picture: torch.Tensor, whole: torch.Tensor, scale: int, period: int) -> Reach:
    """What matters of it, by how a cut on either side changes the answer near and far from it."""
    place = LONGEST_PROBE // period * period
    before, after = (run(part)[0].float().cpu() for part in (picture[..., :place], picture[..., place:]))
    needed = 0
    for apart in ((whole[..., : place * scale] - before).flip(-1), whole[..., place * scale :] - after):
        by_pixel = apart.abs().amax((0, 1)).view(-1, scale).amax(1)
        further = (~(by_pixel <= AGREES)).nonzero()
        needed = max(needed, int(further.max()) + 1 if len(further) else 0)
    wanted = -(-int(needed * MARGIN + 1) // period) * period
    return Reach(wanted, period) if wanted <= place * 7 // 8 else Reach(ENDLESS, period, is_whole=False)


def bytes_per_pixel(run: Run, channels: int, multiple: int) -> float:
    """The most bytes of tensors that live at once while the network works, for each pixel of its input."""
    side = -(-64 // multiple) * multiple
    with torch.no_grad(), _Living() as living:
        run(torch.full((1, channels, side, side), 0.5))
    return max(living.most * WORKSPACE / side**2, 4.0)


class _Living(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, tuple | list) else (answer,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        self.most = max(self.most, self.now)
        return answer

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._holders[key]:
            self.now += size
        self._holders[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= size
            del self._holders[key]
