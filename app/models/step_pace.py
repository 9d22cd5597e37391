"""How many calls one forward should serve, from what forwards of each size have taken on this device.

A large GPU computes eight small forwards in the time of one; on a full one a batch only makes everybody wait. So the
sizes 1, 2, 4, 8, ... are timed as they come up, and the smallest size is taken whose rate is near the best.
"""

from collections.abc import Hashable

SAMPLES = 2
"""Forwards of a size before its time is believed; the first of them may pay for warming up."""
NEAR = 0.95
"""Share of the best rate from which a smaller batch is preferred: it makes fewer jobs wait for each other."""
LARGEST = 32


class StepPace:
    """Times of forwards by key (module, shapes, additions) and number of calls in them."""

    def __init__(self, *, largest: int = LARGEST, remembered: int = 64) -> None:
        self._largest = largest
        self._remembered = remembered
        self._times: dict[Hashable, dict[int, list[float]]] = {}
        self._limits: dict[Hashable, int] = {}

    def choose(self, key: Hashable, available: int) -> int:
        """How many of the `available` calls the next forward should serve: at least 1."""
        most = max(1, min(available, self._largest, self._limits.get(key, self._largest)))
        sizes = [size for size in _sizes(most)]
        times = self._times.get(key, {})
        untried = [size for size in sizes if len(times.get(size, ())) < SAMPLES]
        if untried:
            return untried[-1]
        rates = {size: size / min(times[size]) for size in sizes}
        best = max(rates.values())
        size = next(size for size in sizes if rates[size] >= NEAR * best)
        # Between two sizes nothing is timed: all that wait may come along when the largest timed size is the best.
        return most if size == sizes[-1] else size

    def note(self, key: Hashable, size: int, seconds: float) -> None:
        """A forward that served `size` calls took so long."""
        times = self._times.pop(key, {})
        self._times[key] = times
        while len(self._times) > self._remembered:
            self._times.pop(next(iter(self._times)))
        times[size] = [*times.get(size, [])[-4:], seconds]

    def limit(self, key: Hashable, size: int) -> None:
        """Never again more calls than this: memory did not suffice."""
        self._limits[key] = max(1, size)

    def table(self) -> list[dict[int, float]]:
        """Size -> seconds of the fastest of the last forwards, for each key, most recently used last."""
        return [{size: min(taken) for size, taken in sorted(times.items())} for times in self._times.values()]


def _sizes(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [1 << power for power in range(most.bit_length())]
