"""A load generator with little overhead: ``python -m bench.load URL CLIENTS SECONDS``.

Each client keeps one connection and sends the next request as soon as the previous response has arrived. Prints a JSON
object: ``requests``, ``seconds``, ``failed`` (responses other than 200), ``p50`` and ``p99`` in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter
from typing import cast

import uvloop
from yarl import URL

from lab.load.latency import Latencies

FIRST_TIMEOUT = 30.0  # seconds for the first response


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, took: list[float], ended: asyncio.Future[None]) -> None:
        self._request = request
        self._took = took
        self._ended = ended
        self._buffer = b""
        self._sent = 0.0
        self.failed = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent = perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
        if len(body) < length:
            return
        self._buffer = body[length:]
        self._took.append(perf_counter() - self._sent)
        self.failed += not head.startswith(b"HTTP/1.1 200")
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def load(url: URL, clients: int, seconds: float) -> dict[str, float]:
    request = f"GET {url.raw_path_qs} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    took: list[float] = []
    ended = loop.create_future()
    assert url.host is not None
    assert url.port is not None
    host, port = url.host, url.port
    made = [
        (await loop.create_connection(lambda: _Client(request, took, ended), host, port))[1] for _ in range(clients)
    ]
    took.clear()  # only responses from here on count
    started = perf_counter()
    done, _ = await asyncio.wait([ended], timeout=seconds)
    while not took and not done and perf_counter() - started < FIRST_TIMEOUT:  # wait for at least one response
        done, _ = await asyncio.wait([ended], timeout=0.1)
    lasted = perf_counter() - started
    for client in made:
        client.close()
    if done:
        raise ConnectionError("the service closed a connection")
    if not took:
        raise ConnectionError("the service did not answer any request")
    latencies = Latencies(took)
    return {
        "requests": len(took),
        "seconds": lasted,
        "failed": sum(client.failed for client in made),
        "p50": latencies.percentile(50) * 1000,
        "p99": latencies.percentile(99) * 1000,
    }


def main() -> None:
    url, clients, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(load(URL(url), int(clients), float(seconds)))))


if __name__ == "__main__":
    main()
