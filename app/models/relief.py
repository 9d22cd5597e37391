"""A lack of the device's memory: a run is repeated, from the same noise, after one measure after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from app.errors import OutOfMemory
from app.models.device import TorchDevice

OUT_OF_MEMORY = (
    "The device's memory did not suffice for this run, also after other models were moved away, with the weights "
    "streamed where that helps, with the picture decoded in tiles and with one picture at a time. Lower the width and "
    "height, or choose a smaller model or number format (EIS_PRECISION)."
)
STREAMED = "The device's memory did not suffice, so the model's weights were streamed from RAM."
IN_TILES = "The device's memory did not suffice, so the picture was decoded in tiles."
ONE_AT_A_TIME = "The device's memory did not suffice, so the pictures were drawn one at a time."

Measure = Callable[[], bool]
"""Something that may help; answers whether it could do anything."""


@dataclass(frozen=True)
class Room:
    """How whoever keeps the models makes room on the device: other models away, then this one's weights in RAM."""

    park_others: Measure = lambda: False
    stream: Measure = lambda: False


def relieved(
    run: Callable[[], Any], device: TorchDevice, measures: Sequence[Measure], sources: Sequence[torch.Generator]
) -> Any:
    """What `run` answers; where memory lacks, after the mildest of the measures that suffices.

    `sources` are the noise that it draws from. `OutOfMemory` when none is left.
    """
    states = [source.get_state() for source in sources]
    for relieve in (None, *measures):
        if relieve is not None and not relieve():
            continue
        for source, state in zip(sources, states, strict=True):
            source.set_state(state)
        try:
            return run()
        except Exception as error:
            if not device.is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the failed call's tensors alive.
        device.empty_cache()
    raise OutOfMemory(OUT_OF_MEMORY)
