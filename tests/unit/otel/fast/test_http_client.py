"""A traced session behaves like the session; test_oracle compares the spans themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, InvalidURL, web
from aiohttp.test_utils import BaseTestServer, TestServer
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource

from otel.fast import http_client
from otel.fast.spans import LeanSpan, LeanTracerProvider


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[LeanSpan]:
    """The spans that have ended."""
    spans: list[LeanSpan] = []
    provider = LeanTracerProvider(Resource({}))
    provider.add_sink(spans.append)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return spans


@pytest.fixture
async def server() -> AsyncIterator[BaseTestServer]:
    async def respond(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        return web.json_response({"method": request.method, "headers": headers, "body": await request.text()})

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound("/")

    app = web.Application()
    app.add_routes([web.route("*", "/", respond), web.get("/redirect", redirect)])
    async with TestServer(app) as server:
        yield server


@pytest.mark.parametrize("method", ["get", "options", "post", "put", "patch", "delete"])
async def test_each_method_makes_its_request_and_one_span(
    server: BaseTestServer, ended: list[LeanSpan], method: str
) -> None:
    async with ClientSession(headers={"X-Session": "1"}) as session:
        traced = http_client.instrument_session(session)
        call = getattr(traced, method)
        async with call(server.make_url("/"), data=b"x", headers={"X-Own": "2", "Traceparent": "old"}) as entered:
            document = await entered.json()
        awaited = await call(str(server.make_url("/")))
        awaited.release()
        assert not traced.closed
    assert traced.closed
    assert (document["method"], document["body"]) == (method.upper(), "x")
    headers = document["headers"]
    assert (headers["x-session"], headers["x-own"]) == ("1", "2")
    first, second = ended
    assert headers["traceparent"] == f"00-{first.trace_id}-{first.span_id}-{first.flags:02x}"
    assert (first.name, second.name) == (method.upper(), method.upper())
    assert first.attributes == second.attributes


async def test_redirects_belong_to_the_one_span(server: BaseTestServer, ended: list[LeanSpan]) -> None:
    async with ClientSession() as session:
        traced = http_client.instrument_session(session)
        async with traced.get(server.make_url("/redirect"), params={"a": "b"}) as response:
            assert response.status == 200
        async with traced.head(server.make_url("/redirect")) as response:
            assert response.status == 302
    assert [span.attributes["http.response.status_code"] for span in ended] == [200, 302]
    assert ended[0].attributes["url.full"] == str(server.make_url("/redirect").with_query(a="b"))


async def test_an_invalid_url_raises_the_sessions_own_error(ended: list[LeanSpan]) -> None:
    async with ClientSession() as session:
        with pytest.raises(InvalidURL):
            await http_client.instrument_session(session).get("http://[nowhere")
    assert not ended
