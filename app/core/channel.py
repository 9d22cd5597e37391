"""Messages between the front process and a worker: one JSON object a line, over a socket pair."""

import json
import socket
import threading
from typing import Any

Message = dict[str, Any]


class Channel:
    """One end of the pair: `send` from any thread, `receive` from one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._received = bytearray()

    def send(self, message: Message) -> None:
        """Send it whole; `OSError` when the other end is gone."""
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._sending:
            self._connection.sendall(line)

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next message; None when the other end is gone, `TimeoutError` when it was silent for so long."""
        while True:
            line, found, rest = self._received.partition(b"\n")
            if found:
                self._received = rest
                return json.loads(line)
            self._connection.settimeout(seconds)
            try:
                block = self._connection.recv(1 << 18)
            except ConnectionError:
                return None
            if not block:
                return None
            self._received += block

    def close(self) -> None:
        """Close this end; the other one reads the end of the stream."""
        self._connection.close()
