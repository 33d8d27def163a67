"""``dicelab up``: start what a stage needs, wait until it is ready, follow its logs, stop it in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from lab import LabError, engines, stages
from lab.postgres import EmbeddedPostgres
from lab.processes import OnLines, Process
from lab.rundir import RunDir
from lab.stages import Service, Stage
from lab.tail import Tail, render

READY_TIMEOUT = 60.0  # seconds
READY_POLL = 0.05
# Spans leave for the files this soon, in milliseconds, so that a roll can be looked at right after it.
FILE_EXPORT_DELAY_MS = "300"


@dataclass(frozen=True)
class Options:
    stage: int
    base_port: int
    run_dir: Path
    host: str
    roll_delay: float | None
    engines: bool  # start those that are found on PATH
    tail: bool  # follow the services' logs


class Lab:
    """One running lab."""

    def __init__(self, options: Options, environ: Mapping[str, str], console: Console) -> None:
        self._options = options
        self._environ = environ
        self._console = console
        self._run_dir = RunDir(options.run_dir)
        self._stage: Stage = stages.load(options.stage)
        self._processes: list[Process] = []
        self._engines: list[Process] = []
        self._plan = (
            engines.plan(self._stage, options.base_port, self._run_dir.engines, self._run_dir.logs, environ)
            if options.engines
            else None
        )
        self._postgres: EmbeddedPostgres | None = None
        self._postgres_start: asyncio.Future[None] | None = None
        self._database_url = environ.get("DATABASE_URL", "")

    async def run(self) -> int:
        """Start, follow and stop; returns the exit status.

        Raises:
            LabError: when something is in the way before anything has started, or when the start fails.
        """
        self._run_dir.claim()
        try:
            self._check_ports()
        except LabError:
            self._run_dir.release()
            raise
        tail = Tail(self._console) if self._options.tail else None
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, stop)
        try:
            stopped = asyncio.ensure_future(stop.wait())
            starting = asyncio.ensure_future(self._start(tail.lines if tail else _ignore))
            await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._follow(stopped)
            else:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        finally:
            await self._stop()
            if tail:
                tail.stop()
            self._run_dir.release()
        return 0

    def _on_signal(self, stop: asyncio.Event) -> None:
        if stop.is_set():  # the second time: at once
            for process in self._processes + self._engines:
                process.kill()
        stop.set()

    # --- start ---

    def _port(self, service: Service) -> int:
        return self._options.base_port + service.port_offset

    def _url(self, service: Service) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._options.host, self._options.host)
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self._port(service)}"

    def _check_ports(self) -> None:
        needed = [(self._options.host, self._port(service), service.name) for service in self._stage.services]
        if self._plan:
            needed += [(engines.HOST, port, name) for port, name in self._plan.ports()]
        for host, port, name in needed:
            try:
                family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise LabError(
                    f"port {port} on {host}, for the {name}, cannot be had: {reason}; --base-port chooses others"
                ) from None

    async def _start(self, on_lines: OnLines) -> None:
        if self._stage.postgres and not self._database_url:
            self._postgres = EmbeddedPostgres(self._run_dir.postgres)
            # Its own task: whoever stops us now must wait until there is something to stop.
            self._postgres_start = asyncio.ensure_future(asyncio.to_thread(self._postgres.start))
            await asyncio.shield(self._postgres_start)
            self._database_url = self._postgres.url
        if self._plan:
            await self._start_engines(self._plan)
        for service in self._stage.services:
            self._processes.append(
                await Process.start(
                    service.name,
                    [sys.executable, "-m", service.module],
                    self._service_environ(service),
                    self._run_dir.logs / f"{service.name}.jsonl",
                    self._run_dir.logs / f"{service.name}.stderr",
                    on_lines,
                )
            )
        await self._ready({service.name: f"{self._url(service)}/readyz" for service in self._stage.services})
        self._announce()
        self._run_dir.write_state(self._state())  # the sign for others that all is there

    async def _start_engines(self, plan: engines.Plan) -> None:
        for engine in plan.missing:
            self._console.print(
                f"{engine.name} is not on PATH: {engine.without}. To be had: {engine.get_it}",
                style="yellow",
                soft_wrap=True,
                highlight=False,
            )
        plan.prepare({service.name: self._url(service).removeprefix("http://") for service in self._stage.services})
        variables = plan.variables(self._database_url)
        for engine, binary in plan.found:
            log = self._run_dir.engines / f"{engine.name}.log"
            self._engines.append(
                await Process.start(
                    engine.name,
                    plan.command(engine, binary, variables),
                    {**self._environ, **variables},
                    log,
                    log,
                    _ignore,
                )
            )
        await self._ready({engine.name: plan.url(engine) + engine.ready_path for engine, _ in plan.found})

    def _service_environ(self, service: Service) -> dict[str, str]:
        environ = {**self._environ, **self._stage.variables}
        environ["HOST"] = self._options.host
        environ["PORT"] = str(self._port(service))
        environ["DATABASE_URL"] = self._database_url
        for other in self._stage.services:
            environ[other.url_variable] = self._url(other)
        if self._options.roll_delay is not None:
            environ["ROLL_DELAY"] = str(self._options.roll_delay)
        if not (environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
            protocol = (
                environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
            )
            endpoint = self._plan.otlp_endpoint(protocol) if self._plan else None
            if endpoint:
                environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
                return environ
            environ["TRACES_FILE"] = str(self._run_dir.traces / f"{service.name}.jsonl")
            environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", FILE_EXPORT_DELAY_MS)
        return environ

    async def _ready(self, urls: Mapping[str, str]) -> None:
        """Wait until each of these answers 200.

        Raises:
            LabError: when one does not in time, or when any process has ended meanwhile.
        """
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
            deadline = time.monotonic() + READY_TIMEOUT
            for name, url in urls.items():
                while (missing := await readiness(session, url)) is not None:
                    ended = next((p for p in self._processes + self._engines if not p.running), None)
                    if ended is not None:
                        status = await ended.ended()
                        self._report_end(ended, status)
                        raise LabError(f"the {ended.name} ended with status {status} before it was ready")
                    if time.monotonic() > deadline:
                        raise LabError(f"the {name} is not ready after {READY_TIMEOUT:.0f} s: {missing}")
                    await asyncio.sleep(READY_POLL)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "stage": self._stage.number,
            "pid": os.getpid(),
            "services": [
                {"name": service.name, "url": self._url(service), "pid": process.pid}
                for service, process in zip(self._stage.services, self._processes, strict=True)
            ],
            "roll_delay": float(self._service_environ(self._stage.services[0]).get("ROLL_DELAY") or 1.0),
        }
        if self._plan:
            state["engines"] = [
                {"name": engine.name, "url": self._plan.url(engine), "pid": process.pid}
                for (engine, _), process in zip(self._plan.found, self._engines, strict=True)
            ]
            if endpoint := self._plan.otlp_endpoint():
                state["otlp_endpoint"] = endpoint  # where experiments send the spans of their own
        if self._stage.postgres:
            state["postgres"] = {"url": self._database_url, "pid": self._postgres.pid if self._postgres else None}
        return state

    # --- follow ---

    def _announce(self) -> None:
        state = self._state()
        self._console.print(table(f"Dice Lab, stage {self._stage.number}", state))
        self._console.print(f"Logs and traces: {self._run_dir.path}", style="dim", soft_wrap=True)
        if self._options.tail:
            self._console.print("Ctrl-C stops all.", style="dim")

    async def _follow(self, stopped: asyncio.Future[Any]) -> None:
        """Until told to stop; a service that ends meanwhile is reported at once, the others go on."""
        ends: dict[asyncio.Future[Any], Process] = {
            asyncio.ensure_future(process.ended()): process for process in self._processes
        }
        watch = asyncio.ensure_future(self._watch_postgres())
        waiting: set[asyncio.Future[Any]] = {stopped, watch, *ends}
        while not stopped.done() and waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for end in done & ends.keys():
                self._report_end(ends[end], end.result())
            if watch in done and not stopped.done():
                self._console.print(f"postgres ended; its log is {self._run_dir.postgres / 'log'}", style="bold red")
        watch.cancel()

    async def _watch_postgres(self) -> None:
        while self._postgres is None or self._postgres.running():
            await asyncio.sleep(0.5)

    def _report_end(self, process: Process, status: int) -> None:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        self._console.print(f"{process.name} ended with {how}; its last lines:", style="bold red")
        for line in process.last_lines():
            self._console.print(render(process.name, line.encode()), soft_wrap=True, highlight=False)

    # --- stop ---

    async def _stop(self) -> None:
        for process in [*reversed(self._processes), *reversed(self._engines)]:
            await process.stop()
        if self._postgres is not None:
            if self._postgres_start is not None:
                await asyncio.gather(self._postgres_start, return_exceptions=True)
            await asyncio.to_thread(self._postgres.stop)


def _ignore(service: str, lines: list[bytes]) -> None:
    pass


async def readiness(session: aiohttp.ClientSession, url: str) -> str | None:
    """``None`` when what is behind the URL is ready, else what it says."""
    try:
        async with session.get(url) as response:
            if response.status == 200:
                return None
            text = await response.text()
    except (aiohttp.ClientError, asyncio.TimeoutError, UnicodeDecodeError):
        return "it does not answer"
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or f"status {response.status}"


def table(title: str, state: dict[str, Any], ready: Mapping[str, str] | None = None) -> Table:
    """The services of a state file; ``ready`` adds a column of what each says of itself."""
    rows = Table(title=title, title_justify="left")
    for column in ("Service", "URL", "pid", *(["State"] if ready is not None else [])):
        rows.add_column(column)
    for service in state["services"]:
        extra = [ready[service["name"]]] if ready is not None else []
        rows.add_row(service["name"], service["url"], str(service["pid"]), *extra)
    for engine in state.get("engines", []):
        extra = [ready.get(engine["name"], "")] if ready is not None else []
        rows.add_row(engine["name"], engine["url"], str(engine["pid"]), *extra)
    if "postgres" in state and state["postgres"]["pid"]:
        rows.add_row("postgres", "", str(state["postgres"]["pid"]), *([""] if ready is not None else []))
    return rows


def up(options: Options, console: Console) -> int:
    return asyncio.run(Lab(options, os.environ, console).run())


def up_detached(options: Options, arguments: list[str]) -> int:
    """Start the lab as a process of its own and return once it is ready, or once it has failed."""
    run_dir = RunDir(options.run_dir)
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
        log = open(run_dir.own_log, "ab")
    except OSError as error:
        raise LabError(f"run dir {run_dir.path}: {error.strerror}") from None
    with log:
        before = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "lab.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    ready = False
    try:
        while not ready and process.poll() is None:
            time.sleep(READY_POLL)
            state = run_dir.state()
            ready = state is not None and state.get("pid") == process.pid
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise LabError("interrupted; what had started is stopped again") from None
    said = run_dir.own_log.read_bytes()[before:].decode(errors="replace").rstrip()
    if not ready:
        print(said, file=sys.stderr)
        return process.returncode
    print(said)
    return 0
