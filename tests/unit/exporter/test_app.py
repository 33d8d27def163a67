"""The exporter: what it shows of sources that are up and down, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from exporter.app import SCRAPE_TIMEOUT, create_app
from exporter.probes import OUTCOMES
from exporter.settings import Settings
from lab.chaos.mark import marked
from lab.signals import OPENMETRICS, parse_samples
from tests.support.labs import clean_environ
from web.settings import Environment, SettingsError

NOBODY = "http://127.0.0.1:1"  # nothing listens there
LOST = "postgresql://dice:secret@127.0.0.1:1/dice"

Page = dict[tuple[str, ...], float]


async def page(client: TestClient[web.Request, web.Application], path: str, **headers: str) -> Page:
    """The samples of a page: (name, values of the labels…) → value."""
    async with client.get(path, headers={"Accept": OPENMETRICS, **headers}) as response:
        assert response.status == 200
        samples = parse_samples(await response.text())
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


@dataclass
class Roller:
    """A dice-roller with a fixed response; without one it hangs."""

    body: str | None = None
    status: int = 200
    asked: list[str] = field(default_factory=list)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if self.body is None:
            await asyncio.sleep(60)
        body = self.body or ""
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        for part in (body[:3], body[3:]):  # a response may arrive in several pieces
            await response.write(part.encode())
            await asyncio.sleep(0.01)
        return response

    @asynccontextmanager
    async def probed(self, timeout: float = 60.0) -> AsyncIterator[TestClient[web.Request, web.Application]]:
        """A client of an exporter that may probe it."""
        app = web.Application()
        app.router.add_get("/{path}", self.respond)
        async with (
            TestServer(app) as server,
            TestClient(TestServer(create_app(settings(server.make_url("/").origin(), timeout)))) as client,
        ):
            yield client


def settings(url: URL | str = NOBODY, timeout: float = 5.0) -> Settings:
    return Settings("127.0.0.1", 0, targets={"dice-roller": URL(url)}, probe_timeout=timeout)


def outcome(samples: Page) -> str:
    (found,) = (one for one in OUTCOMES if samples["probe_outcome", one] == 1)
    assert {samples["probe_outcome", one] for one in OUTCOMES} == {0, 1}
    assert samples["probe_success",] == (found == "success")
    return found


@pytest.mark.parametrize(
    ("module", "body", "status", "expected"),
    [
        ("roll", '{"roll": 6}', 200, "success"),
        ("roll", '{"roll": 7}', 200, "wrong_answer"),
        ("roll", '{"roll": "6"}', 200, "wrong_answer"),
        ("roll", "[]", 200, "wrong_answer"),
        ("roll", "<html>", 200, "wrong_answer"),
        ("roll", "[" * 4000, 200, "wrong_answer"),
        ("roll", "", 503, "failed"),
        ("roll", "", 302, "failed"),
        ("ready", "", 200, "success"),
        ("ready", "", 503, "failed"),
    ],
)
async def test_a_probe_reports_how_the_target_responded(module: str, body: str, status: int, expected: str) -> None:
    roller = Roller(body, status)
    async with roller.probed() as client:
        samples = await page(client, f"/probe?target=dice-roller&module={module}")
    assert outcome(samples) == expected
    assert samples["probe_http_status_code",] == status
    assert 0 < samples["probe_duration_seconds",] < 60
    assert roller.asked == [{"roll": "/roll?die=fair", "ready": "/readyz"}[module]]


async def test_a_target_that_is_down_is_an_outcome_and_not_an_error() -> None:
    async with TestClient(TestServer(create_app(settings()))) as client:
        samples = await page(client, "/probe?target=dice-roller&module=roll")
    assert outcome(samples) == "unreachable"
    assert samples["probe_http_status_code",] == 0


async def test_a_probe_ends_before_the_scraper_gives_up() -> None:
    async with Roller().probed() as client:
        samples = await page(client, "/probe?target=dice-roller&module=roll", **{SCRAPE_TIMEOUT: "0.7"})
    assert outcome(samples) == "timeout"
    assert samples["probe_duration_seconds",] >= 0.19


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("target=http://evil.example&module=roll", "target must be one of dice-roller\n"),
        ("module=roll", "target must be one of dice-roller\n"),
        ("target=dice-roller", "module must be one of ready, roll\n"),
        ("target=dice-roller&module=format", "module must be one of ready, roll\n"),
        ("target=dice-roller&target=dice-roller&module=roll", "target must be one of dice-roller\n"),
    ],
)
async def test_only_listed_targets_and_modules_are_probed(query: str, message: str) -> None:
    async with (
        TestClient(TestServer(create_app(settings()))) as client,
        client.get(f"/probe?{query}") as response,
    ):
        assert (response.status, await response.text()) == (400, message)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/metrics", {"Host": "exporter:8000"}, 200),
        ("/metrics", {"Host": "evil.example"}, 421),
        ("/metrics", {"Host": "evil:port"}, 400),
        ("/probe?target=dice-roller&module=roll", {"Host": "evil.example"}, 421),
        ("/probe?target=dice-roller&module=roll", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/probe?target=dice-roller&module=roll", {SCRAPE_TIMEOUT: "soon"}, 400),
        ("/probe?target=dice-roller&module=roll", {SCRAPE_TIMEOUT: "nan"}, 400),
        ("/probe?target=dice-roller&module=roll", {SCRAPE_TIMEOUT: "-1"}, 400),
    ],
)
async def test_other_sites_pages_are_refused(path: str, headers: dict[str, str], status: int) -> None:
    async with (
        TestClient(TestServer(create_app(settings()))) as client,
        client.get(path, headers=headers) as response,
    ):
        assert response.status == status


# --- sources ---


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name, content in (
        ("logs/frontend.jsonl", "x" * 300),
        ("engines/loki/chunk", "x" * 20),
        ("traces/frontend.jsonl", "x" * 50),
        ("engines/prometheus/data/wal/0", "x" * 7),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (1000, 2000 if name.startswith("logs") else 3000))
    (tmp_path / "state.json").write_text(
        json.dumps(
            {
                "services": [{"name": "frontend", "restarts": 0}],
                "engines": [{"name": "loki", "restarts": 2}],
                "postgres": {"url": "postgresql:///", "restarts": 3},
            }
        )
    )
    return tmp_path


async def test_the_run_dir_is_measured_at_each_scrape(run_dir: Path) -> None:
    async with TestClient(TestServer(create_app(Settings("127.0.0.1", 0, run_dir=run_dir)))) as client:
        assert await page(client, "/metrics") == {
            ("dicelab_run_dir_up",): 1,
            ("dicelab_run_dir_bytes", "logs"): 320,
            ("dicelab_run_dir_bytes", "metrics"): 7,
            ("dicelab_run_dir_bytes", "traces"): 50,
            ("dicelab_newest_timestamp_seconds", "logs"): 2000,
            ("dicelab_newest_timestamp_seconds", "traces"): 3000,
            ("dicelab_restarts_total", "frontend"): 0,
            ("dicelab_restarts_total", "loki"): 2,
            ("dicelab_restarts_total", "postgres"): 3,
        }
        (run_dir / "logs" / "dice-roller.jsonl").write_text("y")
        assert (await page(client, "/metrics"))["dicelab_run_dir_bytes", "logs"] == 321
        (run_dir / "state.json").unlink()  # as during the start of a lab
        samples = await page(client, "/metrics")
        assert samples["dicelab_run_dir_up",] == 1
        assert ("dicelab_restarts_total", "loki") not in samples


async def test_an_experiment_is_shown_while_it_runs(tmp_path: Path) -> None:
    shown = ("dicelab_experiment_running", "database-down")
    async with TestClient(TestServer(create_app(Settings("127.0.0.1", 0, run_dir=tmp_path)))) as client:
        with marked(tmp_path, "network-slow"):
            pass
        with marked(tmp_path, "database-down"):
            assert (await page(client, "/metrics"))[shown] == 1
            with marked(tmp_path, "another"):  # refused by the lab; the first one still runs
                assert (await page(client, "/metrics"))[shown] == 1
        assert (tmp_path / "experiment").exists()
        assert shown not in await page(client, "/metrics")


async def test_a_source_that_is_down_has_only_its_up_metric(tmp_path: Path) -> None:
    away = Settings("127.0.0.1", 0, database_url=LOST, run_dir=tmp_path / "gone")
    async with TestClient(TestServer(create_app(away))) as client:
        assert await page(client, "/metrics") == {("dicelab_database_up",): 0, ("dicelab_run_dir_up",): 0}


async def test_a_database_that_hangs_delays_no_other_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections but never responds
        silent.setblocking(False)
        url = f"postgresql://dice@127.0.0.1:{silent.getsockname()[1]}/dice"
        async with TestClient(TestServer(create_app(Settings("127.0.0.1", 0, database_url=url)))) as client:
            scrape = asyncio.create_task(page(client, "/metrics"))
            connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            with connection:
                async with client.get("/readyz") as response:
                    assert response.status == 200
                assert not scrape.done()
                assert await scrape == {("dicelab_database_up",): 0}


async def test_the_page_has_the_format_that_the_scraper_accepts(run_dir: Path) -> None:
    async with TestClient(TestServer(create_app(Settings("127.0.0.1", 0, run_dir=run_dir)))) as client:
        for accept, end in (("application/openmetrics-text; version=1.0.0", "# EOF\n"), ("text/plain", "")):
            async with client.get("/metrics", headers={"Accept": accept}) as response:
                assert response.headers["Content-Type"].startswith(accept.partition(";")[0])
                assert (await response.text()).endswith(end)


# --- settings ---


def test_settings_are_read() -> None:
    read = Settings.read(
        Environment({"PROBE_TARGETS": "dice-roller=http://a:1, frontend=http://b:2", "TELEMETRY_DIR": "x"})
    )
    assert read.targets == {"dice-roller": URL("http://a:1"), "frontend": URL("http://b:2")}
    assert (read.run_dir, read.database_url, read.port) == (Path("x"), "", 8026)
    assert "secret" not in repr(Settings.read(Environment({"DATABASE_URL": LOST})))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROBE_TARGETS", "frontend"),
        ("PROBE_TARGETS", "=http://127.0.0.1:8000"),
        ("PROBE_TARGETS", "frontend=ftp://127.0.0.1:8000"),
        ("PROBE_TIMEOUT", "0"),
        ("EXPORTER_PORT", "65536"),
        ("DATABASE_URL", "mysql://secret"),
    ],
)
def test_a_wrong_setting_is_one_line(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}") as error:
        Settings.read(Environment({name: value}))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_wrong_setting_stops_the_start() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "exporter"],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environ(PROBE_TARGETS="frontend"),
    )
    assert process.returncode == 2
    assert process.stderr == (
        "exporter: PROBE_TARGETS: 'frontend' must be a name and a URL such as frontend=http://127.0.0.1:8002\n"
    )
