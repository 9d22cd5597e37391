"""Questions that the front asks its workers about their memory, and how the answers find back.

A question goes out with a number; a worker answers from a thread of its own, so that one that is busy answers too.
Whoever asks waits until a deadline and no longer: a worker that is lost, or that moves a large model, may be late.
"""

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.core.channel import Message
from app.errors import InvalidRequest, error_class


class Asked(Protocol):
    """What is asked of a worker here."""

    name: str

    def send(self, message: Message) -> bool:
        """Hand it a message; False when it is gone."""


@dataclass
class Reply:
    """A worker's answer; None with a `reason` when there was none in time."""

    worker: str
    answer: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    reason: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether nothing more is to come."""
        return self.answer is not None or self.error is not None or self.reason is not None

    def raise_error(self) -> None:
        """The worker's refusal as an error here."""
        if self.error is not None:
            details = self.error.get("details", {})
            raise error_class(self.error["code"])(self.error["message"], **details)


@dataclass
class Asker:
    """The questions that are out; safe to use from several threads."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _replies: dict[int, Reply] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def ask(
        self, workers: Sequence[Asked], question: str, values: Mapping[str, Any], seconds: float
    ) -> list[Reply]:
        """Ask all of them at once; one reply for each, in their order."""
        deadline = time.monotonic() + seconds
        numbers = []
        for worker in workers:
            with self._changed:
                number = next(self._numbers)
                reply = self._replies[number] = Reply(worker.name)
            numbers.append(number)
            if not worker.send({"type": "ask", "id": number, "question": question, "values": dict(values)}):
                self._settle(reply, reason="the worker is starting")
        with self._changed:
            waited = [self._replies[number] for number in numbers]
            while not all(reply.is_there for reply in waited) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            for number in numbers:
                reply = self._replies.pop(number)
                if not reply.is_there:
                    reply.reason = "the worker did not answer in time"
        return waited

    def take(self, message: Message) -> None:
        """An answer has come; one that nobody waits for any more is dropped."""
        with self._changed:
            reply = self._replies.get(message["id"])
        if reply is not None:
            self._settle(reply, answer=message.get("answer"), error=message.get("error"))

    def lose(self, worker: str) -> None:
        """This worker will answer nothing more."""
        with self._changed:
            lost = [reply for reply in self._replies.values() if reply.worker == worker and not reply.is_there]
        for reply in lost:
            self._settle(reply, reason="the worker was lost")

    def _settle(self, reply: Reply, **facts: Any) -> None:
        with self._changed:
            for name, value in facts.items():
                setattr(reply, name, value)
            self._changed.notify_all()


def ask_runtime(runtime: Any, question: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """In the worker: what its runtime answers; a worker that needs no models has nothing to tell."""
    if runtime is None:
        return {}
    match question:
        case "memory":
            return runtime.memory()
        case "configure":
            return runtime.configure(**values)
        case "cleanup":
            return runtime.cleanup()
        case _:
            raise InvalidRequest(f"A worker knows no question {question[:40]!r}.")
