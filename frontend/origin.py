"""Which site a request comes from: what changes something is for this site's own pages."""

from __future__ import annotations

from aiohttp import web
from yarl import URL

from web.problems import Problem


def refuse_foreign_origin(request: web.Request) -> None:
    """Let pass what this site's own pages send, and what no browser sends.

    Raises:
        Problem: 403 when the browser says that another site's page sent it.
    """
    origin = request.headers.get("Origin")
    if origin is not None and not _same(origin, request.host):
        raise Problem(403, "This is for the site's own pages only.", kind="foreign-origin")


def _same(origin: str, host: str) -> bool:
    try:
        url = URL(origin)
        default = {"http": 80, "https": 443}.get(url.scheme)
        here = URL(f"{url.scheme}://{host}")
        return default is not None and (url.host, url.port) == (here.host, here.port)
    except ValueError:
        return False
