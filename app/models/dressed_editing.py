"""An editor's run that wears LoRAs: whatever it does on the device, it does in its own outfit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from app.models.adapters import PLAIN, Addition, Outfit
from app.models.opened_editor import OpenedEditor
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
    ) -> None:
        self.num_timesteps = 0
        self._opened = opened
        self._batcher = batcher
        self._priority = priority
        self._check = check
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
