"""Bad input of every kind: the documented response, no traceback, no new label value, one valid log line."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.support.labs import Lab, get, sign_in, wait_for

PROBLEM = "application/problem+json"
WEIRD = {
    "newlines": "fair\nX-Injected: 1",
    "quotes": "'\"`",
    "sql": "fair'; DROP TABLE dice; --",
    "script": "<script>alert(1)</script>",
    "NUL": "fa\0ir",
    "10 kB": "x" * 10_240,
    "emoji": "🎲",
    "escape sequence": "\x1b[31m",
    "traversal": "../../etc/passwd",
}


@pytest.fixture
def lab(stage_lab: Callable[..., Lab], telemetry: str) -> Lab:
    """Stage 6, with each of the two kinds of telemetry."""
    return stage_lab(6) if telemetry == "standard" else stage_lab(6, TELEMETRY=telemetry)


def labels(lab: Lab) -> set[tuple[str, str, str]]:
    """Every label value except the statuses, which HTTP bounds."""
    return {
        (service, name, value)
        for service in lab.services
        for sample in lab.samples(service)
        for name, value in sample.labels.items()
        if name not in ("le", "status", "status_code")
    }


def lines_of(lab: Lab, trace_id: str) -> list[dict[str, Any]]:
    """The lines of a trace. Only these are parsed, because there are thousands."""
    return [
        line
        for service in lab.services
        for text in lab.log_lines(service)
        if trace_id in text and (line := json.loads(text)).get("trace_id") == trace_id
    ]


def check_problem(lab: Lab, url: str, status: int, method: str = "GET", **headers: str) -> None:
    response = get(url, method=method, headers=headers)
    assert response.status == status, response.body
    assert response.headers["Content-Type"] == PROBLEM
    problem = response.json
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["type"]
    assert re.fullmatch("[0-9a-f]{32}", problem["trace_id"])
    assert problem["trace_id"] == response.trace_id
    assert b"Traceback" not in response.body
    if status == 404 and "die" in url:
        assert problem["known"] == ["extreme", "fair", "risky"]
    wait_for(
        lambda: any(line.get("http_status") == status for line in lines_of(lab, response.trace_id)),
        say=f"an access line of {url[:80]}",
    )


@pytest.mark.parametrize("service", ["dice-roller", "frontend"])
@pytest.mark.parametrize("path", ["/roll?", "/roll-async?times=3&"])
@pytest.mark.parametrize("name", WEIRD)
def test_weird_dice_are_refused(lab: Lab, service: str, path: str, name: str) -> None:
    before = labels(lab)
    status = 404 if name in ("quotes", "sql", "script", "emoji", "traversal") else 400
    check_problem(lab, f"{lab.url(service)}{path}die={quote(WEIRD[name], safe='')}", status)
    assert labels(lab) <= before | {(service, "handler", "/roll"), (service, "handler", "/roll-async")}


@pytest.mark.parametrize("name", WEIRD)
def test_weird_identifiers_are_refused(lab: Lab, name: str) -> None:
    before = labels(lab)
    status = 404 if name in ("quotes", "sql", "script", "emoji", "traversal") else 400
    check_problem(lab, f"{lab.url('die-service')}/dice?identifier={quote(WEIRD[name], safe='')}", status)
    assert labels(lab) <= before


@pytest.mark.parametrize("service", ["dice-roller", "frontend"])
@pytest.mark.parametrize("query", ["", "?die=", "?die=fair&die=risky", "?dice=fair", "?die=%ff%fe%00"])
def test_missing_empty_and_repeated_dice_are_refused(lab: Lab, service: str, query: str) -> None:
    check_problem(lab, f"{lab.url(service)}/roll{query}", 400)


@pytest.mark.parametrize("query", ["?identifier=", "?identifier=fair&identifier=risky"])
def test_empty_and_repeated_identifiers_are_refused(lab: Lab, query: str) -> None:
    check_problem(lab, f"{lab.url('die-service')}/dice{query}", 400)


@pytest.mark.parametrize("service", ["dice-roller", "frontend"])
@pytest.mark.parametrize(
    "times", ["times=0", "times=-1", "times=101", "times=1e9", "times=1000000000", "times=3.5", "times=abc",
              "times=", "", "times=2&times=3", "times=%C2%B2", "times=0x10", "times=+5", "times=%205", "times=٣"],
)  # fmt: skip
def test_invalid_times_are_refused(lab: Lab, service: str, times: str) -> None:
    check_problem(lab, f"{lab.url(service)}/roll-async?die=fair&{quote(times, safe='=&%+')}", 400)


@pytest.mark.parametrize("service", ["dice-roller", "die-service", "frontend"])
def test_wrong_methods_and_unknown_paths_are_refused(lab: Lab, service: str) -> None:
    path = "/dice" if service == "die-service" else "/roll"
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        response = get(lab.url(service) + path, method=method)
        assert response.status == 405
        assert response.headers["Allow"] == "GET"
    check_problem(lab, lab.url(service) + path, 405, method="PATCH")
    check_problem(lab, lab.url(service) + "/no/such/path", 404)
    unmatched = lab.value(service, "http_requests_total", handler="unmatched")
    for number in range(5):
        get(f"{lab.url(service)}/random/{number}")
    assert lab.value(service, "http_requests_total", handler="unmatched") == unmatched + 5


def raw(url: str, request: bytes) -> bytes:
    """Send bytes that no client library would send, and read until the server closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        response = b""
        while part := connection.recv(65536):
            response += part
    return response


@pytest.mark.parametrize("service", ["dice-roller", "die-service", "frontend"])
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /roll?die=fair HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /roll?die=" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /roll HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(2000)) + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00 this is no HTTP\r\n\r\n",
        b"GET /roll HTTP/9.9\r\nbroken header\r\n\r\n",
        b"GET /docs HTTP/1.1\r\nHost: x:99999999\r\n\r\n",
        b"GET /docs HTTP/1.1\r\nHost: a b:xx\r\n\r\n",
        b"GET /docs HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
        b"GET /docs HTTP/1.1\r\nHost: x\r\nbaggage: a=\xff\r\n\r\n",
    ],
    ids=[
        *("oversized header", "oversized request line", "too many headers", "TLS", "broken header"),
        *("port out of range", "odd host", "host of no encoding", "baggage of no encoding"),
    ],
)
def test_unreadable_requests_are_refused_and_counted(lab: Lab, service: str, request_bytes: bytes) -> None:
    before = lab.value(service, "http_requests_total", status="400", method="_OTHER")
    response = raw(lab.url(service), request_bytes)
    head, _, body = response.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1.[01] 400 ", head)
    assert PROBLEM.encode() in head
    problem = json.loads(body)
    assert problem["status"] == 400
    assert problem["trace_id"].encode() in head
    assert b"Traceback" not in body
    assert lab.value(service, "http_requests_total", status="400", method="_OTHER") == before + 1
    lab.trace(problem["trace_id"], 1)
    wait_for(lambda: any(line["logger"] == service for line in lines_of(lab, problem["trace_id"])))


def test_an_unknown_method_adds_no_label_value(lab: Lab) -> None:
    for method, status in ((b"PROPFIND", b" 405 "), (b"BREW", b" 400 "), (b"X" * 50, b" 400 ")):
        response = raw(
            lab.url("dice-roller"), method + b" /roll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert status in response.splitlines()[0]
    values = {sample.labels["method"] for sample in lab.samples("dice-roller") if "method" in sample.labels}
    assert values <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "_OTHER"}


@pytest.mark.parametrize(
    "traceparent",
    ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "a" * 16 + "-01", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01",
     "00-" + "z" * 32 + "-" + "b" * 16 + "-01", "00-" + "a" * 5000],
)  # fmt: skip
def test_malformed_trace_context_starts_a_new_trace(lab: Lab, traceparent: str) -> None:
    response = get(f"{lab.front}/roll?die=fair", headers={"traceparent": traceparent})
    assert response.status == 200
    assert re.fullmatch("[0-9a-f]{32}", response.trace_id)
    assert response.trace_id not in ("a" * 32, "0" * 32)
    lab.trace(response.trace_id, count=7)


def test_a_browser_gets_an_html_error_page(lab: Lab) -> None:
    response = get(f"{lab.front}/nowhere<script>", headers={"Accept": "text/html,*/*"})
    assert response.status == 404
    assert response.headers["Content-Type"].startswith("text/html")
    assert b"<script>" not in response.body
    assert response.trace_id.encode() in response.body


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:1", 403), ("garbage", 403), ("same", 101)],
)
def test_websocket_accepts_its_own_origin_only(lab: Lab, origin: str, status: int) -> None:
    origin = lab.front if origin == "same" else origin
    head = (
        f"GET /ws HTTP/1.1\r\nHost: {lab.front.removeprefix('http://')}\r\nOrigin: {origin}\r\n"
        f"Cookie: {sign_in(lab)}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: bokeh, none\r\n\r\n"
    )
    host, port = lab.front.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        response = connection.recv(65536)
    if status == 101:
        # The frontend accepts it; Panel then refuses a connection without a page's token.
        assert b" 101 " in response.splitlines()[0]
    else:
        assert b" 403 " in response.splitlines()[0]
        assert PROBLEM.encode() in response


def test_the_api_responds_to_browsers_with_json(lab: Lab) -> None:
    check_problem(lab, f"{lab.front}/roll?die=nosuch", 404, Accept="text/html,*/*")


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x", "a/b; q=z", ",;="])
def test_metrics_in_an_unknown_format(lab: Lab, accept: str) -> None:
    response = get(lab.url("dice-roller") + "/metrics", headers={"Accept": accept})
    assert response.status in (200, 400)
    assert b"Traceback" not in response.body


@pytest.mark.parametrize("target", ["{front}/docs", "{front}/static/js/bokeh.min.js", "{front}/", "/static/../metrics"])
def test_unusual_request_targets(lab: Lab, target: str) -> None:
    target = target.format(front=lab.front)
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    status = int(raw(lab.front, request).split(b" ", 2)[1])
    assert status in (200, 303, 400, 403, 404)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"name=\xff\xfe"),
        ("application/x-www-form-urlencoded; charset=klingon", b"name=a"),
        ("multipart/form-data", b"name=a"),
        ("multipart/form-data; boundary=x", b"no boundary"),
        ("application/json", b'{"name": 1}'),
    ],
)
def test_unreadable_forms_are_refused(lab: Lab, content_type: str, body: bytes) -> None:
    head = (
        f"POST /sign-in HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    )
    response = raw(lab.front, head.encode() + b"Connection: close\r\n\r\n" + body)
    assert b" 400 " in response.splitlines()[0]


def test_a_redirect_is_counted_and_traced(lab: Lab) -> None:
    before = lab.value("frontend", "http_requests_total", handler="/", status="303")
    response = raw(lab.front, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = response.split(b"\r\n\r\n")[0].decode()
    assert " 303 " in head.splitlines()[0]
    assert "\r\nLocation: /sign-in" in head
    assert re.search(r"\r\nX-Trace-Id: [0-9a-f]{32}", head)
    assert lab.value("frontend", "http_requests_total", handler="/", status="303") == before + 1


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out"])
def test_forms_of_other_sites_are_refused(lab: Lab, path: str) -> None:
    check_problem(lab, lab.front + path, 403, method="POST", Origin="http://evil.example")


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\nb", "\x00"])
def test_invalid_names_are_refused(lab: Lab, name: str) -> None:
    form = urlencode({"name": name}).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        direct.open(f"{lab.front}/sign-in", data=form)
    assert refused.value.code == 400
    assert "1 to 64 characters" in (body := refused.value.read().decode()) or "printable" in body


def test_a_forged_cookie_is_not_a_session(lab: Lab) -> None:
    name = sign_in(lab).partition("=")[0]
    forged = {"Cookie": f'{name}="WyIwMDAwMDAwMC0wMDAwLTAwMDAtMDAwMC0wMDAwMDAwMDAwMDAiLCJldmlsIl0.aaaa.bbbb"'}
    lab.settle("frontend")
    usage = len([line for line in lab.logs("frontend") if "usage" in line])
    response = get(f"{lab.front}/roll?die=fair", headers=forged)
    assert response.status == 200
    lab.settle("frontend")
    assert len([line for line in lab.logs("frontend") if "usage" in line]) == usage
    assert b"Sign in" in get(f"{lab.front}/", headers=forged).body
