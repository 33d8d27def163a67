"""``dicelab traffic``, ``compare`` and ``load-db`` in front of services that hang, fail or lack a die."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lab.supervise.rundir import RunDir
from tests.support.labs import clean_environ

Serve = Callable[[web.Application], Awaitable[TestServer]]
FACES = [1, 2, 3, 4, 5, 6]


@pytest.fixture
async def lab(aiohttp_server: Serve, tmp_path: Path) -> Path:
    """The run dir of a lab with a fair die, which rolls, and an extreme one, which fails."""
    app = web.Application()

    async def roll(request: web.Request) -> web.Response:
        failed = request.query["die"] != "fair"
        return web.json_response({} if failed else {"roll": 1, "rolls": [1]}, status=500 if failed else 200)

    async def dice(request: web.Request) -> web.Response:
        return web.json_response({"identifiers": ["fair", "extreme"], "specification": {"faces": FACES}})

    async def openapi(request: web.Request) -> web.Response:
        times = {"name": "times", "schema": {"maximum": 100}}
        paths = {"/roll": {"get": {}}, "/roll-async": {"get": {"parameters": [times]}}}
        return web.json_response({"info": {"title": "frontend"}, "paths": paths})

    app.router.add_get("/openapi.json", openapi)
    app.router.add_get("/dice", dice)
    app.router.add_get("/roll", roll)
    app.router.add_get("/roll-async", roll)
    url = str((await aiohttp_server(app)).make_url("")).rstrip("/")
    directory = RunDir(tmp_path / "run")
    directory.claim()
    services = [{"name": name, "url": url} for name in ("die-service", "dice-roller", "frontend")]
    directory.write_state({"stage": 4, "services": services})
    return directory.path


async def run(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Run the command; returns exit status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lab.cli", *map(str, arguments)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=clean_environ(**variables),
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.parametrize("command", ["traffic", "compare", "load-db"])
async def test_a_lab_that_hangs_is_reported_after_the_timeout(tmp_path: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        url = f"http://127.0.0.1:{frozen.getsockname()[1]}"
        started = time.monotonic()
        done = await run(command, "--url", url, "--timeout", "0.2", "--run-dir", tmp_path / "run")
    assert done == (1, f"dicelab: {url} does not answer: no response in time\n")
    assert time.monotonic() - started < 9  # without the option, 10 s


@pytest.mark.parametrize("command", ["traffic", "compare"])
async def test_a_die_that_the_lab_lacks_is_reported(lab: Path, command: str) -> None:
    done = await run(command, "--die", "nope", "--run-dir", lab)
    assert done == (1, "dicelab: there is no nope die in this lab; it has extreme, fair\n")


async def test_a_die_without_a_name_is_reported(lab: Path) -> None:
    done = await run("compare", "--die", "", "--run-dir", lab)
    assert done == (1, "dicelab: there is no '' die in this lab; it has extreme, fair\n")


async def test_compare_lists_failed_requests_of_both_sides(lab: Path) -> None:
    status, output = await run("compare", "--die", "extreme", "--rounds", "2", "--times", "4", "--run-dir", lab)
    assert status == 1
    failed = [line.split()[-3:-1] for line in output.splitlines() if line.startswith("failed ")]
    assert failed == [["500", "/roll"]] * 5 + [["500", "/roll-async"]] * 2
    assert "8 failed in all; --json lists them" in output


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("command", [("compare", "--rounds", "2"), ("traffic", "--think-time", "0")])
async def test_no_number_is_cut_in_a_narrow_terminal(lab: Path, command: tuple[str, ...], columns: str) -> None:
    status, output = await run(*command, "--die", "fair", "--seed", "1", "--run-dir", lab, COLUMNS=columns)
    assert status == 0
    assert "…" not in output
