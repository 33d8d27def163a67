"""The manifests for Kubernetes: against published schemas, among themselves, and against compose.

Checks of references are functions that return defects, so that they can be applied to manifests with a defect too.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.kubernetes import kustomize
from lab.paths import COMPOSE, ROOT
from lab.supervise import engines, stages
from tests.support import images
from tests.support.kubernetes import (
    NAME,
    OPTIONAL,
    SECRET,
    WORKLOADS,
    Document,
    Manifests,
    Workload,
    kustomize_command,
    load,
    text,
    validate,
)

CONTAINERS: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
SMALL = [f"small/{stage}" for stage in stages.STAGES]
SECRETS = {key: f"the {key}" for key in SECRET}
# The three minor versions that the Kubernetes project maintains.
VERSIONS = ("1.35", "1.36", "1.37")


# --- the stages ---


def test_the_kustomizations_of_the_stages_are_those_that_make_writes() -> None:
    written = {str(path): text for path, text in kustomize.files()}
    committed = {
        str(path.relative_to(kustomize.DIRECTORY)): path.read_text()
        for folder in ("stages", *kustomize.ENGINES)
        for path in (kustomize.DIRECTORY / folder).rglob("*")
        if path.is_file()
    }
    rules = "engines/large/rules.yaml"
    committed[rules] = (kustomize.DIRECTORY / rules).read_text()
    assert committed == written, "run make kubernetes-stages"


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_stage_has_its_parts_and_settings(stage: int) -> None:
    manifests = load(f"small/{stage}")
    loaded = stages.load(stage)
    wanted = {service.name for service in loaded.services} | {engine.name for engine in engines.ENGINES}
    wanted |= {"postgres"} if loaded.postgres else set()
    wanted -= set() if loaded.postgres else set(engines.WITH_POSTGRES)
    assert {workload.name for workload in manifests.workloads()} == wanted
    for service in loaded.services:
        given = manifests.environment(manifests.workload(service.name), SECRETS)
        assert given.items() >= loaded.variables.items()
        assert given["STAGE"] == str(stage)
    assert manifests.environment(manifests.workload("grafana"), SECRETS)["STAGE"] == str(stage)
    assert manifests.environment(manifests.workload("alloy"), SECRETS)["LOG_ROUTE"] == loaded.variables["LOG_ROUTE"]


# --- schemas ---


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_in_the_strict_schemas(version: str) -> None:
    from kubernetes_validate import ValidationError  # imported here: it takes three seconds

    unique = {
        json.dumps(document, sort_keys=True): document
        for directory in SMALL
        for document in load(directory).documents
        # Every ConfigMap has the same schema, and those with the dashboards are large.
        if document["kind"] != "ConfigMap" or directory == SMALL[-1]
    }
    validate(unique.values(), version)
    broken = copy.deepcopy(load(SMALL[0]).workload("dice-roller").document)
    broken["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(ValidationError, match="enableServiceLink"):
        validate([broken], version)


# --- references ---


def broken_references(manifests: Manifests) -> list[str]:
    """Every name in the manifests that refers to nothing."""
    found = []
    for workload in manifests.workloads():
        found += [f"{workload.name}: {defect}" for defect in _broken_in(manifests, workload)]
    for (_, name), service in manifests.of("Service").items():
        spec = service["spec"]
        behind = _selected(manifests, spec["selector"], service["metadata"]["namespace"])
        if not behind:
            found.append(f"service {name} selects no pod")
        for port in spec["ports"]:
            found += [
                f"service {name}: {workload.name} has no port {port['targetPort']}"
                for workload in behind
                if port["targetPort"] not in workload.ports
            ]
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget"):
        for (namespace, name), document in manifests.of(kind).items():
            spec = document["spec"]
            if kind == "PodDisruptionBudget":
                there = bool(_selected(manifests, spec["selector"]["matchLabels"], namespace))
            else:
                target = spec["scaleTargetRef"]
                there = (namespace, target["name"]) in manifests.of(target["kind"])
            if not there:
                found.append(f"{kind} {name} has no workload")
    return found


def _broken_in(manifests: Manifests, workload: Workload) -> Iterator[str]:
    maps = manifests.of("ConfigMap")
    container = workload.container
    if not workload.document["spec"]["selector"]["matchLabels"].items() <= workload.labels.items():
        yield "its selector does not match its pods"
    for source in container.get("envFrom", []):
        if (workload.namespace, source["configMapRef"]["name"]) not in maps:
            yield f"no ConfigMap {source['configMapRef']['name']}"
    for variable in container.get("env", []):
        for kind, reference in variable.get("valueFrom", {}).items():
            if kind == "secretKeyRef":
                known = SECRET | (OPTIONAL if reference.get("optional") else set())
                if reference["name"] != "dicelab" or reference["key"] not in known:
                    yield f"no key {reference['key']} in the Secret {reference['name']}"
            elif reference["key"] not in maps.get((workload.namespace, reference["name"]), {}).get("data", {}):
                yield f"no key {reference['key']} in the ConfigMap {reference['name']}"
        for name in re.findall(r"\$\((\w+)\)", str(variable.get("value", ""))):
            if name not in {one["name"] for one in container["env"]}:
                yield f"no variable {name}"
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    yield from (f"no volume {name}" for name in mounted - workload.volumes.keys())
    yield from (f"the volume {name} is mounted nowhere" for name in workload.volumes.keys() - mounted)
    for volume in workload.volumes.values():
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            if (workload.namespace, claim) not in manifests.of("PersistentVolumeClaim"):
                yield f"no claim {claim}"
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            data = maps.get((workload.namespace, name), {}).get("data", {})
            if not data:
                yield f"no ConfigMap {name}"
            if not volume["configMap"].get("optional"):
                wanted = {item["key"] for item in volume["configMap"].get("items", [])}
                yield from (f"no key {key} in the ConfigMap {name}" for key in wanted - data.keys())
            if volume["configMap"].get("items"):
                used = {item["key"] for item in volume["configMap"]["items"]}
                yield from (f"the key {key} of {name} is mounted nowhere" for key in data.keys() - used)
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        port = container[kind].get("httpGet", {}).get("port")
        if port is not None and port not in workload.ports:
            yield f"its {kind} has no port {port}"
    service = workload.document["spec"].get("serviceName")
    if service and (workload.namespace, service) not in manifests.of("Service"):
        yield f"no service {service}"


def _selected(manifests: Manifests, labels: dict[str, str], namespace: str) -> list[Workload]:
    return [
        workload
        for workload in manifests.workloads()
        if workload.namespace == namespace and labels.items() <= workload.labels.items()
    ]


@pytest.mark.parametrize("directory", SMALL)
def test_every_reference_leads_somewhere(directory: str) -> None:
    assert broken_references(load(directory)) == []


def _container(manifests: Manifests, name: str) -> Document:
    return manifests.workload(name).container


DEFECTS: dict[str, tuple[Callable[[Manifests], object], str]] = {
    "a port by another name": (
        lambda manifests: _container(manifests, "tempo")["ports"][1].update(name="otlp"),
        "service tempo: tempo has no port otlp-grpc",
    ),
    "a probe of a port that is not there": (
        lambda manifests: _container(manifests, "loki")["livenessProbe"]["httpGet"].update(port="web"),
        "loki: its livenessProbe has no port web",
    ),
    "a variable of a key that is not there": (
        lambda manifests: _container(manifests, "grafana")["env"][10].update(
            valueFrom={"configMapKeyRef": {"name": "stage", "key": "NUMBER"}}
        ),
        "grafana: no key NUMBER in the ConfigMap stage",
    ),
    "a password that nobody makes": (
        lambda manifests: _container(manifests, "frontend")["env"][0]["valueFrom"]["secretKeyRef"].update(key="SECRET"),
        "frontend: no key SECRET in the Secret dicelab",
    ),
    "a volume that is not there": (
        lambda manifests: manifests.workload("frontend").pod["volumes"].pop(),
        "frontend: no volume state",
    ),
    "a claim that is not there": (
        lambda manifests: manifests.of("PersistentVolumeClaim")["dicelab", "frontend"]["metadata"].update(name="page"),
        "frontend: no claim frontend",
    ),
    "a dashboard that is not mounted": (
        lambda manifests: next(
            one for (_, name), one in manifests.of("ConfigMap").items() if name.startswith("grafana")
        )["data"].update({"stage-7.json": "{}"}),
        "grafana: the key stage-7.json of {map} is mounted nowhere",
    ),
    "a selector of other pods": (
        lambda manifests: manifests.workload("loki").document["spec"]["selector"]["matchLabels"].update(app="loki"),
        "loki: its selector does not match its pods",
    ),
    "an autoscaler of nothing": (
        lambda manifests: manifests.of("HorizontalPodAutoscaler")["dicelab", "dice-roller"]["spec"][
            "scaleTargetRef"
        ].update(name="roller"),
        "HorizontalPodAutoscaler dice-roller has no workload",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_broken_reference_is_found(defect: str) -> None:
    apply, message = DEFECTS[defect]
    manifests = Manifests(copy.deepcopy(load("small/6").documents))
    apply(manifests)
    name = next(name for _, name in manifests.of("ConfigMap") if name.startswith("grafana"))
    assert broken_references(manifests) == [message.replace("{map}", name)]


# --- the network ---

# The services share their settings; these services do not use these variables.
UNUSED = {"dice-roller": {"DICE_ROLLER_URL"}, "die-service": {"DICE_ROLLER_URL", "DIE_SERVICE_URL"}}
ADDRESS = re.compile(r"(?:^|://(?:[^@/]+@)?|\[)([a-z][a-z-]+(?:\.[a-z-]+)?):(\d+)")


def addresses(manifests: Manifests, workload: Workload) -> set[tuple[str, int]]:
    """Every host and port in a workload's variables and files."""
    given = manifests.environment(workload, SECRETS)
    for name in UNUSED.get(workload.name, ()):
        del given[name]
    if workload.name == "otel-collector":  # its file joins the two
        given["tempo"] = f"{given['TEMPO_HOST']}:{given['TEMPO_OTLP_GRPC_PORT']}"
    texts = [*given.values(), *(content for path, content in manifests.files(workload) if "dashboards" not in path)]
    plain = [re.sub(r"^\s*(#|//).*$", "", content, flags=re.MULTILINE) for content in texts]
    found = {(host, int(port)) for content in plain for host, port in ADDRESS.findall(content)}
    if workload.name == "prometheus":
        document = yaml.safe_load(dict(manifests.files(workload))["/etc/prometheus/prometheus.yml"])
        jobs = [one for job in document["scrape_configs"] for one in job.get("dns_sd_configs", [])]
        found |= {(name, job["port"]) for job in jobs for name in job["names"]}
        # The relabelling drops this one: each node has its own Alloy.
        found.remove(("alloy", 12345))
    return found


def forbidden(manifests: Manifests) -> list[str]:
    """Each address in the manifests that no Service has, or that a network policy of either side forbids."""
    found = []
    for workload in manifests.workloads():
        for host, port in sorted(addresses(manifests, workload)):
            if host == workload.name:
                continue
            name, _, namespace = host.partition(".")
            at = namespace or workload.namespace
            service = manifests.of("Service").get((at, name))
            if service is None:
                found.append(f"{workload.name}: no service {host}")
                continue
            spec = service["spec"]
            target = next((one["targetPort"] for one in spec["ports"] if one["port"] == port), None)
            if target is None:
                found.append(f"{workload.name}: {host} has no port {port}")
                continue
            for behind in _selected(manifests, spec["selector"], at):
                number = behind.ports[target]
                if not _allows(manifests, "egress", workload, behind, number):
                    found.append(f"{workload.name} may not connect to {behind.name}:{number}")
                if not _allows(manifests, "ingress", behind, workload, number):
                    found.append(f"{behind.name} refuses {workload.name} at {number}")
    return found


def _allows(manifests: Manifests, direction: str, own: Workload, other: Workload, port: int) -> bool:
    """Whether the policies for one side of a connection allow it.

    Args:
        port: of the side that is connected to.
    """
    listener = own if direction == "ingress" else other
    for policy in manifests.of("NetworkPolicy").values():
        spec = policy["spec"]
        selected = spec["podSelector"].get("matchLabels", {}).items() <= own.labels.items()
        if policy["metadata"]["namespace"] != own.namespace or not selected:
            continue
        for rule in spec.get(direction, []):
            ports = {listener.ports.get(one["port"], one["port"]) for one in rule.get("ports", [])}
            peers = rule["from" if direction == "ingress" else "to"]
            if (not ports or port in ports) and any(_is(peer, other, own.namespace) for peer in peers):
                return True
    return False


def _is(peer: Document, workload: Workload, namespace: str) -> bool:
    labels = {"kubernetes.io/metadata.name": workload.namespace}
    if "namespaceSelector" in peer:
        if not peer["namespaceSelector"].get("matchLabels", {}).items() <= labels.items():
            return False
    elif workload.namespace != namespace:
        return False
    return bool(peer.get("podSelector", {}).get("matchLabels", {}).items() <= workload.labels.items())


@pytest.mark.parametrize("directory", SMALL)
def test_every_address_exists_and_is_allowed_on_both_sides(directory: str) -> None:
    manifests = load(directory)
    # Addresses that the services and Prometheus have at every stage, of parts that only later stages have.
    absent = {"postgres", *(service.name for service in stages.SERVICES)} - {one.name for one in manifests.workloads()}
    unknown = tuple(f"no service {name}{suffix}" for name in absent for suffix in ("", "-pods"))
    assert [one for one in forbidden(manifests) if not one.endswith(unknown)] == []


def test_the_policies_forbid_what_nobody_needs() -> None:
    manifests = load("small/6")
    workload = manifests.workload
    assert not _allows(manifests, "egress", workload("dice-roller"), workload("postgres"), 5432)
    assert not _allows(manifests, "ingress", workload("postgres"), workload("frontend"), 5432)
    assert not _allows(manifests, "ingress", workload("loki"), workload("dice-roller"), 3100)
    assert not _allows(manifests, "egress", workload("alloy"), workload("postgres"), 5432)
    without = Manifests([one for one in manifests.documents if one["metadata"]["name"] != "tempo"])
    assert "otel-collector: no service tempo" in forbidden(without)
    policies = [
        one for one in manifests.documents if (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "loki")
    ]
    without = Manifests([one for one in manifests.documents if one not in policies])
    assert "loki refuses alloy at 3100" in forbidden(without)
    for namespace in (kustomize.NAMESPACE, kustomize.NODES_NAMESPACE):
        assert any(
            policy["spec"]["podSelector"] == {} and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
            for (at, _), policy in manifests.of("NetworkPolicy").items()
            if at == namespace
        )


# --- security ---


def violations(workload: Workload) -> list[str]:
    """Violations of the restricted Pod Security Standard and of our own requirements."""
    pod, container = workload.pod, workload.container
    own = container["securityContext"]
    rules = {
        "runs as root": pod["securityContext"].get("runAsNonRoot") and pod["securityContext"].get("runAsUser"),
        "has no seccomp profile": pod["securityContext"].get("seccompProfile") == {"type": "RuntimeDefault"},
        "may gain privileges": own.get("allowPrivilegeEscalation") is False,
        "has capabilities": own.get("capabilities") == {"drop": ["ALL"]},
        "shares a namespace of the node": not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(),
        "mounts a path of the node": not any("hostPath" in volume for volume in workload.volumes.values()),
        "can write to its root": own.get("readOnlyRootFilesystem") is True,
        "has a token of the API": pod.get("automountServiceAccountToken") is False,
        "gets variables of all services": pod.get("enableServiceLinks") is False,
        "has no limit of memory": "memory" in container["resources"]["limits"],
        "requests nothing": container["resources"]["requests"].keys() == {"cpu", "memory"},
    }
    return [what for what, kept in rules.items() if not kept]


def test_pods_comply_with_the_restricted_profile_except_the_reader_of_node_logs() -> None:
    manifests = load("small/6")
    for workload in manifests.workloads():
        assert violations(workload) == (
            ["runs as root", "mounts a path of the node"] if workload.name == "alloy" else []
        ), workload.name
    labels = manifests.of("Namespace")["", "dicelab"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert manifests.workload("alloy").namespace == kustomize.NODES_NAMESPACE
    (logs,) = (mount for mount in manifests.workload("alloy").container["volumeMounts"] if mount["name"] == "logs")
    assert logs["readOnly"]


@pytest.mark.parametrize("directory", SMALL)
def test_no_manifest_has_a_secret(directory: str) -> None:
    assert "Secret" not in {document["kind"] for document in load(directory).documents}
    assert not re.search(r"://\w+:[^$@/\s]+@", text(directory))


def facts(workload: Workload) -> images.Image:
    """The facts of a workload's image."""
    return images.load()[CONTAINERS[workload.name]["image"]]


def test_paths_that_a_program_writes_to_are_volumes() -> None:
    manifests = load("small/6")
    for workload in manifests.workloads():
        image = facts(workload)
        writable = [
            mount["mountPath"] for mount in workload.container.get("volumeMounts", []) if not mount.get("readOnly")
        ]
        values = {**image.env, **manifests.environment(workload, SECRETS)}
        values |= dict(one.split("=", 1) for one in workload.container.get("args", []) if "=" in one)
        for written in image.writes:
            path = written if written.startswith("/") else values.get(written, "")
            assert not path or any(Path(path).is_relative_to(place) for place in writable), (workload.name, path)


# --- the same as compose ---


def test_images_commands_and_limits_are_those_of_compose() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    own = f"dicelab:{setup['metadata']['version']}"
    assert f"\nIMAGE ?= {own}\n" in (ROOT / "Makefile").read_text()
    for workload in load("small/6").workloads():
        service, container = CONTAINERS[workload.name], workload.container
        assert container["image"] == (own if service["image"] == "dicelab" else service["image"])
        assert [*container.get("command", []), *container.get("args", [])] == [
            argument.replace("containers.alloy", "kubernetes.alloy")
            for argument in service.get("command", [])
            if "SAMPLING" not in argument  # in a cluster, the small size keeps every trace
        ]
        assert container["resources"]["limits"]["memory"] == service["mem_limit"].replace("m", "Mi").replace("g", "Gi")
        if workload.name != "alloy":
            # An image whose user is root would not start.
            context = workload.pod["securityContext"]
            image = facts(workload)
            user = image.users.get(service.get("user", "")) or image.user
            assert context["runAsUser"] == (user[0] if service.get("user") != "0:0" else 10001), workload.name


# Variables that differ from compose's, and why.
DIFFERENT = {
    "alloy": {
        "DOCKER_HOST",  # compose's source of lines
        "LOGS_DIR",  # ours
        "LOGS_NAMESPACE",
        "LOKI_URL",  # in another namespace
    },
    "otel-collector": {"PROMETHEUS_URL"},  # for tail sampling
    **{service.name: {"PORT"} for service in stages.SERVICES},  # the image's
}


def test_variables_are_those_of_compose() -> None:
    manifests = load("small/6")
    secrets = {key: f"${{{key}}}" for key in SECRET}
    for workload in manifests.workloads():
        ours = manifests.environment(workload, secrets)
        theirs = {key: plain(str(value)) for key, value in CONTAINERS[workload.name].get("environment", {}).items()}
        theirs = {key: value for key, value in theirs.items() if value}
        ignored = DIFFERENT.get(workload.name, set()) | {"STAGE"}
        if "envFrom" in workload.container:  # the file of the stage, which compose has as env_file
            ignored |= {"COMPOSE_PROFILES", *stages.load(6).variables}
        if "POSTGRES_PASSWORD" not in theirs:  # another variable contains it
            ignored.add("POSTGRES_PASSWORD")
        assert {key: ours[key] for key in ours.keys() - ignored} == {
            key: theirs[key] for key in theirs.keys() - ignored
        }, workload.name


def plain(value: str) -> str:
    """A value of the compose file in which ``${NAME:-default}`` is its default and ``${NAME:?}`` is ``${NAME}``."""
    value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    value = re.sub(r"\$\{(\w+):\?[^}]*\}", r"${\1}", value)
    return value.replace("${LOG_ROUTE}", stages.load(6).variables["LOG_ROUTE"])


def test_engines_read_the_files_that_compose_mounts() -> None:
    """Byte by byte, except for Prometheus's targets and Alloy's source of lines."""
    manifests = load("small/6")
    for workload in manifests.workloads():
        for path, content in manifests.files(workload):
            if path in {"/etc/prometheus/prometheus.yml", "/etc/prometheus/rules/pods.yml"}:
                continue
            if path.startswith("/etc/prometheus/targets"):
                assert content == (COMPOSE / Path(path).relative_to("/etc/prometheus")).read_text()
                continue
            if path.endswith("/kubernetes.alloy"):
                continue
            sources = [volume.split(":")[:2] for volume in CONTAINERS[workload.name]["volumes"]]
            source, target = next((s, t) for s, t in sources if Path(path).is_relative_to(t))
            original = (COMPOSE / source).resolve() / Path(path).relative_to(target)
            assert content == original.read_text(), path
    for name, folder, place in (
        ("prometheus", COMPOSE / "prometheus" / "rules", Path("/etc/prometheus/rules")),
        ("grafana", ROOT / "grafana" / "dashboards", Path("/etc/dicelab/dashboards")),
    ):
        paths = [Path(path) for path, _ in manifests.files(manifests.workload(name))]
        there = {path.name for path in paths if path.parent == place}
        assert there >= {path.name for path in folder.iterdir() if path.suffix in {".yml", ".json"}}, name


def test_prometheus_differs_from_compose_only_in_its_targets() -> None:
    files = dict(load("small/6").files(load("small/6").workload("prometheus")))
    ours = yaml.safe_load(files["/etc/prometheus/prometheus.yml"])
    theirs = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    dicelab, probe, *pods = ours.pop("scrape_configs")
    without = {key: value for key, value in dicelab.items() if key != "relabel_configs"}
    assert [without, probe] == theirs.pop("scrape_configs")
    assert ours == theirs
    jobs = {"alloy": f"alloy-pods.{kustomize.NODES_NAMESPACE}"}
    jobs |= {service.name: f"{service.name}-pods" for service in stages.SERVICES}
    assert {pod["job_name"]: pod["dns_sd_configs"][0]["names"] for pod in pods} == {
        job: [name] for job, name in jobs.items()
    }
    services = load("small/6").of("Service")
    for pod in pods:
        (found,) = pod["dns_sd_configs"]
        name, _, namespace = found["names"][0].partition(".")
        spec = services[namespace or kustomize.NAMESPACE, name]["spec"]
        assert spec["clusterIP"] == "None"
        assert spec["publishNotReadyAddresses"]
        assert spec["ports"][0]["port"] == found["port"]


def test_the_services_of_log_lines_are_those_of_compose() -> None:
    """Alloy takes the container's name for service_name; compose has a label for it."""
    manifests = load("small/6")
    labelled = {name: service["labels"]["dicelab.logs"] for name, service in CONTAINERS.items() if "labels" in service}
    source = dict(manifests.files(manifests.workload("alloy")))["/etc/dicelab/kubernetes.alloy"]
    (kept,) = re.findall(r"\(([a-z|-]+)\)/\[0-9\]", source)
    assert set(kept.split("|")) == set(labelled.values())
    for workload in manifests.workloads():
        assert workload.container["name"] == labelled.get(workload.name, workload.name)
        assert workload.labels[NAME] == workload.name
    given = manifests.environment(manifests.workload("alloy"), SECRETS)
    assert set(re.findall(r"sys\.env\(\"([A-Z_]+)\"\)", source)) <= given.keys()


def test_the_frontend_is_one_and_the_others_scale() -> None:
    manifests = load("small/6")
    frontend = manifests.workload("frontend").document["spec"]
    assert (frontend["replicas"], frontend["strategy"]["type"]) == (1, "Recreate")
    for name in ("dice-roller", "die-service"):
        assert "replicas" not in manifests.workload(name).document["spec"]
        scaling = manifests.of("HorizontalPodAutoscaler")["dicelab", name]["spec"]
        assert scaling["minReplicas"] > 1
        assert manifests.of("PodDisruptionBudget")["dicelab", name]["spec"]["maxUnavailable"] == 1
        probes = manifests.workload(name).container
        assert probes["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert probes["readinessProbe"]["httpGet"]["path"] == "/readyz"


# --- rules ---


def test_a_service_without_pods_is_down(tmp_path: Path) -> None:
    rules = kustomize.DIRECTORY / "engines" / "small" / "prometheus" / "pods.yml"
    case = {
        "rule_files": [str(rules)],
        "evaluation_interval": "5s",
        "tests": [
            {
                "interval": "5s",
                "input_series": [
                    {"series": 'up{job="dice-roller",instance="10.0.0.1:8000"}', "values": "1x6 stale"},
                    {"series": 'up{job="dice-roller",instance="10.0.0.2:8000"}', "values": "1x60"},
                    {"series": 'up{job="die-service",instance="10.0.0.3:8000"}', "values": "1x6 stale"},
                ],
                "alert_rule_test": [
                    {"alertname": "ServiceDown", "eval_time": "40s"},
                    {
                        "alertname": "ServiceDown",
                        "eval_time": "60s",
                        "exp_alerts": [
                            {
                                "exp_labels": {"severity": "page", "job": "die-service"},
                                "exp_annotations": {
                                    "summary": "die-service is down",
                                    "description": "There is no pod of die-service that Prometheus could scrape.",
                                    "runbook_url": "docs/runbooks/ServiceDown.md",
                                },
                            }
                        ],
                    },
                ],
            }
        ],
    }
    path = tmp_path / "case.yml"
    path.write_text(yaml.safe_dump(case))
    for command in (["check", "rules", "--lint=all", "--lint-fatal", str(rules)], ["test", "rules", str(path)]):
        done = subprocess.run(["promtool", *command], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# --- make ---


def make(*arguments: str, **environment: str) -> str:
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_prints_a_stage_with_a_chosen_image() -> None:
    printed = make("kubernetes", "STAGE=3", "IMAGE=registry.example/dicelab@sha256:0123")
    assert printed == re.sub(r"image: dicelab:\S+", "image: registry.example/dicelab@sha256:0123", text("small/3"))
    assert make("kubernetes", "STAGE=3") == text("small/3")


def test_every_workload_kind_is_known() -> None:
    kinds = {document["kind"] for directory in SMALL for document in load(directory).documents}
    assert kinds <= {
        *WORKLOADS,
        *("ConfigMap", "HorizontalPodAutoscaler", "Namespace", "NetworkPolicy", "PersistentVolumeClaim"),
        *("PodDisruptionBudget", "Service"),
    }


# In place of kubectl: records what it is called with, and how often each kind is in its input.
KUBECTL = """#!/bin/sh
echo "$*" >> {directory}/calls
case "$*" in
    *"get "*) exit {found} ;;
    *"--filename -") grep '^kind: ' > {directory}/applied ;;
    *password=/dev/stdin) cat > {directory}/password ;;
esac
"""


@pytest.mark.parametrize(("engines_of", "found"), [("small", 1), ("small", 0), ("large", 1)])
def test_make_applies_a_stage_and_creates_its_secrets_once(tmp_path: Path, engines_of: str, found: int) -> None:
    wanted = load(f"{engines_of}/5")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for part in ("kubernetes", "compose", "alloy", "grafana"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", ".env"))
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL.format(directory=tmp_path, found=found))
    program.chmod(0o755)
    builder = " ".join([*kustomize_command(), "--load-restrictor", "LoadRestrictionsNone"])
    command = ["make", "kubernetes", "STAGE=5", "APPLY=1", f"ENGINES={engines_of}"]
    done = subprocess.run(
        [*command, f"KUBECTL={program}", f"KUSTOMIZE={builder}"],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "apply --filename kubernetes/base/namespace.yaml"
    assert calls[-1] == "apply --server-side --filename -"
    applied = (tmp_path / "applied").read_text().splitlines()
    assert applied == [f"kind: {document['kind']}" for document in wanted.documents]
    # Only missing secrets are created: new passwords would not match those of the database.
    secrets = [call for call in calls if " create " in f" {call} "]
    passwords = dict(line.split("=") for line in (tmp_path / "compose" / ".env").read_text().splitlines())
    assert passwords.keys() == SECRET
    own = ["create --namespace dicelab secret generic dicelab --from-env-file=compose/.env"] if found else []
    if engines_of == "large":
        own.append(
            "create --namespace dicelab secret generic dicelab-database --type=kubernetes.io/basic-auth"
            " --from-literal=username=dice --from-file=password=/dev/stdin"
        )
        assert (tmp_path / "password").read_text() == passwords["POSTGRES_PASSWORD"]
    assert passwords["POSTGRES_PASSWORD"] not in (tmp_path / "calls").read_text()  # other users can list arguments
    assert secrets == own
    assert passwords["POSTGRES_PASSWORD"] not in done.stdout
