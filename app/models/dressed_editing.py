"""An editor's run: whatever it does on the device, it does in its own outfit of LoRAs, and where the device's memory
lacks it tries what may help.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from app.models.adapters import PLAIN, Addition, Outfit
from app.models.opened_editor import OpenedEditor
from app.models.relief import IN_TILES, STREAMED, Room, relieved
from app.models.step_batching import Session, StepBatcher

MULTIPLE = 16
"""Sides of what is edited, in pixels, are multiples of this."""


class DressedEditor:
    """One run's hold on an opened editor."""

    size_multiple = MULTIPLE
    default_size = (1024, 1024)

    def __init__(
        self,
        opened: OpenedEditor,
        batcher: StepBatcher,
        *,
        priority: int = 5,
        check: Callable[[], None] = lambda: None,
        room: Room | None = None,
    ) -> None:
        self.num_timesteps = 0
        self.notes: list[str] = []
        self._opened = opened
        self._batcher = batcher
        self._priority = priority
        self._check = check
        self._room = room or Room()
        self._outfit: Outfit = PLAIN

    @contextmanager
    def wearing(self, additions: Sequence[Addition]) -> Iterator[None]:
        """LoRAs for the calls of the block; `InvalidRequest` for one that was made for another model."""
        wardrobe = self._opened.wardrobe
        with self._batcher.turn(Session(self._priority, check=self._check)):
            self._outfit = wardrobe.make(self._opened.dressing_room(), additions)
        try:
            yield
        finally:
            with self._batcher.turn(Session(self._priority)):
                if wardrobe.worn is self._outfit:
                    wardrobe.wear(None)

    def put_on(self, outfit: Outfit) -> None:
        """Wear this in every call from now on; whoever made it takes it off."""
        self._outfit = outfit

    @property
    def session(self) -> Session:
        """A call of this run on its way, dressed."""
        wear = partial(self._opened.wardrobe.wear, self._outfit)
        return Session(self._priority, self._outfit.key, self._check, wear)

    def _relieved(self, run: Callable[[], Any], source: torch.Generator) -> Any:
        """What `run` answers, which takes its turns by itself; where memory lacks, after what may help."""
        measures = [partial(self._in_turn, measure) for measure in (self._room.park_others, self._stream, self._tile)]
        try:
            return relieved(run, self._opened.device, measures, [source])
        finally:
            if self.notes:
                self._in_turn(self._opened.set_tiling)

    def _in_turn(self, measure: Callable[[], Any]) -> Any:
        with self._batcher.turn(Session(self._priority, check=self._check)):
            return measure()

    def _stream(self) -> bool:
        """The next turn dresses anew."""
        return self._room.stream() and self._note(STREAMED)

    def _tile(self) -> bool:
        if self._opened.vae.use_tiling:
            return False
        self._opened.vae.enable_tiling()
        return self._note(IN_TILES)

    def _note(self, sentence: str) -> bool:
        self.notes.append(sentence)
        return True
