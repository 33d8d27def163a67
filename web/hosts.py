"""Which hosts a service answers for: the defence against DNS rebinding.

A page of another site can give its own host name the address 127.0.0.1; the browser then takes this service for a
part of that site. The ``Host`` header still holds the foreign name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

ANY = "*"


class AllowedHosts:
    """The host names of a service: ``localhost``, IP addresses, its own names, and configured ones.

    An IP address is always allowed: a browser that sends one in ``Host`` has looked up no name.

    Args:
        names: further names, without a port; ``*`` allows every name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower().rstrip(".") for name in names}

    def __contains__(self, host: str | None) -> bool:
        """Whether the host of a URL, without its port, is one of them."""
        if ANY in self._names:
            return True
        if not host:
            return False
        host = host.lower().rstrip(".")
        return host in self._names or host == "localhost" or host.endswith(".localhost") or _is_address(host)


def is_loopback(host: str) -> bool:
    """Whether a server that listens on ``host`` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
