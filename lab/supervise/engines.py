"""The engines beside the services: found on PATH, and run with the same configuration files as in containers.

The configuration files read addresses and data directories from environment variables. Here an engine listens on
loopback, at a port counted from the base port, and keeps its data in the run dir.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab import LabError
from lab.supervise.stages import Stage, env_file

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
ALLOY = ROOT / "alloy"
GRAFANA = ROOT / "grafana"
OTEL = ROOT / "otel"
SAMPLING = COMPOSE / "sampling"
TAIL = "tail"
# The components that SAMPLING=tail needs in a Collector.
TAIL_COMPONENTS = {
    *("tailsampling", "batch", "filter", "transform"),
    *("servicegraph", "spanmetrics", "prometheusremotewrite"),
}
# Engines count their ports from the base port plus this.
FIRST_PORT = 10
HOST = "127.0.0.1"
MEMORY_LIMIT = "768MiB"  # of each engine
HELP_TIMEOUT = 10.0  # seconds

# All ports of the engines; the index is added to the first port.
PORTS = (
    "PROMETHEUS_PORT",
    "POSTGRES_EXPORTER_PORT",
    "TEMPO_PORT",
    "TEMPO_GRPC_PORT",
    "TEMPO_OTLP_GRPC_PORT",
    "TEMPO_OTLP_HTTP_PORT",
    "COLLECTOR_GRPC_PORT",
    "COLLECTOR_HTTP_PORT",
    "COLLECTOR_HEALTH_PORT",
    "COLLECTOR_METRICS_PORT",
    "LOKI_PORT",
    "LOKI_GRPC_PORT",
    "ALLOY_PORT",
    "GRAFANA_PORT",
    "ALERTMANAGER_PORT",
    "ALERT_RECEIVER_PORT",
    "EXPORTER_PORT",
)


@dataclass(frozen=True)
class Setting:
    """The inputs of an engine's command line: its binary, its data directory, the variables."""

    binary: str
    data: Path
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        name: its name, also as compose host and Prometheus job.
        binaries: the possible names of its program on PATH; the first one found is run.
        ports: the ports of :data:`PORTS` that it listens on; the first answers ``ready_path``.
        command: returns its command line.
        ready_path: answers 200 once the engine is ready.
        without: what is missing without the engine.
        get_it: how to install it.
        always: whether every lab starts it, even without ``--engines``.
    """

    name: str
    binaries: tuple[str, ...]
    ports: tuple[str, ...]
    command: Callable[[Setting], list[str]]
    ready_path: str
    without: str
    get_it: str
    always: bool = False

    def find(self, path: str | None = None) -> str | None:
        """The engine's binary on PATH, or ``None``."""
        return next((found for name in self.binaries if (found := shutil.which(name, path=path))), None)


def _prometheus(setting: Setting) -> list[str]:
    return [
        setting.binary,
        # A copy of compose/prometheus, to which the targets are added.
        f"--config.file={setting.data / 'config' / 'prometheus.yml'}",
        f"--storage.tsdb.path={setting.data / 'data'}",
        "--storage.tsdb.retention.time=31d",  # the objectives look back 30 days
        f"--web.listen-address={HOST}:{setting.variables['PROMETHEUS_PORT']}",
        "--web.enable-remote-write-receiver",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]


def _alertmanager(setting: Setting) -> list[str]:
    return [
        setting.binary,
        # A copy of compose/alertmanager in which the receiver's address is that of this lab.
        f"--config.file={setting.data / 'config' / 'alertmanager.yml'}",
        f"--storage.path={setting.data / 'data'}",
        f"--web.listen-address={HOST}:{setting.variables['ALERTMANAGER_PORT']}",
        "--cluster.listen-address=",  # one is enough
        "--log.level=warn",
    ]


def _alert_receiver(setting: Setting) -> list[str]:
    return [setting.binary, "-m", "alertreceiver"]


def _exporter(setting: Setting) -> list[str]:
    return [setting.binary, "-m", "exporter"]


def _postgres_exporter(setting: Setting) -> list[str]:
    return [
        setting.binary,
        f"--web.listen-address={HOST}:{setting.variables['POSTGRES_EXPORTER_PORT']}",
        # Debian's exporter has this collector. It reads columns that PostgreSQL 17 removed, and logs an error at each
        # scrape. Upstream's newer stat_bgwriter supports PostgreSQL 17, and an unknown flag stops the program.
        *(["--no-collector.bgwriter"] if lists_flag(usage(setting.binary), "collector.bgwriter") else []),
    ]


def usage(binary: str) -> str:
    """The text that a program prints for ``--help``."""
    return _printed(binary, "--help", stderr=subprocess.STDOUT)


def _printed(*command: str, stderr: int = subprocess.DEVNULL) -> str:
    process = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=HELP_TIMEOUT,
    )
    return process.stdout


def lists_flag(text: str, flag: str) -> bool:
    """Whether a usage text lists a flag, as ``--flag`` or, in newer releases of kingpin, ``--[no-]flag``."""
    return re.search(rf"--(\[no-\])?{re.escape(flag)}(?![\w.-])", text) is not None


def _single_binary(config: str, setting: Setting) -> list[str]:
    """Tempo and Loki: all their components in one process, and with variables expanded in the configuration."""
    return [setting.binary, "-target=all", f"-config.file={COMPOSE / config}", "-config.expand-env=true"]


def _collector(setting: Setting) -> list[str]:
    sampling = setting.variables["SAMPLING"]
    if sampling == TAIL and (lacking := sorted(TAIL_COMPONENTS - components(setting.binary))):
        raise LabError(f"{setting.binary} has no {', '.join(lacking)}: SAMPLING=tail needs otelcol-contrib")
    configurations = (OTEL / "collector.yaml", OTEL / "sampling" / f"{sampling}.yaml")
    return [setting.binary, *(part for path in configurations for part in ("--config", str(path)))]


def components(binary: str) -> set[str]:
    """The names of a Collector's components, without underscores: releases spell them with or without."""
    return {name.replace("_", "") for name in re.findall(r"name: (\w+)", _printed(binary, "components"))}


def _alloy(setting: Setting) -> list[str]:
    return [
        setting.binary,
        "run",
        f"--server.http.listen-addr={HOST}:{setting.variables['ALLOY_PORT']}",
        f"--storage.path={setting.data}",
        "--disable-reporting",
        str(ALLOY / "files.alloy"),
    ]


def _grafana(setting: Setting) -> list[str]:
    return [
        setting.binary,
        "server",
        f"--homepath={_grafana_home(Path(setting.binary))}",
        f"--config={GRAFANA / 'grafana.ini'}",
    ]


def _grafana_home(binary: Path) -> Path:
    """The directory of Grafana's own files: the parent of ``bin`` in its archive, elsewhere in Debian's package."""
    above = binary.resolve().parent.parent
    homes = (above, above / "share" / "grafana", Path("/usr/share/grafana"))
    return next((home for home in homes if (home / "conf" / "defaults.ini").exists()), above)


# In the order in which they start; they stop in reverse order, after the services.
ENGINES = (
    Engine(
        "prometheus",
        ("prometheus",),
        ("PROMETHEUS_PORT",),
        _prometheus,
        "/-/ready",
        "metrics stay on the services' own /metrics pages",
        "Debian's package prometheus, or https://prometheus.io/download",
    ),
    Engine(
        "tempo",
        ("tempo",),
        ("TEMPO_PORT", "TEMPO_GRPC_PORT", "TEMPO_OTLP_GRPC_PORT", "TEMPO_OTLP_HTTP_PORT"),
        partial(_single_binary, "tempo/tempo.yaml"),
        "/ready",
        "traces stay in the run dir's files, and there is no service graph",
        "https://github.com/grafana/tempo/releases",
    ),
    Engine(
        "otel-collector",
        ("otelcol-contrib", "otelcol"),
        ("COLLECTOR_HEALTH_PORT", "COLLECTOR_GRPC_PORT", "COLLECTOR_HTTP_PORT", "COLLECTOR_METRICS_PORT"),
        _collector,
        "/",
        "the services send their spans to Tempo themselves",
        "https://github.com/open-telemetry/opentelemetry-collector-releases/releases",
    ),
    Engine(
        "postgres-exporter",
        ("postgres_exporter", "prometheus-postgres-exporter"),
        ("POSTGRES_EXPORTER_PORT",),
        _postgres_exporter,
        "/metrics",
        "there are no pg_* metrics",
        "Debian's package prometheus-postgres-exporter",
    ),
    Engine(
        "loki",
        ("loki",),
        ("LOKI_PORT", "LOKI_GRPC_PORT"),
        partial(_single_binary, "loki/loki.yaml"),
        "/ready",
        "log lines stay in the run dir's files",
        "https://github.com/grafana/loki/releases",
    ),
    Engine(
        "alloy",
        ("alloy",),
        ("ALLOY_PORT",),
        _alloy,
        "/-/ready",
        "log lines stay in the run dir's files, and Loki is empty",
        "https://github.com/grafana/alloy/releases",
    ),
    Engine(
        "grafana",
        ("grafana",),
        ("GRAFANA_PORT",),
        _grafana,
        "/api/health",
        "there are no dashboards",
        "https://grafana.com/grafana/download",
    ),
    Engine(
        "alertmanager",
        ("alertmanager", "prometheus-alertmanager"),
        ("ALERTMANAGER_PORT",),
        _alertmanager,
        "/-/ready",
        "alerts are shown and nobody is notified",
        "Debian's package prometheus-alertmanager, or https://prometheus.io/download",
    ),
    # Part of Dice Lab: receives Alertmanager's notifications.
    Engine(
        "alert-receiver",
        (sys.executable,),
        ("ALERT_RECEIVER_PORT",),
        _alert_receiver,
        "/readyz",
        "alerts are not written to a log",
        "it is part of Dice Lab",
    ),
    # Part of Dice Lab: exposes metrics of the dice table and the run dir, and probes the services.
    Engine(
        "exporter",
        (sys.executable,),
        ("EXPORTER_PORT",),
        _exporter,
        "/readyz",
        "nothing is probed from outside",
        "it is part of Dice Lab",
        always=True,
    ),
)

# Engines that are useless without another one, by name. An engine comes after the one that it needs.
NEEDS = {
    "otel-collector": "tempo",
    "alloy": "loki",
    "alertmanager": "prometheus",
    "alert-receiver": "alertmanager",
}
# Engines that only a stage with PostgreSQL has.
WITH_POSTGRES = ("postgres-exporter", "exporter")
# The services that the exporter may probe, and the one that Prometheus has it probe: not the frontend, because the
# objectives are measured there, and a probe would count as a user's roll.
PROBE_TARGETS = ("dice-roller", "frontend")
PROBED = "dice-roller"


@dataclass(frozen=True)
class Plan:
    """The engines that a stage runs, and those that are not on PATH."""

    found: tuple[tuple[Engine, str], ...]  # each with the path of its binary
    missing: tuple[Engine, ...]
    stage: Stage
    base_port: int
    directory: Path  # the engines' data
    logs: Path  # the services' log files
    admin_password: str  # of Grafana; all other users are anonymous viewers
    probes: bool  # whether Prometheus probes services
    sampling: str = "none"  # which traces the Collector keeps

    def has(self, name: str) -> bool:
        return any(engine.name == name for engine, _ in self.found)

    def port(self, name: str) -> int:
        return self.base_port + FIRST_PORT + PORTS.index(name)

    def url(self, engine: Engine) -> str:
        return f"http://{HOST}:{self.port(engine.ports[0])}"

    def urls(self) -> dict[str, str]:
        """The URLs of the engines that the page can query, by the frontend's variable."""
        asked = {"tempo", "prometheus", "alertmanager", "grafana"}
        if self.has("alloy"):  # without Alloy no line reaches Loki
            asked.add("loki")
        return {f"{engine.name.upper()}_URL": self.url(engine) for engine, _ in self.found if engine.name in asked}

    def ports(self) -> list[tuple[int, str]]:
        """Every port that is needed, with the name of its engine."""
        return [(self.port(name), engine.name) for engine, _ in self.found for name in engine.ports]

    def variables(self, database_url: str, service_urls: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment variables that the engines' configuration files read; the same for all engines.

        Args:
            database_url: the connection URL of the stage's database; empty where there is none.
            service_urls: the URLs of the stage's services, by name.
        """
        probed = {name: url for name, url in (service_urls or {}).items() if name in PROBE_TARGETS}
        variables = {name: str(self.port(name)) for name in PORTS}
        variables |= {
            # From this size on, Go's garbage collector works harder; containers have a hard limit as well.
            "GOMEMLIMIT": MEMORY_LIMIT,
            "TEMPO_HOST": HOST,
            "TEMPO_DATA": str(self.directory / "tempo"),
            "COLLECTOR_HOST": HOST,
            "COLLECTOR_DATA": str(self.directory / "otel-collector"),
            "PROMETHEUS_URL": f"http://{HOST}:{self.port('PROMETHEUS_PORT')}",
            "DATA_SOURCE_NAME": database_url,
            "LOKI_HOST": HOST,
            "LOKI_DATA": str(self.directory / "loki"),
            "LOKI_CONFIG": str(COMPOSE / "loki"),
            "LOKI_URL": f"http://{HOST}:{self.port('LOKI_PORT')}",
            "TEMPO_URL": f"http://{HOST}:{self.port('TEMPO_PORT')}",
            "ALLOY_CONFIG": str(ALLOY),
            "LOGS_DIR": str(self.logs),
            "ALERT_RECEIVER_HOST": HOST,
            "ALERT_LOG": str(self.logs / "alerts.jsonl"),
            "EXPORTER_HOST": HOST,
            "DATABASE_URL": database_url,
            "TELEMETRY_DIR": str(self.directory.parent),
            "PROBE_TARGETS": ",".join(f"{name}={url}" for name, url in probed.items()),
            "LOG_ROUTE": self.stage.variables["LOG_ROUTE"],
            "GRAFANA_HOST": HOST,
            "GRAFANA_DATA": str(self.directory / "grafana"),
            "GRAFANA_CONFIG": str(GRAFANA),
            "GRAFANA_ADMIN_PASSWORD": self.admin_password,
            "STAGE": str(self.stage.number),
            **env_file(SAMPLING / f"{self.sampling}.env"),
        }
        return variables

    def command(self, engine: Engine, binary: str, variables: Mapping[str, str]) -> list[str]:
        """An engine's command line. Blocks: it may run the program once, to find out which flags it has."""
        return engine.command(Setting(binary, self.directory / engine.name, variables))

    def otlp_endpoint(self, protocol: str = "http/protobuf") -> str | None:
        """The endpoint for the services' spans in this OTLP protocol: the collector, else Tempo, else none."""
        if not self.has("tempo"):
            return None
        kind = "GRPC" if protocol == "grpc" else "HTTP"
        port = f"COLLECTOR_{kind}_PORT" if self.has("otel-collector") else f"TEMPO_OTLP_{kind}_PORT"
        return f"http://{HOST}:{self.port(port)}"

    def prepare(self, service_addresses: Mapping[str, str]) -> None:
        """Make the engines' directories, and write Prometheus's targets.

        Args:
            service_addresses: host and port of each service, by its name.
        """
        for engine, _ in self.found:
            (self.directory / engine.name).mkdir(parents=True, exist_ok=True)
        if not self.has("prometheus"):
            return
        config = self.directory / "prometheus" / "config"
        shutil.copytree(COMPOSE / "prometheus", config, dirs_exist_ok=True)
        addresses = dict(service_addresses)
        for engine, _ in self.found:
            metrics = "COLLECTOR_METRICS_PORT" if engine.name == "otel-collector" else engine.ports[0]
            addresses[engine.name] = f"{HOST}:{self.port(metrics)}"
        targets = [{"targets": [address], "labels": {"job": name}} for name, address in addresses.items()]
        probes = []
        if self.probes and self.has("exporter"):
            probes.append({"targets": [PROBED], "labels": {"__exporter__": addresses["exporter"]}})
        (config / "targets" / "probes").mkdir(parents=True, exist_ok=True)
        # YAML reads JSON.
        (config / "targets" / "lab.yml").write_text(json.dumps(targets, indent=2))
        (config / "targets" / "probes" / "lab.yml").write_text(json.dumps(probes, indent=2))
        alertmanagers = [addresses["alertmanager"]] if self.has("alertmanager") else []
        (config / "alertmanagers" / "alertmanager.yml").write_text(json.dumps([{"targets": alertmanagers}]))
        if self.has("alertmanager"):
            receiver = f"{HOST}:{self.port('ALERT_RECEIVER_PORT')}"
            shipped = (COMPOSE / "alertmanager" / "alertmanager.yml").read_text()
            config = self.directory / "alertmanager" / "config"
            config.mkdir(exist_ok=True)
            (config / "alertmanager.yml").write_text(shipped.replace("alert-receiver:8000", receiver))


def plan(
    stage: Stage,
    base_port: int,
    directory: Path,
    logs: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    all_engines: bool = True,
    sampling: str = "none",
) -> Plan:
    """Look for the engines that a stage can use.

    Args:
        directory: where the engines keep their data, in the run dir.
        logs: where the services' log files are.
        environ: ``PATH``; ``GRAFANA_ADMIN_PASSWORD``, by default random; ``PROBES``, which is ``false`` if Prometheus
            shall not have services probed.
        all_engines: whether to start all engines, or only those that every lab starts.
        sampling: which traces the Collector keeps: ``none`` for all, or ``tail``.

    Raises:
        LabError: when there is no such sampling, or no Collector and no Tempo for it.
    """
    path = environ.get("PATH")
    wanted = [
        engine
        for engine in ENGINES
        if (all_engines or engine.always) and (stage.postgres or engine.name not in WITH_POSTGRES)
    ]
    there = {engine.name for engine in wanted if engine.find(path)}
    # Without Tempo the Collector would only queue spans; without Loki Alloy would only queue lines.
    for name, needed in NEEDS.items():
        if needed not in there:
            there.discard(name)
            wanted = [engine for engine in wanted if engine.name != name]
    found = tuple((engine, binary) for engine in wanted if (binary := engine.find(path)))
    missing = tuple(engine for engine in wanted if engine.name not in there)
    admin_password = environ.get("GRAFANA_ADMIN_PASSWORD") or secrets.token_urlsafe()
    probes = environ.get("PROBES") or "true"
    if probes not in ("true", "false"):
        raise LabError(f"PROBES: {probes!r} must be true or false")
    made = Plan(found, missing, stage, base_port, directory, logs, admin_password, probes == "true", sampling)
    if sampling == TAIL and not made.has("otel-collector"):
        raise LabError("SAMPLING=tail needs the OpenTelemetry Collector and Tempo on PATH")
    return made
