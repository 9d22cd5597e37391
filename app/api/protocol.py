"""The receive deadline and the longest head: a request that drips or never ends loses its connection.

uvicorn has neither, and an ASGI middleware starts only after the headers are parsed, so the clock stands in
the protocol class. It runs from the first moment of a connection (or the first byte of a later request on it) to the
end of that request's body; while the application itself keeps the client waiting it does not run. Where the application
takes a body of any length (`scope["extensions"][RECEIVE_AT_RATE]()`), the clock asks for a rate instead of an end.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 1024
RECEIVE_AT_RATE = "eis.receive_at_rate"
LOWEST_RATE = 64 * 1024
"""Bytes in a second, over the length of a deadline, below which a long body is given up."""


def last_word(status: str, code: str, message: str) -> bytes:
    """A whole answer after which the connection is closed."""
    body = b'{"error":{"code":"%s","message":"%s","details":{}}}' % (code.encode(), message.encode())
    head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


LATE = last_word("408 Request Timeout", "request_timeout", "The request did not arrive in time.")
LONG = last_word("431 Request Header Fields Too Large", "head_too_large", "The request's head is longer than 64 KiB.")


class DeadlineProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with a clock on what the client sends."""

    receive_seconds = 60.0
    deadline: asyncio.TimerHandle | None = None
    head_bytes = 0
    head_open = True
    received = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)
        if self.head_open:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_LIMIT and not self.transport.is_closing():
                self.transport.write(LONG)
                self.transport.close()

    def on_headers_complete(self) -> None:
        self.head_open = False
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        self.head_bytes, self.head_open = 0, True
        self.start_clock()
        super().on_message_begin()
        self.scope["extensions"] = {RECEIVE_AT_RATE: self.receive_at_rate}

    def on_message_complete(self) -> None:
        self.stop_clock()
        super().on_message_complete()

    def start_clock(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(self.receive_seconds, self.give_up)

    def stop_clock(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def receive_at_rate(self) -> None:
        """Let the body of this request take as long as it needs while it arrives at the lowest rate."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.received = 0
            self.deadline = self.loop.call_later(self.receive_seconds, self.judge_rate)

    def judge_rate(self) -> None:
        # A client that is kept from sending because the application does not read yet is not slow.
        if self.received < LOWEST_RATE * self.receive_seconds and not self.flow.read_paused:
            self.give_up()
            return
        self.received = 0
        self.deadline = self.loop.call_later(self.receive_seconds, self.judge_rate)

    def give_up(self) -> None:
        self.deadline = None
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(LATE)
        self.transport.close()


def deadline_protocol(receive_seconds: float) -> type[DeadlineProtocol]:
    """The protocol class with this operator's deadline, for `uvicorn.Config(http=...)`."""
    return type("DeadlineProtocol", (DeadlineProtocol,), {"receive_seconds": receive_seconds})
