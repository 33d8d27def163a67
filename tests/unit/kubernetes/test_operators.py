"""The manifests with large engines: resources of operators against their types, and the values of charts.

No operator runs here. ``OPERATED`` lists what operators create from their resources, such as the names of Services.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kubernetes import kustomize
from lab.paths import COMPOSE, ROOT, SAMPLING_VARIABLES
from lab.supervise import engines, stages
from tests.support.crd_types import PACKAGES, type_errors
from tests.support.kubernetes import NAME, SECRET, Document, Manifests, load, text, validate
from tests.unit.kubernetes.test_manifests import VERSIONS, addresses, violations

LARGE = [f"large/{stage}" for stage in stages.STAGES]
CHARTS = kustomize.DIRECTORY / "engines" / "large" / "charts"
# Services that operators create, by the resource for which they create them, and their ports.
OPERATED = {
    ("OpenTelemetryCollector", "otel"): ("otel-collector", {4317, 4318}),
    ("OpenTelemetryCollector", "sampler"): ("sampler-collector", {4317}),
    ("Pooler", "postgres"): ("postgres", {5432}),
}


def custom(manifests: Manifests) -> list[Document]:
    """The resources of operators."""
    return [one for one in manifests.documents if one["apiVersion"].partition("/")[0] in PACKAGES]


def resource(manifests: Manifests, kind: str, name: str) -> Document:
    return manifests.of(kind)[kustomize.NAMESPACE, name]


def test_resources_of_operators_have_their_types(tmp_path: Path) -> None:
    documents = custom(load("large/6"))
    assert {document["kind"] for document in documents} == {
        *("Prometheus", "PodMonitor", "ServiceMonitor", "Probe", "PrometheusRule"),
        *("OpenTelemetryCollector", "Cluster", "Pooler"),
    }
    broken = copy.deepcopy(documents)
    for document in broken:
        document["metadata"]["name"] += "-broken"
        document["spec"]["unknown"] = True
    found = type_errors([*documents, *broken], tmp_path)
    assert {line.partition(":")[0] for line in found} == {
        f"{document['kind']} {document['metadata']['name']}" for document in broken
    }, found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_other_manifests_are_valid_in_the_strict_schemas(version: str) -> None:
    manifests = load("large/6")
    known = [*load("small/6").documents, *custom(manifests)]
    validate((document for document in manifests.documents if document not in known), version)


@pytest.mark.parametrize("directory", LARGE)
def test_every_address_has_a_service(directory: str) -> None:
    manifests = load(directory)
    there = {
        name: {port["port"] for port in service["spec"]["ports"]}
        for (_, name), service in manifests.of("Service").items()
    }
    for (kind, name), (service, ports) in OPERATED.items():
        if (kustomize.NAMESPACE, name) in manifests.of(kind):
            there[service] = ports
    absent = {service.name for service in stages.SERVICES} - there.keys()
    absent |= set() if "postgres" in there else {"postgres"}
    for workload in manifests.workloads():
        for host, port in addresses(manifests, workload):
            name = host.partition(".")[0]
            assert name in absent or port in there[name], (workload.name, host, port)


def test_every_job_is_scraped_under_its_name() -> None:
    manifests = load("large/6")
    jobs = set()
    for kind in ("PodMonitor", "ServiceMonitor"):
        for monitor in manifests.of(kind).values():
            spec = monitor["spec"]
            endpoint = (spec.get("podMetricsEndpoints") or spec["endpoints"])[0]
            namespaces = spec.get("namespaceSelector", {}).get("matchNames", [kustomize.NAMESPACE])
            labels = spec["selector"].get("matchLabels", {})
            names = {labels[NAME]} if NAME in labels else set()
            for one in spec["selector"].get("matchExpressions", []):
                assert (one["key"], one["operator"]) == (NAME, "In")
                names |= set(one["values"])
            if spec.get("jobLabel") == NAME:
                jobs |= names
            for relabeling in endpoint.get("relabelings", []):
                jobs.add(relabeling["replacement"])
            for name in names:
                if kind == "ServiceMonitor":
                    service = manifests.of("Service")[namespaces[0], name]
                    assert service["metadata"]["labels"][NAME] == name
                    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
                elif namespaces != ["dicelab-engines"]:
                    assert endpoint["port"] in manifests.workload(name).ports
    wanted = {engine.name for engine in engines.ENGINES} | {service.name for service in stages.SERVICES}
    assert jobs == wanted | {"mimir"}


def test_the_probe_is_that_of_compose() -> None:
    manifests = load("large/6")
    probe = resource(manifests, "Probe", "exporter")["spec"]
    jobs = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = [job for job in jobs if job["job_name"] == probe["jobName"]]
    assert probe["prober"]["path"] == job["metrics_path"]
    assert [probe["module"]] == job["params"]["module"]
    assert probe["interval"] == job["scrape_interval"]
    (probed,) = yaml.safe_load((COMPOSE / "targets" / "probes" / "postgres.yml").read_text())
    assert probe["targets"]["staticConfig"]["static"] == probed["targets"]
    assert probe["prober"]["url"] == probed["labels"]["__exporter__"]
    assert resource(manifests, "Prometheus", "dicelab")["spec"]["probeSelector"] == {}


def test_rules_are_those_of_compose() -> None:
    rules = load("large/6").of("PrometheusRule")
    files = [*(COMPOSE / "prometheus" / "rules").glob("*.yml")]
    files.append(kustomize.DIRECTORY / "engines" / "small" / "prometheus" / "pods.yml")
    assert {name: rule["spec"] for (_, name), rule in rules.items()} == {
        path.stem: yaml.safe_load(path.read_text()) for path in files
    }


def test_prometheus_has_the_settings_of_compose() -> None:
    manifests = load("large/6")
    spec = resource(manifests, "Prometheus", "dicelab")["spec"]
    plain = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())["global"]
    assert spec["scrapeInterval"] == plain["scrape_interval"]
    assert spec["scrapeTimeout"] == plain["scrape_timeout"]
    assert spec["evaluationInterval"] == plain["evaluation_interval"]
    service = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["prometheus"]
    assert spec["image"] == service["image"]
    assert f"--storage.tsdb.retention.time={spec['retention']}" in service["command"]
    (alertmanager,) = spec["alerting"]["alertmanagers"]
    found = manifests.of("Service")[alertmanager["namespace"], alertmanager["name"]]
    assert alertmanager["port"] in {port["name"] for port in found["spec"]["ports"]}
    assert ("dicelab", spec["serviceAccountName"]) in manifests.of("ServiceAccount")


def test_collectors_balance_by_trace_before_they_sample() -> None:
    manifests = load("large/6")
    first = resource(manifests, "OpenTelemetryCollector", "otel")["spec"]
    second = resource(manifests, "OpenTelemetryCollector", "sampler")["spec"]
    balancer = first["config"]["exporters"]["loadbalancing"]
    assert balancer["routing_key"] == "traceID"
    assert balancer["resolver"]["dns"]["hostname"].startswith("sampler-collector-headless.")
    assert first["config"]["service"]["pipelines"]["traces"]["exporters"] == ["loadbalancing"]
    assert second["config"]["service"]["pipelines"]["traces"]["processors"] == [
        "memory_limiter",
        "tail_sampling",
        "batch",
    ]
    assert "autoscaler" not in second
    # The queue to Tempo, and the settings of the Collector's own metrics, are the same as everywhere.
    shared = yaml.safe_load((COMPOSE / "otel-collector" / "collector.yaml").read_text())
    theirs, ours = shared["exporters"]["otlp/tempo"], second["config"]["exporters"]["otlp/tempo"]
    assert {**ours, "endpoint": ""} == {**theirs, "endpoint": ""}
    for spec in (first, second):
        exporter = spec["config"]["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
        assert exporter["without_type_suffix"] is False
        assert exporter["port"] == 8888


@pytest.mark.parametrize("name", ["otel", "sampler"])
def test_the_collector_accepts_its_configuration(name: str, tmp_path: Path) -> None:
    binary = next((found for name in ("otelcol-contrib", "otelcol") if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("not on PATH: otel-collector")
    config = resource(load("large/6"), "OpenTelemetryCollector", name)["spec"]["config"]
    listed = subprocess.run([binary, "components"], check=True, capture_output=True, text=True).stdout
    parts = {one.partition("/")[0] for kind in ("exporters", "processors") for one in config[kind]}
    if missing := {part for part in parts if f"name: {part}\n" not in listed}:
        pytest.skip(f"not in this build of the Collector: {', '.join(sorted(missing))}")
    (tmp_path / "queue").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config).replace("/var/lib/otelcol", str(tmp_path / "queue")))
    done = subprocess.run([binary, "validate", f"--config={path}"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_database_is_reached_through_the_pooler() -> None:
    manifests = load("large/6")
    pooler = resource(manifests, "Pooler", "postgres")["spec"]
    cluster = resource(manifests, "Cluster", pooler["cluster"]["name"])["spec"]
    initdb = cluster["bootstrap"]["initdb"]
    secrets = dict.fromkeys(SECRET, "x")
    url = manifests.environment(manifests.workload("die-service"), secrets)["DATABASE_URL"]
    assert url == f"postgresql://{initdb['owner']}:x@postgres:5432/{initdb['database']}"
    # psycopg passes the time limit of a statement as an option, which PgBouncer refuses unless it is told to ignore it.
    assert "options" in pooler["pgbouncer"]["parameters"]["ignore_startup_parameters"]
    assert any("statement_timeout" in statement for statement in initdb["postInitApplicationSQL"])
    # The operator's Secret contains the same password.
    makefile = (ROOT / "Makefile").read_text()
    assert f"secret generic {initdb['secret']['name']} --type=kubernetes.io/basic-auth" in makefile


def test_pods_comply_with_the_restricted_profile() -> None:
    manifests = load("large/6")
    for workload in manifests.workloads():
        assert not violations(workload) or workload.name == "alloy", workload.name
    for name in ("otel", "sampler"):
        spec = resource(manifests, "OpenTelemetryCollector", name)["spec"]
        assert spec["podSecurityContext"]["runAsNonRoot"]
        assert spec["podSecurityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert resource(manifests, "Prometheus", "dicelab")["spec"]["securityContext"]["runAsNonRoot"]
    assert "Secret" not in {document["kind"] for document in manifests.documents}
    assert not re.search(r"access_key|secret_key", text("large/6") + "".join(p.read_text() for p in CHARTS.iterdir()))


# --- charts ---


def values(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHARTS / f"{name}.yaml").read_text())
    return found


def test_loki_and_tempo_have_the_limits_and_processors_of_compose() -> None:
    theirs = yaml.safe_load((COMPOSE / "loki" / "loki.yaml").read_text())
    ours = values("loki")["loki"]["structuredConfig"]
    for section in ("limits_config", "querier", "auth_enabled", "analytics"):
        assert ours[section] == theirs[section]
    overrides = yaml.safe_load((COMPOSE / "loki" / "overrides.yaml").read_text())
    assert values("loki")["loki"]["runtimeConfig"] == overrides
    variables = stages.env_file(SAMPLING_VARIABLES / "none.env")  # with these Collectors the generator stays on
    shipped = (COMPOSE / "tempo" / "tempo.yaml").read_text()
    theirs = yaml.safe_load(shipped.replace("${TEMPO_GENERATOR}", variables["TEMPO_GENERATOR"]))
    ours = values("tempo")["tempo"]["structuredConfig"]
    assert ours["metrics_generator"]["processor"] == theirs["metrics_generator"]["processor"]
    assert ours["overrides"] == theirs["overrides"]
    versions = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    for name in ("loki", "tempo"):
        assert versions[name]["image"].endswith(f":{values(name)[name]['image']['tag']}")


def test_the_names_of_charts_are_those_that_the_services_lead_to() -> None:
    services = load("large/6").of("Service")
    loki, tempo = (services["dicelab", name]["spec"] for name in ("loki", "tempo"))
    assert loki["externalName"].startswith(f"{values('loki')['fullnameOverride']}-gateway.dicelab-engines.")
    assert loki["ports"][0]["port"] == values("loki")["gateway"]["service"]["port"]
    assert tempo["externalName"].startswith(f"{values('tempo')['fullnameOverride']}-query-frontend.dicelab-engines.")
    assert tempo["ports"][0]["port"] == values("tempo")["queryFrontend"]["service"]["httpMetricsPort"]


@pytest.mark.parametrize(
    ("name", "arguments"), [("loki", ["-verify-config"]), ("tempo", ["-config.verify=true", "-target=distributor"])]
)
def test_the_program_accepts_the_configuration_of_its_chart(name: str, arguments: list[str], tmp_path: Path) -> None:
    binary = shutil.which(name)
    if binary is None:
        pytest.skip(f"not on PATH: {name}")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values(name)[name]["structuredConfig"]))
    done = subprocess.run(
        [binary, f"-config.file={path}", *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
