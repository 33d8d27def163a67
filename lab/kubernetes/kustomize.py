"""Writes the generated files in ``kubernetes/``: ``make kubernetes-stages``.

Each stage has three kustomizations, made from ``compose/stages``: ``kubernetes/stages/N`` with its services and
settings, and ``kubernetes/small/N`` and ``kubernetes/large/N``, which add the engines. The rules of the large engines
are made from those of compose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.paths import COMPOSE, ROOT
from lab.supervise import stages

DIRECTORY = ROOT / "kubernetes"
ENGINES = ("small", "large")
NAMESPACE = "dicelab"
# The namespace of Alloy, which reads files of the node; the other namespace forbids that.
NODES_NAMESPACE = "dicelab-nodes"
NAME_LABEL = "app.kubernetes.io/name"
SERVICE_PORT = 8000  # of each of our own services
# The port in the cluster, by the name of the variable that holds the port outside.
PORTS = {
    "PROMETHEUS_PORT": 9090,
    "POSTGRES_EXPORTER_PORT": 9187,
    "TEMPO_PORT": 3200,
    "COLLECTOR_GRPC_PORT": 4317,
    "COLLECTOR_HTTP_PORT": 4318,
    "COLLECTOR_HEALTH_PORT": 13133,
    "COLLECTOR_METRICS_PORT": 8888,
    "LOKI_PORT": 3100,
    "ALLOY_PORT": 12345,
    "GRAFANA_PORT": 3000,
    "ALERTMANAGER_PORT": 9093,
    "ALERT_RECEIVER_PORT": SERVICE_PORT,
    "EXPORTER_PORT": SERVICE_PORT,
}
HEADER = """\
# Written from compose/stages/{stage}.env by make kubernetes-stages.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
"""


def files() -> Iterator[tuple[Path, str]]:
    """Each generated file, relative to :data:`DIRECTORY`, and its text."""
    for number in stages.STAGES:
        stage = stages.load(number)
        yield Path(f"stages/{number}/kustomization.yaml"), _services(stage)
        for engines in ENGINES:
            yield Path(f"{engines}/{number}/kustomization.yaml"), _with_engines(stage, engines)
    yield Path("engines/large/rules.yaml"), _rules()


def _services(stage: stages.Stage) -> str:
    services = "".join(f"  - ../../base/{service.name}\n" for service in stage.services)
    return (
        HEADER.format(stage=stage.number)
        + f"resources:\n  - ../../base\n{services}configMapGenerator:\n"
        + _settings(stage, NAMESPACE)
    )


def _with_engines(stage: stages.Stage, engines: str) -> str:
    components = f"components: [../../engines/{engines}/postgres]\n" if stage.postgres else ""
    return (
        HEADER.format(stage=stage.number)
        + f"resources: [../../stages/{stage.number}, ../../engines/{engines}]\n{components}"
        + "configMapGenerator:\n"
        + _settings(stage, NODES_NAMESPACE)
    )


def _settings(stage: stages.Stage, namespace: str) -> str:
    return (
        f"  - name: stage\n    namespace: {namespace}\n"
        f"    envs: [../../../compose/stages/{stage.number}.env]\n    literals: [STAGE={stage.number}]\n"
    )


def _rules() -> str:
    """The rules of Prometheus, in the format of its operator."""
    text = "# Written from compose/prometheus/rules and from small by make kubernetes-stages.\n"
    files = [*sorted((COMPOSE / "prometheus" / "rules").glob("*.yml")), DIRECTORY / "engines/small/prometheus/pods.yml"]
    for path in files:
        # The text itself, not the parsed rules: comments and line breaks explain the expressions.
        spec = "".join(f"  {line}".rstrip() + "\n" for line in path.read_text().splitlines())
        text += (
            "---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
            f"metadata: {{name: {path.stem}, namespace: {NAMESPACE}}}\nspec:\n{spec}"
        )
    return text


def write(directory: Path = DIRECTORY) -> None:
    for path, text in files():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)


if __name__ == "__main__":
    write()
