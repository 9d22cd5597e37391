"""How a step of training keeps every core busy: its batch in parts, and the next batch made meanwhile.

Each part is computed by a thread of its own that meets the others once a step: on a CPU that does other work too,
threads that meet at every operation spend most of their time waiting.

Autocast keeps its copies of weights for all threads together, so how often one is made depends on who came first: a
step that is to end in the same bits each time computes in `mixed_precision`, which keeps none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

CPU_SHARDS = 2


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe, without autocast's own store of casted weights."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class Shards:
    """Threads that share a step's gradients; a GPU takes the batch whole. Use as a context manager."""

    def __init__(self, device: torch.device):
        self.count = CPU_SHARDS if device.type == "cpu" else 1
        self._cores = torch.get_num_threads()

    def __enter__(self) -> Shards:
        threads = max(1, self._cores // self.count)
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(threads,))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def map(self, make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """`make(item)` of each item in order, as many at once as there are threads."""
        return self._pool.map(make, items)

    def backward(
        self, parameters: Sequence[nn.Parameter], loss_of: Callable[..., torch.Tensor], *batch: torch.Tensor
    ) -> float:
        """Leave in `parameters` the gradient of the mean `loss_of(shard, *part)` of all parts; answers that mean."""

        def gradients(shard: int, *part: torch.Tensor) -> tuple[float, tuple[torch.Tensor | None, ...]]:
            loss = loss_of(shard, *part)
            return loss.item(), torch.autograd.grad(loss, parameters, allow_unused=True)

        done = list(self._pool.map(gradients, range(self.count), *(tensor.chunk(self.count) for tensor in batch)))
        for parameter, *parts in zip(parameters, *[some for _, some in done], strict=True):
            unused = any(part is None for part in parts)
            parameter.grad = None if unused else sum(parts[1:], parts[0]).div_(self.count)
        return sum(loss for loss, _ in done) / self.count


class Ahead:
    """`make(number)` for one number after another, each made while the one before it is used. A context manager."""

    def __init__(self, make: Callable[[int], Any]):
        self._make = make
        self._number, self._next = -1, None

    def __enter__(self) -> Ahead:
        self._pool = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, number: int) -> Any:
        made: Future = self._next if number == self._number else self._pool.submit(self._make, number)
        self._number, self._next = number + 1, self._pool.submit(self._make, number + 1)
        return made.result()
