"""The engines beside the services: found on PATH, and run with the same configuration files as in containers.

The configuration files read addresses and data directories from environment variables. Here an engine listens on
loopback, at a port counted from the base port, and keeps its data in the run dir.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab import LabError
from lab.paths import ALLOY, COLLECTOR, COMPOSE, GRAFANA

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


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine.

    Attributes:
        name: its name, also as compose host and Prometheus job.
        binaries: the possible names of its program on PATH; the first one found is run.
        ports: the ports of :data:`PORTS` that it listens on; the first serves ``ready_path``.
        command: returns its command line.
        ready_path: returns 200 once the engine is ready.
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
    configurations = (COLLECTOR / "collector.yaml", COLLECTOR / "sampling" / f"{sampling}.yaml")
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
        name="prometheus",
        binaries=("prometheus",),
        ports=("PROMETHEUS_PORT",),
        command=_prometheus,
        ready_path="/-/ready",
        without="metrics stay on the services' own /metrics pages",
        get_it="Debian's package prometheus, or https://prometheus.io/download",
    ),
    Engine(
        name="tempo",
        binaries=("tempo",),
        ports=("TEMPO_PORT", "TEMPO_GRPC_PORT", "TEMPO_OTLP_GRPC_PORT", "TEMPO_OTLP_HTTP_PORT"),
        command=partial(_single_binary, "tempo/tempo.yaml"),
        ready_path="/ready",
        without="traces stay in the run dir's files, and there is no service graph",
        get_it="https://github.com/grafana/tempo/releases",
    ),
    Engine(
        name="otel-collector",
        binaries=("otelcol-contrib", "otelcol"),
        ports=("COLLECTOR_HEALTH_PORT", "COLLECTOR_GRPC_PORT", "COLLECTOR_HTTP_PORT", "COLLECTOR_METRICS_PORT"),
        command=_collector,
        ready_path="/",
        without="the services send their spans to Tempo themselves",
        get_it="https://github.com/open-telemetry/opentelemetry-collector-releases/releases",
    ),
    Engine(
        name="postgres-exporter",
        binaries=("postgres_exporter", "prometheus-postgres-exporter"),
        ports=("POSTGRES_EXPORTER_PORT",),
        command=_postgres_exporter,
        ready_path="/metrics",
        without="there are no pg_* metrics",
        get_it="Debian's package prometheus-postgres-exporter",
    ),
    Engine(
        name="loki",
        binaries=("loki",),
        ports=("LOKI_PORT", "LOKI_GRPC_PORT"),
        command=partial(_single_binary, "loki/loki.yaml"),
        ready_path="/ready",
        without="log lines stay in the run dir's files",
        get_it="https://github.com/grafana/loki/releases",
    ),
    Engine(
        name="alloy",
        binaries=("alloy",),
        ports=("ALLOY_PORT",),
        command=_alloy,
        ready_path="/-/ready",
        without="log lines stay in the run dir's files, and Loki is empty",
        get_it="https://github.com/grafana/alloy/releases",
    ),
    Engine(
        name="grafana",
        binaries=("grafana",),
        ports=("GRAFANA_PORT",),
        command=_grafana,
        ready_path="/api/health",
        without="there are no dashboards",
        get_it="https://grafana.com/grafana/download",
    ),
    Engine(
        name="alertmanager",
        binaries=("alertmanager", "prometheus-alertmanager"),
        ports=("ALERTMANAGER_PORT",),
        command=_alertmanager,
        ready_path="/-/ready",
        without="alerts are shown and nobody is notified",
        get_it="Debian's package prometheus-alertmanager, or https://prometheus.io/download",
    ),
    # Part of Dice Lab: receives Alertmanager's notifications.
    Engine(
        name="alert-receiver",
        binaries=(sys.executable,),
        ports=("ALERT_RECEIVER_PORT",),
        command=_alert_receiver,
        ready_path="/readyz",
        without="alerts are not written to a log",
        get_it="it is part of Dice Lab",
    ),
    # Part of Dice Lab: exposes metrics of the dice table and the run dir, and probes the services.
    Engine(
        name="exporter",
        binaries=(sys.executable,),
        ports=("EXPORTER_PORT",),
        command=_exporter,
        ready_path="/readyz",
        without="nothing is probed from outside",
        get_it="it is part of Dice Lab",
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
