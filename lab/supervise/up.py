"""``dicelab up``: start what a stage needs, wait until it is ready, follow its logs, stop it in order."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from yarl import URL

from lab import LabError
from lab.chaos.faults import FaultServer, Link
from lab.supervise import engines, stages
from lab.supervise.processes import OnLines, Process, take_turns
from lab.supervise.rundir import RunDir
from lab.supervise.stages import Service, Stage
from lab.supervise.supervisor import Kept, KeptPostgres, KeptProcess, Launch
from lab.supervise.tail import Tail, render

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
    workers: int = 1  # processes of each service that may have several


class Lab:
    """One running lab."""

    def __init__(self, options: Options, environ: Mapping[str, str], console: Console) -> None:
        self._options = options
        self._environ = environ
        self._console = console
        self._run_dir = RunDir(options.run_dir)
        self._stage: Stage = stages.load(options.stage)
        self._processes: list[KeptProcess] = []
        self._engines: list[KeptProcess] = []
        self._plan = (
            engines.plan(self._stage, options.base_port, self._run_dir.engines, self._run_dir.logs, environ)
            if options.engines
            else None
        )
        self._postgres: KeptPostgres | None = None
        self._faults: FaultServer | None = None
        self._workers_dir: Path | None = None
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
            for kept in self._processes + self._engines:
                kept.process.kill()
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
            self._postgres = KeptPostgres(self._run_dir.postgres)
            await self._postgres.start()
            self._database_url = self._postgres.url
        if self._plan:
            await self._start_engines(self._plan)
        if self._options.workers > 1:
            # Not in the run dir: the path of a socket must be short.
            self._workers_dir = Path(tempfile.mkdtemp(prefix="dicelab-"))
        for service in self._stage.services:
            for worker in range(1, self._workers(service) + 1):
                name = service.name if worker == 1 else f"{service.name}-{worker}"
                launch = self._launch(
                    service.name,
                    [sys.executable, "-m", service.module],
                    self._service_environ(service, worker),
                    self._run_dir.logs / f"{service.name}.jsonl",
                    self._run_dir.logs / f"{service.name}.stderr",
                    on_lines,
                )
                self._processes.append(await self._started(name, launch))
        await self._workers_ready()
        await self._ready({service.name: f"{self._url(service)}/readyz" for service in self._stage.services})
        self._faults = FaultServer(self._kept(), self._links())
        await self._faults.open()
        self._announce()
        self._run_dir.write_state(self._state())  # the sign for others that all is there

    def _launch(
        self, name: str, command: list[str], environ: Mapping[str, str], stdout: Path, stderr: Path, on_lines: OnLines
    ) -> Launch:
        async def launch(variables: Mapping[str, str]) -> Process:
            return await Process.start(name, command, {**environ, **variables}, stdout, stderr, on_lines)

        return launch

    async def _started(self, name: str, launch: Launch) -> KeptProcess:
        kept = KeptProcess(name, launch)
        await kept.start()
        return kept

    def _kept(self) -> dict[str, Kept]:
        kept: list[Kept] = [*self._processes, *self._engines]
        if self._postgres is not None:
            kept.append(self._postgres)
        return {entry.name: entry for entry in kept}

    def _links(self) -> dict[str, Link]:
        """The ways between services that an experiment can make slow."""
        processes = {kept.name: kept for kept in self._processes}
        links = {}
        if "die-service" in processes:
            service = next(service for service in self._stage.services if service.name == "die-service")
            url = URL(self._url(service))
            links["die-service"] = Link(
                processes["dice-roller"],
                (str(url.host), int(url.port or 0)),
                lambda port: {service.url_variable: f"http://127.0.0.1:{port}"},
            )
        if self._postgres is not None:
            database = URL(self._database_url)
            socket_path = Path(database.query["host"]) / ".s.PGSQL.5432"
            links["postgres"] = Link(
                processes["die-service"],
                socket_path,
                lambda port: {"DATABASE_URL": f"postgresql://postgres@127.0.0.1:{port}{database.path}"},
            )
        return links

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
            launch = self._launch(
                engine.name, plan.command(engine, binary, variables), {**self._environ, **variables}, log, log, _ignore
            )
            self._engines.append(await self._started(engine.name, launch))
        await self._ready({engine.name: plan.url(engine) + engine.ready_path for engine, _ in plan.found})

    def _workers(self, service: Service) -> int:
        return self._options.workers if service.many else 1

    def _service_environ(self, service: Service, worker: int) -> dict[str, str]:
        environ = {**self._environ, **self._stage.variables}
        environ["HOST"] = self._options.host
        environ["PORT"] = str(self._port(service))
        environ["DATABASE_URL"] = self._database_url
        if self._workers_dir is not None and service.many:
            environ["WORKERS_DIR"] = str(self._workers_dir)
        for other in self._stage.services:
            environ[other.url_variable] = self._url(other)
        environ.setdefault("TELEMETRY_DIR", str(self._run_dir.path))
        environ.setdefault("SESSIONS_FILE", str(self._run_dir.path / "sessions"))
        if self._plan:
            for name, url in self._plan.urls().items():
                environ.setdefault(name, url)
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
            environ["TRACES_FILE"] = str(
                self._run_dir.traces / f"{service.name}{f'-{worker}' if worker > 1 else ''}.jsonl"
            )
            environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", FILE_EXPORT_DELAY_MS)
        return environ

    async def _workers_ready(self) -> None:
        """Wait until each worker has said that it is ready; which one answers at a port is anybody's guess.

        Raises:
            LabError: as :meth:`_ready` does.
        """
        if self._workers_dir is None:
            return
        deadline = time.monotonic() + READY_TIMEOUT
        for service in self._stage.services:
            while service.many and len(list(self._workers_dir.glob(f"{service.name}-*.ready"))) < self._options.workers:
                await self._check_running()
                if time.monotonic() > deadline:
                    raise LabError(f"not every {service.name} is ready after {READY_TIMEOUT:.0f} s")
                await asyncio.sleep(READY_POLL)

    async def _check_running(self) -> None:
        ended = next((k for k in self._processes + self._engines if not k.process.running), None)
        if ended is not None:
            status = await ended.process.ended()
            self._report_end(ended.process, status)
            raise LabError(f"the {ended.name} ended with status {status} before it was ready")

    async def _ready(self, urls: Mapping[str, str]) -> None:
        """Wait until each of these answers 200.

        Raises:
            LabError: when one does not in time, or when any process has ended meanwhile.
        """
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
            deadline = time.monotonic() + READY_TIMEOUT
            for name, url in urls.items():
                while (missing := await readiness(session, url)) is not None:
                    await self._check_running()
                    if time.monotonic() > deadline:
                        raise LabError(f"the {name} is not ready after {READY_TIMEOUT:.0f} s: {missing}")
                    await asyncio.sleep(READY_POLL)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "stage": self._stage.number,
            "pid": os.getpid(),
            "services": [self._service_state(service) for service in self._stage.services],
            "roll_delay": float(self._service_environ(self._stage.services[0], 1).get("ROLL_DELAY") or 1.0),
        }
        if self._faults:
            state["faults"] = str(self._faults.path)
        if self._plan:
            state["engines"] = [
                {"name": engine.name, "url": self._plan.url(engine), **_ran(kept)}
                for (engine, _), kept in zip(self._plan.found, self._engines, strict=True)
            ]
            if endpoint := self._plan.otlp_endpoint():
                state["otlp_endpoint"] = endpoint  # where experiments send the spans of their own
        if self._postgres:
            state["postgres"] = {"url": self._database_url, **_ran(self._postgres)}
        elif self._stage.postgres:
            state["postgres"] = {"url": self._database_url, "pid": None}
        return state

    def _service_state(self, service: Service) -> dict[str, Any]:
        workers = [kept for kept in self._processes if kept.process.name == service.name]
        state = {"name": service.name, "url": self._url(service), **_ran(workers[0])}
        return state | {"workers": [kept.pid for kept in workers]} if len(workers) > 1 else state

    # --- follow ---

    def _announce(self) -> None:
        state = self._state()
        self._console.print(table(f"Dice Lab, stage {self._stage.number}", state))
        self._console.print(f"Logs and traces: {self._run_dir.path}", style="dim", soft_wrap=True)
        if self._options.tail:
            self._console.print("Ctrl-C stops all.", style="dim")

    async def _follow(self, stopped: asyncio.Future[Any]) -> None:
        """Until told to stop; what ends meanwhile is reported at once and started again, the others go on."""
        keepers = [asyncio.ensure_future(kept.keep(self._ended, self._again)) for kept in self._kept().values()]
        try:
            # A keeper only ends by a fault of ours or of the system's (no more processes); that ends the lab.
            done, _ = await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
            if stopped not in done:
                done.pop().result()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    def _ended(self, kept: Kept, pause: float) -> None:
        if isinstance(kept, KeptProcess):
            self._report_end(kept.process, kept.status)
        else:
            self._console.print(f"postgres ended; its log is {self._run_dir.postgres / 'log'}", style="bold red")
        self._console.print(f"{kept.name} is started again in {pause:g} s", style="bold red", highlight=False)

    def _again(self, kept: Kept) -> None:
        self._run_dir.write_state(self._state())
        self._console.print(f"{kept.name} is started again, as process {kept.pid}", style="yellow", highlight=False)

    def _report_end(self, process: Process, status: int) -> None:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        self._console.print(f"{process.name} ended with {how}; its last lines:", style="bold red")
        for line in process.last_lines():
            self._console.print(render(process.name, line.encode()), soft_wrap=True, highlight=False)

    # --- stop ---

    async def _stop(self) -> None:
        if self._faults is not None:
            await self._faults.close()
        for kept in [*reversed(self._processes), *reversed(self._engines)]:
            await kept.process.stop()
        if self._postgres is not None:
            await self._postgres.stop()
        if self._workers_dir is not None:
            shutil.rmtree(self._workers_dir, ignore_errors=True)


def _ran(kept: Kept) -> dict[str, Any]:
    return {"pid": kept.pid, "restarts": kept.restarts}


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
    entries = [*state["services"], *state.get("engines", [])]
    if "postgres" in state and state["postgres"]["pid"]:
        entries.append({**state["postgres"], "name": "postgres", "url": ""})
    for entry in entries:
        extra = []
        if ready is not None:
            again = f"started again {entry['restarts']}x" if entry["restarts"] else ""
            extra = [", ".join(filter(None, (ready.get(entry["name"], ""), again)))]
        rows.add_row(entry["name"], entry["url"], ", ".join(map(str, entry.get("workers", [entry["pid"]]))), *extra)
    return rows


def up(options: Options, console: Console) -> int:
    take_turns()
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
