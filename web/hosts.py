"""Which hosts a service accepts requests for: the defence against DNS rebinding.

A page of another site can give its own host name the address 127.0.0.1; the browser then takes this service for a
part of that site. The ``Host`` header still holds the foreign name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

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
        """Whether the host of a URL, without its port, is allowed."""
        if ANY in self._names:
            return True
        if not host:
            return False
        host = host.lower().rstrip(".")
        return host in self._names or host == "localhost" or host.endswith(".localhost") or _is_address(host)


def refuse_foreign_hosts(hosts: AllowedHosts, name: str) -> Middleware:
    """A middleware that returns 421 for a request for another host, for programs outside of :mod:`web.application`."""

    @web.middleware
    async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            known = "Host" not in request.headers or request.url.host in hosts
        except ValueError:
            raise web.HTTPBadRequest(text="the Host header is not valid\n") from None
        if not known:
            raise web.HTTPMisdirectedRequest(text=f"there is no {name} at {request.host[:256]}; see ALLOWED_HOSTS\n")
        return await handler(request)

    return refuse


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
