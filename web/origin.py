"""Which site a request comes from: only this site's own pages may act for a user who is signed in."""

from __future__ import annotations

from aiohttp import web
from yarl import URL

from web.problems import Problem


def refuse_foreign_origin(request: web.Request) -> None:
    """Accept requests from this site's own pages, and from clients that are not browsers.

    Raises:
        Problem: 403 when the browser says that another site's page sent it.
    """
    if is_foreign(request):
        raise Problem(403, "This is for the site's own pages only.", kind="foreign-origin")


def is_foreign(request: web.Request) -> bool:
    """Whether a browser says that another site's page sent this request.

    Browsers send ``Sec-Fetch-Site`` to https and to loopback addresses, on GET too; ``none`` means that a person typed
    the address. ``same-site`` is foreign: it includes every other port of this machine.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and not _same(origin, request.host)


def _same(origin: str, host: str) -> bool:
    try:
        url = URL(origin)
        default = {"http": 80, "https": 443}.get(url.scheme)
        here = URL(f"{url.scheme}://{host}")
        return default is not None and (url.host, url.port) == (here.host, here.port)
    except ValueError:
        return False
