"""Headers by which a browser protects the user of a page."""

from __future__ import annotations

from aiohttp import web

NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}
# Panel and Bokeh need inline scripts and styles, eval, and scripts from blobs; nothing needs another site.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "connect-src 'self' blob:",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
FOR_PAGES = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


async def add(request: web.Request, response: web.StreamResponse) -> None:
    """A handler of ``on_response_prepare``: one header for every response, the others for HTML."""
    response.headers.update(NO_SNIFFING)
    if response.content_type == "text/html":
        response.headers.update(FOR_PAGES)
