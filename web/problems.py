"""Errors: every response of 400 and above is ``application/problem+json`` (RFC 9457) with the trace id."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from otel import traces
from otel.http import TRACE_ID_HEADER
from web import apidocs

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
# Renders the HTML page of a problem; see `respond`.
ErrorPage = Callable[[web.Request, "Problem"], Awaitable[web.Response]]
ERROR_PAGE = web.AppKey("error_page", ErrorPage)  # type: ignore[arg-type, var-annotated]


class Problem(Exception):
    """A response of 400 or above.

    Args:
        status: the HTTP status code.
        detail: one sentence about this occurrence.
        kind: the last part of the problem's ``type``; ``/docs`` explains it.
        members: further members of the JSON object.
        headers: further headers of the response.
        cause: the underlying error, if it says more than this one.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str = "",
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.members = dict(members or {})
        self.headers = dict(headers or {})
        self.cause = cause

    @property
    def title(self) -> str:
        return HTTPStatus(self.status).phrase

    def document(self) -> dict[str, Any]:
        document = {
            "type": f"/docs#{self.kind}" if self.kind else "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        trace_id, _ = traces.current_ids()
        if trace_id:
            document["trace_id"] = trace_id
        return document

    def response(self) -> web.Response:
        headers = dict(self.headers)
        trace_id, _ = traces.current_ids()
        if trace_id:
            headers[TRACE_ID_HEADER] = trace_id
        return web.Response(
            status=self.status, body=orjson.dumps(self.document()), headers=headers, content_type=CONTENT_TYPE
        )


def bad_request(detail: str) -> Problem:
    return Problem(400, detail, kind="bad-request")


def unavailable(detail: str, cause: BaseException | None = None, *, retry_after: int = RETRY_AFTER_SECONDS) -> Problem:
    """503 with ``Retry-After``, in seconds: a dependency is down or too slow, or the service is overloaded."""
    return Problem(503, detail, kind="unavailable", headers={"Retry-After": str(retry_after)}, cause=cause)


def timed_out(detail: str, cause: BaseException | None = None) -> Problem:
    """504: a dependency accepted the request and did not respond in time."""
    return Problem(504, detail, kind="timed-out", cause=cause)


def middleware() -> Middleware:
    """Turn every exception of a handler into a problem response, without a traceback."""

    @web.middleware
    async def respond_with_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        # No variable holds an exception at the end: its traceback refers to this frame, and such a cycle keeps all that
        # the request used in memory until the next garbage collection.
        try:
            return await handler(request)
        except Problem as error:
            return await _respond_and_record(request, error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return await _respond_and_record(request, _of_http_exception(request, error))
        except web.RequestPayloadError:  # such as gzip that is none, or chunks that are malformed
            return await _respond_and_record(request, bad_request("The body of the request cannot be read."))
        except Exception as error:
            log.exception("Unhandled error", extra={"fields": {}})
            detail = "The service failed; its log has the details."
            return await _respond_and_record(request, Problem(500, detail, kind="internal", cause=error))

    return respond_with_problems


async def _respond_and_record(request: web.Request, problem: Problem) -> web.Response:
    if problem.status >= 500:
        traces.record_failure(problem.cause or problem)
    return await respond(request, problem)


async def respond(request: web.Request, problem: Problem) -> web.Response:
    """The response to a failed request: HTML if a browser requests it, else JSON.

    A service without :data:`ERROR_PAGE` and a described route of the API always return JSON.
    """
    page = request.app.get(ERROR_PAGE)
    if page is None or apidocs.is_api(request) or "text/html" not in request.headers.get("Accept", ""):
        return problem.response()
    html: web.Response = await page(request, problem)
    return html


def _of_http_exception(request: web.Request, error: web.HTTPException) -> Problem:
    details = {
        404: f"There is nothing at {request.path[:200]!r}.",
        405: f"{request.path[:200]} does not support this method.",
    }
    kinds = {404: "not-found", 405: "method-not-allowed"}
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return Problem(
        error.status, details.get(error.status, error.reason), kind=kinds.get(error.status, ""), headers=headers
    )
