"""The plan of a lab: its processes, each with its command, environment and files, and its ports.

Nothing here starts anything; :mod:`lab.supervise.supervisor` runs the plan.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from lab import InputError, LabError
from lab.supervise import engines, stages
from lab.supervise.engines_plan import plan_engines
from lab.supervise.rundir import RunDir
from lab.supervise.stages import Service

# Delay of span export to files, in milliseconds: short, so that a roll's trace is complete right after the roll.
FILE_EXPORT_DELAY_MS = "300"
MAX_PORT = 65535
TELEMETRY = ("standard", "fast")  # the first is the services' default
SAMPLING = ("none", "tail")  # the first is the default


@dataclass(frozen=True)
class Options:
    """The options of ``dicelab up``.

    Attributes:
        stage: its number.
        base_port: the dice-roller's port; all other ports are at a fixed offset from it.
        host: the address that the services listen on.
        roll_delay: the longest wait of a roll, in seconds; ``None`` for the services' default.
        engines: whether the engines that are on PATH are started.
        workers: the number of processes of each service that can have several.
        telemetry: how the services are instrumented, one of :data:`TELEMETRY`; ``None`` for the services' default.
        sampling: which traces the Collector keeps, one of :data:`SAMPLING`; ``None`` for the variable ``SAMPLING``.
        detach: whether the command returns once the lab is ready.
        tail: whether the services' log lines are shown.
    """

    run_dir: Path
    stage: int = 6
    base_port: int = 8000
    host: str = "127.0.0.1"
    roll_delay: float | None = None
    engines: bool = False
    workers: int = 1
    telemetry: str | None = None
    sampling: str | None = None
    detach: bool = False
    tail: bool = True


@dataclass(frozen=True)
class ProcessPlan:
    """One process.

    Attributes:
        name: unique in the lab; the second worker of a service has its name with the suffix ``-2``.
        part: the service or engine that it belongs to.
        stdout, stderr: the files that its output is appended to.
    """

    name: str
    part: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    stdout: Path
    stderr: Path


@dataclass(frozen=True)
class Port:
    """A port that a part of the lab will listen on."""

    host: str
    number: int
    part: str


class LabPlan:
    """The plan of one lab.

    Attributes:
        engines: which engines run; without ``--engines`` those that every lab starts.
        external_database: the URL of a database that is not the lab's own; empty where there is none.

    Args:
        environ: the environment that the services and engines inherit.

    Raises:
        InputError: when a port would be too high, or sampling needs ``--engines``.
        LabError: when there is no such stage or sampling, or no Collector for it.
    """

    def __init__(self, options: Options, run_dir: RunDir, environ: Mapping[str, str]) -> None:
        self.options = options
        self.run_dir = run_dir
        self.stage = stages.load(options.stage)
        # The same until the lab ends, so that users stay signed in when the frontend is restarted.
        self._session_secret = environ.get("SESSION_SECRET") or secrets.token_urlsafe(32)
        self.sampling = options.sampling or environ.get("SAMPLING") or SAMPLING[0]
        if self.sampling not in SAMPLING:
            raise LabError(f"SAMPLING is {self.sampling!r}, not {' or '.join(SAMPLING)}")
        if self.sampling != SAMPLING[0] and not options.engines:
            raise InputError(f"SAMPLING={self.sampling} needs --engines: the Collector samples")
        self.engines = plan_engines(
            self.stage,
            options.base_port,
            run_dir.engines,
            run_dir.logs,
            environ,
            all_engines=options.engines,
            sampling=self.sampling,
        )
        last = max(self.ports(), key=lambda port: port.number)
        if last.number > MAX_PORT:
            raise InputError(
                f"--base-port {options.base_port}: the {last.part} would have port {last.number}; the highest base port"
                f" of this lab is {options.base_port + MAX_PORT - last.number}"
            )
        self._environ = dict(environ)
        self.learn_socket: Path | None = None  # where the page finds the exercises and the game
        self.page_files: Path | None = None  # the frontend's directory for temporary files
        self.external_database = environ.get("DATABASE_URL", "")

    @property
    def embeds_database(self) -> bool:
        """Whether the lab runs a PostgreSQL of its own."""
        return self.stage.postgres and not self.external_database

    @property
    def telemetry(self) -> str:
        return self.options.telemetry or self._environ.get("TELEMETRY") or TELEMETRY[0]

    def workers_advice(self, cpus: int) -> str:
        """Advice where the workers of the two services take all CPUs, so that more workers do not help; else empty."""
        workers = 2 * self.options.workers
        if self.options.workers == 1 or workers < cpus or self.telemetry == TELEMETRY[1]:
            return ""
        return (
            f"--workers {self.options.workers}: {workers} processes take all {cpus} CPUs. More of them do not help;"
            " --telemetry fast rolls about twice as often with the same CPUs."
        )

    @property
    def roll_delay(self) -> float:
        """The longest wait of a roll, in seconds."""
        if self.options.roll_delay is not None:
            return self.options.roll_delay
        return float((self._environ | self.stage.variables).get("ROLL_DELAY") or 1.0)

    def port(self, service: Service) -> int:
        return self.options.base_port + service.port_offset

    def address(self, service: Service) -> str:
        """The address of a service for clients on this machine: ``host:port``."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.options.host, self.options.host)
        return f"{f'[{host}]' if ':' in host else host}:{self.port(service)}"

    def url(self, service: Service) -> str:
        return f"http://{self.address(service)}"

    def ports(self) -> list[Port]:
        found = [Port(self.options.host, self.port(service), service.name) for service in self.stage.services]
        return found + [Port(engines.HOST, number, name) for number, name in self.engines.ports()]

    def ready_urls(self) -> dict[str, str]:
        """The URL that returns 200 once a service is ready, by its name."""
        return {service.name: f"{self.url(service)}/readyz" for service in self.stage.services}

    def engine_ready_urls(self) -> dict[str, str]:
        """The URL that returns 200 once an engine is ready, by its name."""
        return {engine.name: self.engines.url(engine) + engine.ready_path for engine, _ in self.engines.found}

    def workers(self, service: Service) -> int:
        """The number of processes of a service."""
        return self.options.workers if service.many else 1

    def service_processes(self, database_url: str, workers_dir: Path | None) -> list[ProcessPlan]:
        """The services' processes, in the order in which they start.

        Args:
            workers_dir: the directory that the workers of a service share; ``None`` where a service is one process.
        """
        return [
            ProcessPlan(
                service.name if worker == 1 else f"{service.name}-{worker}",
                service.name,
                (sys.executable, "-m", service.module),
                self._service_environ(service, worker, database_url, workers_dir),
                self.run_dir.logs / f"{service.name}.jsonl",
                self.run_dir.logs / f"{service.name}.stderr",
            )
            for service in self.stage.services
            for worker in range(1, self.workers(service) + 1)
        ]

    def engine_processes(self, database_url: str) -> list[ProcessPlan]:
        """The engines' processes, in the order in which they start. Blocks: it asks some programs for their flags."""
        urls = {service.name: self.url(service) for service in self.stage.services}
        variables = self.engines.variables(database_url, urls)
        processes = []
        for engine, binary in self.engines.found:
            log = self.run_dir.engines / f"{engine.name}.log"
            command = tuple(self.engines.command(engine, binary, variables))
            processes.append(ProcessPlan(engine.name, engine.name, command, {**self._environ, **variables}, log, log))
        return processes

    def _service_environ(
        self, service: Service, worker: int, database_url: str, workers_dir: Path | None
    ) -> dict[str, str]:
        environ = {**self._environ, **self.stage.variables}
        environ["HOST"] = self.options.host
        environ["PORT"] = str(self.port(service))
        environ["DATABASE_URL"] = database_url
        if workers_dir is not None and service.many:
            environ["WORKERS_DIR"] = str(workers_dir)
        for other in self.stage.services:
            environ[other.url_variable] = self.url(other)
        environ.setdefault("TELEMETRY_DIR", str(self.run_dir.path))
        environ.setdefault("SESSIONS_FILE", str(self.run_dir.path / "sessions"))
        if service.name == "frontend":
            environ["SESSION_SECRET"] = self._session_secret
            if self.page_files is not None:
                environ["TMPDIR"] = str(self.page_files)
        if self.learn_socket is not None:
            environ["LEARN_SOCKET"] = str(self.learn_socket)
        for name, url in self.engines.urls().items():
            environ.setdefault(name, url)
        if self.options.roll_delay is not None:
            environ["ROLL_DELAY"] = str(self.options.roll_delay)
        if self.options.telemetry is not None:
            environ["TELEMETRY"] = self.options.telemetry
        return environ | self._trace_destination(service, worker, environ)

    def _trace_destination(self, service: Service, worker: int, environ: Mapping[str, str]) -> dict[str, str]:
        """The destination of the service's spans: the endpoint that the user has set, else an engine, else a file."""
        if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            return {}
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or ""
        endpoint = self.engines.otlp_endpoint(protocol)
        if endpoint:
            return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
        name = service.name if worker == 1 else f"{service.name}-{worker}"
        return {
            "TRACES_FILE": str(self.run_dir.traces / f"{name}.jsonl"),
            "OTEL_BSP_SCHEDULE_DELAY": environ.get("OTEL_BSP_SCHEDULE_DELAY", FILE_EXPORT_DELAY_MS),
        }


def loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True  # not an address: the check of the ports reports that
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
