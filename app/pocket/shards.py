"""How a step of training keeps every core busy: its batch in parts, one a process, and the next batch made meanwhile.

A process for each part, that meets the others once a step: threads that meet at every operation spend most of their
time waiting on a CPU that does other work too, and threads of one interpreter wait for each other's Python. Parameters
and gradients lie in shared memory, so a step moves nothing but its batch.

Autocast keeps its copies of weights in a store of its own, so how often one is made depends on what ran before: a step
that is to end in the same bits each time computes in `mixed_precision`, which keeps none.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

CPU_SHARDS = 2

Loss = Callable[..., torch.Tensor]


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe, without autocast's own store of casted weights."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def count_shards(device: torch.device) -> int:
    """How many parts a batch has: a GPU takes it whole."""
    return CPU_SHARDS if device.type == "cpu" else 1


class Shards:
    """Processes that share a step's gradients of `loss_of(*part)`. Use as a context manager."""

    def __init__(self, device: torch.device, parameters: Sequence[nn.Parameter], loss_of: Loss):
        self.count = count_shards(device)
        self.parameters = list(parameters)
        self._loss_of = loss_of
        self._cores = torch.get_num_threads()
        self._threads = max(1, self._cores // self.count)
        self._helpers: list[tuple[multiprocessing.Process, Connection, list[torch.Tensor]]] = []

    def __enter__(self) -> Shards:
        if self.count > 1:
            for parameter in self.parameters:
                parameter.data.share_memory_()
        # A fork sees the networks as they are here; what a step changes of them lies in shared memory.
        context = multiprocessing.get_context("fork")
        for _ in range(self.count - 1):
            ours, theirs = context.Pipe()
            gradients = [torch.zeros_like(parameter).share_memory_() for parameter in self.parameters]
            process = context.Process(target=self._serve, args=(ours, theirs, gradients), daemon=True)
            process.start()
            theirs.close()
            self._helpers.append((process, ours, gradients))
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection, _ in self._helpers:
            connection.close()
            process.join()
        self._helpers.clear()

    def backward(self, *batch: torch.Tensor) -> float:
        """Leave in the parameters the gradient of the mean loss of all parts; answers that mean.

        An error in a part is raised, and the end of these shards.
        """
        parts = list(zip(*(tensor.chunk(self.count) for tensor in batch), strict=True))
        for (_, connection, _), part in zip(self._helpers, parts[1:], strict=True):
            connection.send([tensor.numpy() for tensor in part])
        torch.set_num_threads(self._threads)
        try:
            loss, own = self._gradients(parts[0])
        finally:
            torch.set_num_threads(self._cores)
        sums = list(own)
        for _, connection, gradients in self._helpers:
            answer = connection.recv()
            if isinstance(answer, Exception):
                raise answer
            loss += answer
            for total, gradient in zip(sums, gradients, strict=True):
                if total is not None:
                    total.add_(gradient)
        for parameter, total in zip(self.parameters, sums, strict=True):
            parameter.grad = None if total is None else total.div_(self.count)
        return loss / self.count

    def _gradients(self, part: Sequence[torch.Tensor]) -> tuple[float, tuple[torch.Tensor | None, ...]]:
        loss = self._loss_of(*part)
        return loss.item(), torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def _serve(self, ours: Connection, theirs: Connection, gradients: list[torch.Tensor]) -> None:
        """The helper process: part after part, until the other end is closed."""
        ours.close()
        torch.set_num_threads(self._threads)
        while True:
            try:
                part = [torch.from_numpy(array) for array in theirs.recv()]
            except (EOFError, ConnectionResetError):
                return
            try:
                loss, own = self._gradients(part)
            except Exception as error:
                theirs.send(RuntimeError(f"a part of the batch failed: {error}"))
                return
            for place, gradient in zip(gradients, own, strict=True):
                if gradient is not None:
                    place.copy_(gradient)
            theirs.send(loss)


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


def in_threads(device: torch.device, make: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`make(item)` of each item in order, as many at once as a batch has parts."""
    count = count_shards(device)
    threads = max(1, torch.get_num_threads() // count)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        yield from pool.map(make, items)
