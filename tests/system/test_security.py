"""The lab's protections: against foreign hosts, other sites' pages, slow clients, and restarts that lose sign-outs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
from aiohttp import ClientSession, WSServerHandshakeError

from tests.support import labs
from tests.support.browser import Open, button
from tests.support.labs import Lab, Response, get, sign_in, wait_for


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def usage(lab: Lab, name: str) -> list[str]:
    lab.settle("frontend")
    return [line["event_type"] for line in lab.logs("frontend") if line.get("username") == name]


@pytest.mark.parametrize("service", ["dice-roller", "die-service", "frontend"])
def test_every_service_refuses_foreign_hosts(stage_lab: Callable[[int], Lab], service: str) -> None:
    url = stage_lab(6).url(service)
    port = address(url)[1]
    for path in ("/metrics", "/healthz", "/docs"):
        refused = get(url + path, headers={"Host": f"evil.example:{port}"})
        assert refused.status == 421
        assert refused.json["type"] == "/docs#foreign-host"
        assert get(url + path, headers={"Host": f"{service}:{port}"}).status == 200  # its name in containers
        assert get(url + path, headers={"Host": f"localhost:{port}"}).status == 200


def test_dns_rebinding_cannot_sign_in(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(6)
    host = f"evil.example:{address(lab.front)[1]}"
    refused = get(f"{lab.front}/sign-in", method="POST", headers={"Host": host, "Origin": f"http://{host}"})
    assert refused.status == 421
    assert refused.headers["Set-Cookie"] is None


def test_allowed_hosts_can_be_added(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1, ALLOWED_HOSTS="lab.example, dice.lab.example")
    for host, status in (("lab.example", 200), ("dice.lab.example:80", 200), ("x.lab.example", 421)):
        assert get(f"{lab.front}/healthz", headers={"Host": host}).status == status


async def test_a_websocket_requires_a_session(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(6)
    cookie = await asyncio.to_thread(sign_in, lab)
    async with ClientSession() as session:
        async with session.get(lab.front, headers={"Cookie": cookie}) as page:
            token = (await page.text()).partition('"token":"')[2].partition('"')[0]
        assert token

        async def connect(**headers: str) -> str:
            async with session.ws_connect(f"{lab.front}/ws", protocols=("bokeh", token), headers=headers) as connection:
                return await connection.receive_str(timeout=10)

        with pytest.raises(WSServerHandshakeError) as refused:
            await connect()
        assert refused.value.status == 403
        with pytest.raises(WSServerHandshakeError) as refused:
            await connect(Cookie=cookie, Origin="http://evil.example")
        assert refused.value.status == 403
        assert "ACK" in await connect(Cookie=cookie)


def test_the_frontend_listens_on_its_own_port_only(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(6)
    pid = lab.pid("frontend")
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            inodes.add(os.readlink(entry.path).removeprefix("socket:[").removesuffix("]"))
    listening = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as table:
            for fields in map(str.split, table):
                if fields[3] == "0A" and fields[9] in inodes:
                    listening.append(int(fields[1].rpartition(":")[2], 16))
    assert listening == [address(lab.front)[1]]


@pytest.mark.parametrize(
    ("headers", "counted"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://evil.example"}, False),
    ],
)
def test_cross_site_rolls_are_not_counted_for_the_user(
    stage_lab: Callable[[int], Lab], headers: dict[str, str], counted: bool
) -> None:
    lab = stage_lab(6)
    name = f"user {sorted(headers.items())}"[:64]
    cookie = sign_in(lab, name)
    assert get(f"{lab.front}/roll?die=fair", headers={"Cookie": cookie, **headers}).status == 200
    assert usage(lab, name) == ["sign_in", "roll"] if counted else ["sign_in"]


@pytest.fixture(scope="module")
def second_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of stage 6 beside the shared one, whose frontend may be restarted."""
    lab = labs.start(tmp_path_factory.mktemp("second") / "run", 6)
    yield lab
    lab.stop()


def test_sign_outs_survive_a_restart(second_lab: Lab) -> None:
    lab = second_lab
    leaves, stays = sign_in(lab, "leaves"), sign_in(lab, "stays")
    assert get(f"{lab.front}/sign-out", method="POST", headers={"Cookie": leaves}).status in (200, 303)
    wait_for(lambda: usage(lab, "leaves") == ["sign_in", "sign_out"])  # a killed process loses what it has not written
    os.kill(lab.pid("frontend"), signal.SIGKILL)

    def restarted() -> bool:
        state = json.loads((lab.run_dir / "state.json").read_text())
        return any(entry["name"] == "frontend" and entry["restarts"] for entry in state["services"])

    wait_for(restarted)
    wait_for(partial(_is_ready, lab.front), timeout=60)
    for cookie in (leaves, stays):
        assert get(f"{lab.front}/roll?die=fair", headers={"Cookie": cookie}).status == 200
    assert usage(lab, "leaves") == ["sign_in", "sign_out"]
    assert usage(lab, "stays") == ["sign_in", "roll"]


def _is_ready(url: str) -> bool:
    try:
        return get(f"{url}/readyz").status == 200
    except OSError:
        return False


async def test_labs_side_by_side_have_separate_sessions(
    stage_lab: Callable[[int], Lab], second_lab: Lab, open_page: Open
) -> None:
    first, second = stage_lab(6), second_lab
    page = await open_page(first, name="of both")
    other = await page.context.new_page()
    await other.goto(second.front)
    await other.get_by_label("Your name").fill("of both")
    await other.get_by_role("button", name="Sign in").click()
    await other.get_by_role("button", name="Sign out").click()
    await other.get_by_label("Your name").wait_for()
    await page.reload()
    await button(page).wait_for()


def test_pages_have_security_headers(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(6)
    cookie = {"Cookie": sign_in(lab)}
    pages = [f"{lab.front}/", f"{lab.front}/sign-in", *(f"{lab.url(service)}/docs" for service in lab.services)]
    for response in (get(page, headers=cookie) for page in pages):
        assert response.status == 200
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["Referrer-Policy"] == "same-origin"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "http" not in policy
    assert get(f"{lab.front}/roll?die=fair").headers["X-Content-Type-Options"] == "nosniff"


def test_incomplete_requests_time_out(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(2, HEADER_TIMEOUT="2")
    clients = [socket.create_connection(address(lab.front), timeout=20) for _ in range(400)]
    try:
        for client in clients:
            client.sendall(b"GET /roll?die=fair HTTP/1.1\r\nHost: localhost\r\n")
        assert get(f"{lab.front}/roll?die=fair").status == 200
        assert [client.recv(1) for client in clients] == [b""] * 400
    finally:
        for client in clients:
            client.close()


def test_a_page_beyond_the_limit_gets_retry_after(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(2, MAX_PAGES="1")

    def load(accept: str) -> Response:
        return get(lab.front, headers={"Accept": accept})

    assert load("text/html").status == 200
    as_json, as_html = load("application/json"), load("text/html")
    assert as_json.status == as_html.status == 503
    assert as_json.headers["Retry-After"] == as_html.headers["Retry-After"] == "3"
    assert as_json.json["type"] == "/docs#unavailable"
    assert b'<meta http-equiv="refresh" content="3">' in as_html.body
    assert get(f"{lab.front}/roll?die=fair").status == 200


def test_listening_beyond_loopback_logs_a_warning(stage_lab: Callable[[int], Lab], own_lab: Callable[..., Lab]) -> None:
    open_lab = own_lab(1, "--host", "0.0.0.0")
    output = open_lab.run_dir.with_name(open_lab.run_dir.name + ".out").read_text()
    assert "WARNING: --host 0.0.0.0 opens the lab to other machines" in output
    for lab, warned in ((open_lab, True), (stage_lab(1), False)):
        lab.settle()
        warnings = [line["message"] for line in lab.logs("dice-roller") if line["level"] == "WARNING"]
        assert any("0.0.0.0" in message and "without a password" in message for message in warnings) is warned
