"""The ModelCache policy: which models stand on the device, which are parked in RAM, and who has to make room.

Beside it stand the offload strategies by name: what each needs on the device, and which is recommended for which room.

A borrowed model is pinned and never moved or dropped, so nobody computes with weights that are going away; the price
is that two borrowed models that do not fit together are an `OutOfMemory` instead of a slow success. Only the unpinned
move, least recently used first. The policy counts bytes and asks a small Device; it knows no torch.

    gone --load--> parked in RAM --place--> placed on the device
      ^              |   ^                     |
      +----drop------+   +--------park---------+
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from app.errors import InvalidRequest, OutOfMemory

ROOM_TO_DECODE = 0.25
"""Share of the room that must stay free of weights, or pictures are decoded in tiles."""


class Offload(StrEnum):
    """How a model's weights stand on a device; docs/memory.md tells what each costs."""

    NONE = "none"
    ATTENTION = "attention"
    VAE = "vae"
    MODEL_CPU = "model_cpu"
    STREAMED = "streamed"
    SEQUENTIAL_CPU = "sequential_cpu"

    @property
    def keeps_weights_in_ram(self) -> bool:
        """Whether the weights lie in RAM and visit the device while they are needed."""
        return self in {Offload.MODEL_CPU, Offload.STREAMED, Offload.SEQUENTIAL_CPU}

    @property
    def decodes_in_tiles(self) -> bool:
        """Whether large pictures are decoded in tiles."""
        return self in {Offload.VAE, Offload.STREAMED, Offload.SEQUENTIAL_CPU}


AUTO = "auto"
STRATEGIES = (AUTO, *(strategy.value for strategy in Offload))
PRECISIONS = (AUTO, "float32", "bfloat16", "float16", "float8", "int8", "int4")


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model: of each component, of its denoiser's largest layer and of its largest layer anywhere."""

    components: Mapping[str, int]
    denoiser: str
    denoiser_layer: int
    layer: int

    @property
    def total(self) -> int:
        """All weights."""
        return sum(self.components.values())

    def on_device(self, strategy: Offload) -> int:
        """What stands on the device at most."""
        match strategy:
            case Offload.MODEL_CPU:
                return max(self.components.values())
            case Offload.STREAMED:
                # One layer works while the next one arrives.
                others = [size for name, size in self.components.items() if name != self.denoiser]
                return max([2 * self.denoiser_layer, *others])
            case Offload.SEQUENTIAL_CPU:
                return self.layer
            case _:
                return self.total


def recommend(sizes: Sizes, available: int) -> Offload:
    """The quickest strategy that fits into `available` bytes, which already leave the work its share.

    `attention` is never recommended: the kernels in use hold no whole matrix of scores that slices could make smaller.
    """
    if sizes.total <= available * (1 - ROOM_TO_DECODE):
        return Offload.NONE
    fitting = (Offload.VAE, Offload.MODEL_CPU, Offload.STREAMED)
    return next((one for one in fitting if sizes.on_device(one) <= available), Offload.SEQUENTIAL_CPU)


def check_strategy(strategy: str, device: str) -> None:
    """`InvalidRequest` for a strategy that is none, or that this device cannot serve."""
    if strategy not in STRATEGIES:
        raise InvalidRequest(
            f"There is no offload strategy {strategy[:40]!r}: there are {', '.join(STRATEGIES)}.", field="strategy"
        )
    if strategy != AUTO and Offload(strategy).keeps_weights_in_ram and device == "cpu":
        raise InvalidRequest(
            f"The strategy {strategy} needs a GPU: on a CPU the weights stand where they are used.", field="strategy"
        )


class Device(Protocol):
    """What the policy asks of a device."""

    @property
    def keeps_parked(self) -> bool:
        """Whether RAM is another memory than the device's; on a CPU it is not, and parking would free nothing."""

    def free_bytes(self) -> int:
        """Bytes that models could still take, leaving room for the work itself."""

    def empty_cache(self) -> None:
        """Give freed blocks back, so that `free_bytes` sees them."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether this error says that memory ran out."""


class Model(Protocol):
    """Weights in RAM, as a loader hands them over."""

    @property
    def bytes(self) -> int:
        """Their size."""

    def plan(self, available: int) -> int:
        """Settle how they will stand on a device with so much room; answers the bytes that they will take there."""

    def place(self) -> None:
        """Move them to the device."""

    def park(self) -> None:
        """Move them back to RAM."""


class ModelState(StrEnum):
    """Where a model's weights are."""

    GONE = "gone"
    PARKED = "parked"
    PLACED = "placed"


@dataclass
class Entry:
    """One model's account. `bytes` is an estimate until the model was loaded once, `needs` what it takes if placed."""

    key: str
    bytes: int
    needs: int = 0
    state: ModelState = ModelState.GONE
    model: Any = None
    pins: int = 0
    last_used: int = 0


class ModelCache:
    """Owns the models of one device; safe to use from several threads.

    `_moves` is held by whoever loads, places, parks or drops (seconds); `_lock` guards the accounts (microseconds), so
    that `describe` never waits for a load. A victim's state changes under `_lock` before its weights move: a borrower
    who arrives meanwhile pins it, sees that it is not placed, and queues for `_moves`.
    """

    def __init__(self, device: Device, *, budget: int | None = None, parked_budget: int = 0) -> None:
        self._device = device
        self._budget = budget
        self._parked_budget = parked_budget if device.keeps_parked else 0
        self._entries: dict[str, Entry] = {}
        self._clock = 0
        self._lock = threading.Lock()
        self._moves = threading.Lock()

    @contextmanager
    def borrow(self, key: str, load: Callable[[], Model], *, estimate: int) -> Iterator[Any]:
        """The model `key` on the device, pinned for the block; `load` is called if its weights are gone."""
        with self._lock:
            entry = self._entries.setdefault(key, Entry(key, estimate))
            entry.pins += 1
            self._touch(entry)
            ready = entry.state is ModelState.PLACED
        try:
            if not ready:
                self._bring(entry, load)
            yield entry.model
        finally:
            with self._lock:
                entry.pins -= 1
                self._touch(entry)
                if entry.state is ModelState.GONE and not entry.pins:
                    self._entries.pop(key, None)

    def keep_only(self, wanted: Callable[[str], bool]) -> None:
        """Drop every unpinned model whose key is not wanted any more (it was removed or replaced on disk)."""
        with self._moves:
            for entry in self._unpinned(ModelState.PLACED, ModelState.PARKED):
                if not wanted(entry.key):
                    self._drop(entry)

    def set_budgets(self, budget: int | None, parked_budget: int) -> None:
        """Let models take so many bytes of the device (None: what it has free) and of RAM from now on, and make room.

        What is borrowed stays; it is counted, and what comes after it has to do with the rest.
        """
        with self._moves:
            self._budget = budget
            self._parked_budget = parked_budget if self._device.keeps_parked else 0
            while budget is not None and self.bytes_in(ModelState.PLACED) > budget:
                victims = self._unpinned(ModelState.PLACED)
                if not victims:
                    break
                self._park(victims[0])
            self._trim_parked()

    def park_unpinned(self) -> bool:
        """Take everything that is not borrowed off the device; whether there was anything."""
        with self._moves:
            victims = self._unpinned(ModelState.PLACED)
            for victim in victims:
                self._park(victim)
        self._device.empty_cache()
        return bool(victims)

    def clear(self) -> None:
        """Drop every unpinned model."""
        self.keep_only(lambda key: False)

    def note_needs(self, key: str, needs: int) -> None:
        """A placed model takes another number of bytes from now on."""
        with self._lock:
            if key in self._entries:
                self._entries[key].needs = needs

    def describe(self) -> list[dict[str, Any]]:
        """The accounts, most recently used first, as plain data."""
        with self._lock:
            entries = sorted(self._entries.values(), key=lambda entry: -entry.last_used)
            return [
                {"key": entry.key, "state": entry.state.value, "bytes": entry.bytes, "borrowed": entry.pins > 0}
                for entry in entries
            ]

    def bytes_in(self, state: ModelState) -> int:
        """Bytes of all models in this state; of a placed one, those on the device."""
        with self._lock:
            found = [entry for entry in self._entries.values() if entry.state is state]
            return sum(entry.needs if state is ModelState.PLACED else entry.bytes for entry in found)

    def visiting_bytes(self) -> int:
        """Bytes of placed models that lie in RAM and visit the device while they are needed."""
        with self._lock:
            placed = [entry for entry in self._entries.values() if entry.state is ModelState.PLACED]
            return sum(entry.bytes - entry.needs for entry in placed)

    def models(self) -> dict[str, Any]:
        """The loaded models by key, for facts that only they know."""
        with self._lock:
            return {entry.key: entry.model for entry in self._entries.values() if entry.model is not None}

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.last_used = self._clock

    def _bring(self, entry: Entry, load: Callable[[], Model]) -> None:
        with self._moves:
            if entry.state is ModelState.PLACED:
                return
            if entry.state is ModelState.GONE:
                if not self._device.keeps_parked:
                    self._make_room(entry, entry.bytes)
                model = self._retry_without_others(entry, load)
                with self._lock:
                    entry.model, entry.bytes, entry.state = model, model.bytes, ModelState.PARKED
            try:
                entry.needs = entry.model.plan(self._attainable())
                # On a CPU loading has taken the memory already: what the device reports as free no longer holds it.
                if self._device.keeps_parked or self._budget is not None:
                    self._make_room(entry, entry.needs)
                self._retry_without_others(entry, entry.model.place)
            except BaseException:
                self._forget_failed(entry)
                raise
            with self._lock:
                entry.state = ModelState.PLACED
            self._trim_parked()

    def _retry_without_others(self, entry: Entry, move: Callable[[], Any]) -> Any:
        """Do it; if memory runs out, park everything unpinned and do it once more."""
        try:
            return move()
        except Exception as error:
            if not self._device.is_out_of_memory(error):
                raise
        for victim in self._unpinned(ModelState.PLACED):
            self._park(victim)
        self._device.empty_cache()
        try:
            return move()
        except Exception as error:
            if not self._device.is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"The model needs {_size(entry.bytes)} and the device's memory did not suffice, even after the other "
                "models were moved away. Choose a smaller model or a smaller number format (EIS_PRECISION).",
                needed=entry.bytes,
            ) from error

    def _attainable(self) -> int:
        """The room there would be with every unpinned model away."""
        return max(0, self._room()) + sum(other.needs for other in self._unpinned(ModelState.PLACED))

    def _make_room(self, entry: Entry, needs: int) -> None:
        while self._room() < needs:
            victims = self._unpinned(ModelState.PLACED)
            if not victims:
                self._refuse(entry, needs)
            self._park(victims[0])

    def _room(self) -> int:
        if self._budget is None:
            return self._device.free_bytes()
        return self._budget - self.bytes_in(ModelState.PLACED)

    def _refuse(self, entry: Entry, needs: int) -> None:
        borrowed = [
            other
            for other in self._entries.values()
            if other is not entry and other.pins and other.state is ModelState.PLACED
        ]
        others = f" beside {_size(sum(other.needs for other in borrowed))} that running work holds" if borrowed else ""
        raise OutOfMemory(
            f"The model needs {_size(needs)}; {_size(max(0, self._room()))} are there for it{others}. "
            "Every model that was not in use has been moved away. Choose a smaller model or a smaller number format "
            "(EIS_PRECISION), or allow more (EIS_MODEL_MEMORY_BYTES).",
            needed=needs,
            available=max(0, self._room()),
        )

    def _unpinned(self, *states: ModelState) -> list[Entry]:
        with self._lock:
            found = [entry for entry in self._entries.values() if not entry.pins and entry.state in states]
            return sorted(found, key=lambda entry: entry.last_used)

    def _park(self, entry: Entry) -> None:
        if entry.bytes > self._parked_budget:
            self._drop(entry)
            return
        with self._lock:
            if entry.pins:
                return
            entry.state = ModelState.PARKED
        entry.model.park()
        self._device.empty_cache()
        self._trim_parked()

    def _trim_parked(self) -> None:
        """Drop the oldest beyond the budget; what is borrowed only passes through RAM and is not counted."""
        parked = self._unpinned(ModelState.PARKED)
        excess = sum(entry.bytes for entry in parked) - self._parked_budget
        for entry in parked:
            if excess <= 0:
                return
            excess -= entry.bytes
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        with self._lock:
            if entry.pins:
                return
            entry.state, entry.model = ModelState.GONE, None
            self._entries.pop(entry.key, None)
        self._device.empty_cache()

    def _forget_failed(self, entry: Entry) -> None:
        with self._lock:
            entry.state, entry.model = ModelState.GONE, None
        self._device.empty_cache()


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count:,} bytes"
