"""Runs a lab: starts the planned processes, waits until they are ready, restarts those that end, stops all in order."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import aiohttp
from rich.console import Console
from yarl import URL

from lab import LabError
from lab.chaos.faults import FaultServer, Link
from lab.page.server import PageServer
from lab.signals import format_time
from lab.supervise import postgres
from lab.supervise.full_disk import TolerantFile, Unwritable
from lab.supervise.overview import announce
from lab.supervise.plan import LabPlan, Port, ProcessPlan, loopback
from lab.supervise.private import private_directories, private_directory
from lab.supervise.processes import OnLines, Process
from lab.supervise.readiness import TIMEOUT, readiness
from lab.supervise.supervised import Supervised, SupervisedPostgres, SupervisedProcess
from lab.supervise.tail import Tail, render
from lab.terminal import say
from lab.waiting import until

READY_TIMEOUT = 60.0  # seconds
# As in containers (stop_grace_period). Within 30 s of a search, Tempo 3.0 does not stop at all: its request queue waits
# for a clean-up that no longer runs. A kill loses nothing, because its last spans have been on disk for seconds.
ENGINE_STOP_TIMEOUT = 15.0  # seconds
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs one lab from its start to its end.

    Args:
        detached: whether ``dicelab up --detach`` reads stderr until the lab is ready; it then prints the table.
    """

    def __init__(self, plan: LabPlan, console: Console, detached: bool = False) -> None:
        self._plan = plan
        self._detached = detached
        self._console = console
        self._run_dir = plan.run_dir
        self._services: list[SupervisedProcess] = []
        self._engines: list[SupervisedProcess] = []
        self._postgres: SupervisedPostgres | None = None
        self._faults: FaultServer | None = None
        self._page: PageServer | None = None
        self._workers_dir: Path | None = None
        self._page_files: Path | None = None
        self._database_url = plan.external_database
        self._started = ""  # RFC 3339
        self._tolerant: TolerantFile | None = None  # replaces the console's file once the lab is ready
        self._unwritable = Unwritable(self._say_unwritable)

    async def run(self) -> None:
        """Start the lab, run it until a signal arrives, and stop it.

        Raises:
            LabError: when the start is not possible or fails.
        """
        self._run_dir.claim()
        try:
            check_ports(self._plan.ports())
        except LabError:
            self._run_dir.release()
            raise
        tail = Tail(self._console, self._run_dir.logs) if self._plan.options.tail else None
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, stop)
        try:
            stopped = asyncio.ensure_future(stop.wait())
            starting = asyncio.ensure_future(self._start(tail.lines if tail else _ignore))
            await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await self._supervise(stopped)
            else:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
        finally:
            await self._stop()
            if tail:
                tail.stop()
            if self._tolerant is not None:
                self._tolerant.close()
            self._run_dir.release()

    def _on_signal(self, stop: asyncio.Event) -> None:
        if stop.is_set():  # the second signal
            for supervised in self._services + self._engines:
                supervised.process.kill()
        stop.set()

    # --- start ---

    async def _start(self, on_lines: OnLines) -> None:
        plan = self._plan
        self._started = format_time(time.time())  # what is older in the run dir is from earlier labs
        if plan.embeds_database:
            self._postgres = SupervisedPostgres(self._run_dir.postgres)
            await self._postgres.start()
            self._database_url = self._postgres.url
        await self._start_engines()
        if loopback(plan.options.host):  # exercises restart services, which only users of this machine may do
            self._page = PageServer(self._run_dir.path)
            await self._page.open()
            plan.learn_socket = self._page.path
        if plan.options.workers > 1:
            # It holds sockets, whose paths must be short.
            self._workers_dir = private_directory(inner="/die-service-123456789012.sock")
        plan.page_files = self._page_files = private_directory(inner="/dicelab-page-12345678/panel.sock")
        for process in plan.service_processes(self._database_url, self._workers_dir):
            self._services.append(await self._start_process(process, on_lines))
        await self._workers_ready()
        await self._ready(plan.ready_urls())
        services = [supervised.name for supervised in self._services]
        self._faults = FaultServer(self._supervised(), self._links(), services, self._run_dir.engines)
        await self._faults.open()
        with self._run_dir.new_state(self._state()):  # the file signals that the lab is ready
            self._announce()
        self._tolerant = TolerantFile(cast(TextIO, self._console.file))
        self._console.file = cast(TextIO, self._tolerant)
        if self._detached:  # nobody reads the pipe any more: errors go to the log
            os.dup2(sys.stdout.fileno(), sys.stderr.fileno())

    async def _start_engines(self) -> None:
        chosen = self._plan.engines
        for engine in chosen.missing:
            say(self._console, f"{engine.name} is not on PATH: {engine.without}. Get it: {engine.get_it}", "yellow")
        chosen.prepare({service.name: self._plan.address(service) for service in self._plan.stage.services})
        for process in await asyncio.to_thread(self._plan.engine_processes, self._database_url):
            self._engines.append(await self._start_process(process, _ignore))
        await self._ready(self._plan.engine_ready_urls())

    async def _start_process(self, plan: ProcessPlan, on_lines: OnLines) -> SupervisedProcess:
        async def launch(variables: Mapping[str, str]) -> Process:
            environ = {**plan.environ, **variables}
            return await Process.start(
                plan.part, plan.command, environ, plan.stdout, plan.stderr, on_lines, self._unwritable
            )

        supervised = SupervisedProcess(plan.name, launch)
        await supervised.start()
        return supervised

    async def _workers_ready(self) -> None:
        """Wait until every worker has reported that it is ready. A request would reach an arbitrary one of them.

        Raises:
            LabError: as :meth:`_ready` does.
        """
        if self._workers_dir is None:
            return
        deadline = time.monotonic() + READY_TIMEOUT
        for service in self._plan.stage.services:
            if not service.many:
                continue
            async for _ in until(deadline):
                if len(list(self._workers_dir.glob(f"{service.name}-*.ready"))) >= self._plan.workers(service):
                    break
                await self._check_running()
            else:
                raise LabError(f"not every {service.name} is ready after {READY_TIMEOUT:.0f} s")

    async def _ready(self, urls: Mapping[str, str]) -> None:
        """Wait until each URL returns 200.

        Raises:
            LabError: when one does not in time, or when a process has ended.
        """
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
            deadline = time.monotonic() + READY_TIMEOUT
            for name, url in urls.items():
                reason: str | None = None
                async for _ in until(deadline):
                    reason = await readiness(session, url)
                    if reason is None:
                        break
                    await self._check_running()
                else:
                    raise LabError(f"the {name} is not ready after {READY_TIMEOUT:.0f} s: {reason}")
        await self._check_running()  # a program of another lab may have taken a port meanwhile, and respond there

    async def _check_running(self) -> None:
        for supervised in self._services + self._engines:
            if not supervised.process.running:
                status = await supervised.process.ended()
                self._report_end(supervised.process, status)
                raise LabError(f"the {supervised.name} ended with status {status} before it was ready")

    def _supervised(self) -> dict[str, Supervised]:
        everything: list[Supervised] = [*self._services, *self._engines]
        if self._postgres is not None:
            everything.append(self._postgres)
        return {supervised.name: supervised for supervised in everything}

    def _links(self) -> dict[str, Link]:
        """The connections between services that an experiment can slow down."""
        processes: dict[str, list[SupervisedProcess]] = {}
        for supervised in self._services:
            processes.setdefault(supervised.process.name, []).append(supervised)
        services = {service.name: service for service in self._plan.stage.services}
        links = {}
        for user, name in (("frontend", "dice-roller"), ("dice-roller", "die-service")):
            if user in processes and name in services:
                url = URL(self._plan.url(services[name]))
                links[name] = Link(
                    processes[user],
                    (str(url.host), int(url.port or 0)),
                    partial(_proxied, services[name].url_variable),
                )
        if self._postgres is not None:
            links["postgres"] = Link(
                processes["die-service"],
                self._postgres.socket,
                lambda address: {"DATABASE_URL": postgres.url(Path(address).parent)},
            )
        return links

    def _state(self) -> dict[str, Any]:
        plan = self._plan
        state: dict[str, Any] = {
            "stage": plan.stage.number,
            "telemetry": plan.telemetry,
            "sampling": plan.sampling,
            "pid": os.getpid(),
            "started": self._started,
            "services": [
                {"name": service.name, "url": plan.url(service), **self._processes_of(service.name)}
                for service in plan.stage.services
            ],
            "roll_delay": plan.roll_delay,
        }
        # A lab that is killed leaves them; the next one in this run dir removes them.
        state["directories"] = [str(directory) for directory in private_directories()]
        if self._faults:
            state["faults"] = str(self._faults.path)
        state["engines"] = [
            {"name": engine.name, "url": plan.engines.url(engine), "pid": own.pid, "restarts": own.restarts}
            for (engine, _), own in zip(plan.engines.found, self._engines, strict=True)
        ]
        if endpoint := plan.engines.otlp_endpoint():
            state["otlp_endpoint"] = endpoint  # where commands send their own spans
        if self._postgres:
            state["postgres"] = {
                "url": self._database_url,
                "pid": self._postgres.pid,
                "restarts": self._postgres.restarts,
            }
        elif plan.stage.postgres:
            state["postgres"] = {"url": self._database_url, "pid": None}
        return state

    def _processes_of(self, service: str) -> dict[str, Any]:
        workers = [supervised for supervised in self._services if supervised.process.name == service]
        state: dict[str, Any] = {"pid": workers[0].pid, "restarts": workers[0].restarts}
        return state | {"workers": [worker.pid for worker in workers]} if len(workers) > 1 else state

    def _announce(self) -> None:
        if self._detached:
            return
        announce(self._console, self._run_dir, self._state())
        if self._plan.options.tail:
            say(self._console, "Ctrl-C stops the lab.", "dim")

    # --- supervise ---

    async def _supervise(self, stopped: asyncio.Future[Any]) -> None:
        """Report each process that ends, and start it again, until ``stopped`` is done."""
        tasks = [
            asyncio.ensure_future(supervised.supervise(self._on_end, self._on_restart))
            for supervised in self._supervised().values()
        ]
        try:
            # A task ends only with an unexpected error, which ends the lab.
            done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if stopped not in done:
                done.pop().result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _on_end(self, supervised: Supervised, pause: float) -> None:
        if isinstance(supervised, SupervisedProcess):
            self._report_end(supervised.process, supervised.status)
        else:
            say(self._console, f"postgres ended; its log is {self._run_dir.postgres / 'log'}", "bold red")
        say(self._console, f"{supervised.name} is started again in {pause:g} s", "bold red")

    def _on_restart(self, supervised: Supervised) -> None:
        try:
            self._run_dir.write_state(self._state())
        except OSError as error:  # a full disk must not end the lab
            say(self._console, f"{self._run_dir.state_file}: {error.strerror}", "bold red")
        say(self._console, f"{supervised.name} is started again, as process {supervised.pid}", "yellow")

    def _report_end(self, process: Process, status: int) -> None:
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        say(self._console, f"{process.name} ended with {how}; its last lines:", "bold red")
        for line in process.last_lines():
            self._console.print(render(process.name, line.encode()), soft_wrap=True, highlight=False)

    def _say_unwritable(self, text: str) -> None:
        with suppress(OSError):  # the console may be a file on the same disk
            say(self._console, text, "bold red")

    # --- stop ---

    async def _stop(self) -> None:
        if self._page is not None:
            await self._page.close()
        if self._faults is not None:
            await self._faults.close()
        for supervised in reversed(self._services):
            await supervised.process.stop()
        for supervised in reversed(self._engines):
            await supervised.process.stop(ENGINE_STOP_TIMEOUT)
        if self._postgres is not None:
            await self._postgres.stop()
        self._unwritable.report_losses()
        for directory in (self._workers_dir, self._page_files):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


def _proxied(variable: str, address: str) -> dict[str, str]:
    return {variable: f"http://{address}"}


def _ignore(service: str, lines: list[bytes]) -> None:
    pass


def check_ports(ports: Iterable[Port]) -> None:
    """Check that each port can be bound.

    Raises:
        LabError: when one cannot.
    """
    for port in ports:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(port.host, port.number, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except (OSError, OverflowError) as error:
            raise LabError(_port_problem(port, error)) from None


def _port_problem(port: Port, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if isinstance(error, socket.gaierror) or number == errno.EADDRNOTAVAIL:
        return f"{port.host} is no address of this machine; choose another with --host"
    reasons = {errno.EADDRINUSE: "is already in use", errno.EACCES: "may be used by root only"}
    reason = reasons.get(number or 0, f"cannot be used: {getattr(error, 'strerror', None) or error}")
    return f"port {port.number} {reason}; choose another with --base-port (it is for the {port.part})"
