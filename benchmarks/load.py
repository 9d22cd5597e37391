"""A small keep-alive HTTP/1.1 client for load on loopback: its own cost must not hide the server's."""

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """What one run of load gave: seconds of each request, statuses, and the wall time of all."""

    latencies: list[float]
    statuses: list[int]
    bodies: list[bytes]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency in seconds below which this share of the requests lies."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, await reader.readexactly(length)


async def _run(address: str, requests: list[bytes], connections: int) -> Load:
    where = urlsplit(address)
    pending = iter(requests)
    latencies: list[float] = []
    statuses: list[int] = []
    bodies: list[bytes] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        for request in pending:
            begun = time.perf_counter()
            status, body = await _one(reader, writer, request)
            latencies.append(time.perf_counter() - begun)
            statuses.append(status)
            bodies.append(body)
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return Load(latencies, statuses, bodies, time.perf_counter() - begun)


def request(address: str, method: str, path: str, body: bytes = b"") -> bytes:
    """The bytes of one request."""
    host = urlsplit(address).netloc
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    if body:
        head += "Content-Type: application/json\r\n"
    return head.encode() + b"\r\n" + body


def run(address: str, requests: list[bytes], connections: int = 8) -> Load:
    """Send all requests over this many connections."""
    return asyncio.run(_run(address, requests, connections))
