"""The plan of a lab's engines: which of them run, on which ports, with which variables and targets."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import LabError
from lab.paths import ALLOY, COMPOSE, GRAFANA, SAMPLING_VARIABLES
from lab.supervise.engines import (
    ENGINES,
    FIRST_PORT,
    HOST,
    MEMORY_LIMIT,
    NEEDS,
    PORTS,
    TAIL,
    WITH_POSTGRES,
    Engine,
    Setting,
)
from lab.supervise.stages import Stage, env_file

# The services that the exporter may probe, and the one that Prometheus has it probe: not the frontend, because the
# objectives are measured there, and a probe would count as a user's roll.
PROBE_TARGETS = ("dice-roller", "frontend")
PROBED = "dice-roller"


@dataclass(frozen=True)
class EnginesPlan:
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
            **env_file(SAMPLING_VARIABLES / f"{self.sampling}.env"),
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


def plan_engines(
    stage: Stage,
    base_port: int,
    directory: Path,
    logs: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    all_engines: bool = True,
    sampling: str = "none",
) -> EnginesPlan:
    """Look for the engines that a stage can use.

    Args:
        directory: where the engines keep their data, in the run dir.
        logs: where the services' log files are.
        environ: ``PATH``; ``GRAFANA_ADMIN_PASSWORD``, by default random; ``PROBES``, which is ``false`` if Prometheus
            shall not have services probed.
        all_engines: whether to start all engines, or only those that every lab starts.
        sampling: which traces the Collector keeps: ``none`` for all, or ``tail``.

    Raises:
        LabError: when PROBES is not valid, or SAMPLING=tail has no Collector or no Tempo.
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
    made = EnginesPlan(found, missing, stage, base_port, directory, logs, admin_password, probes == "true", sampling)
    if sampling == TAIL and not made.has("otel-collector"):
        raise LabError("SAMPLING=tail needs the OpenTelemetry Collector and Tempo on PATH")
    return made
