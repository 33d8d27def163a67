"""The health check of a container: ``python -m web.probe`` fails unless the service in it is ready.

It runs every few seconds, so it imports no HTTP client: that would double its cost.
"""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT = 2.0  # seconds


def probe(port: int) -> str:
    """What is wrong with the service on this port of this machine; empty when it is ready."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection,
            connection.makefile("rb") as response,
        ):
            connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            status = response.readline(1024).decode("latin-1").rstrip()
    except OSError as error:
        return str(error)
    return "" if status.split(" ")[1:2] == ["200"] else f"/readyz answers {status!r}"


if __name__ == "__main__":
    sys.exit(probe(int(os.environ["PORT"])) or None)
