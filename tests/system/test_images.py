"""The compose file against the facts of its images, and against their programs where these are on PATH.

Every check is a function of the compose document that returns its defects, so that it can be applied to the
original document and to the same document with a defect.
"""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from configparser import RawConfigParser
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from lab.paths import COMPOSE, GRAFANA, ROOT
from lab.supervise import engines
from tests.support import images
from tests.support.images import Image, Owned

COMPOSE_FILE: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
SERVICES: list[str] = list(COMPOSE_FILE["services"])
IMAGES = images.load()
DOCKERFILE = (COMPOSE / "Dockerfile").read_text()
GRAFANA_INI = RawConfigParser()
GRAFANA_INI.read(GRAFANA / "grafana.ini")
# Shell builtins.
BUILTINS = {"exec", "printf", "test", "[", "cd", "exit"}

Service = Mapping[str, Any]
Check = Callable[[Service], list[str]]


def image_of(service: Service) -> Image:
    return IMAGES[service["image"]]


def user_of(service: Service) -> tuple[int, int]:
    """uid and gid of the container's process."""
    image = image_of(service)
    if "user" not in service:
        return image.user
    return image.users.get(service["user"]) or images.identity(service["user"])


def environment_of(service: Service) -> dict[str, str]:
    """The container's environment: the image's, overridden by the compose file's."""
    return {**image_of(service).env, **{name: str(value) for name, value in service.get("environment", {}).items()}}


def command_of(service: Service) -> list[str]:
    """The container's whole command line."""
    image = image_of(service)
    return [*image.entrypoint, *service.get("command", image.cmd)]


def probe_of(service: Service) -> list[str]:
    """The command line of the health check, without the CMD in front."""
    return list(service.get("healthcheck", {}).get("test", ["CMD"]))[1:]


def check_probe(service: Service) -> list[str]:
    """The programs that the health check needs are in the image."""
    command = probe_of(service)
    if not command:
        return []
    wanted = [command[0]]
    if command[1:2] == ["-c"]:
        parts = re.split(r"&&|\|\||[;|]", command[2])
        wanted += [word for part in parts if (word := shlex.split(part)[0]) not in BUILTINS]
    image = image_of(service)
    return [f"the health check's {program} is not in {image.name}" for program in wanted if not image.find(program)]


def check_flags(service: Service) -> list[str]:
    """The programs have the flags in their commands and health checks."""
    image = image_of(service)
    wrong = []
    for command in (command_of(service), probe_of(service)):
        program = image.find(command[0]) if command else None
        if program is None or program not in image.flags:
            continue
        given = [argument.split("=", 1)[0] for argument in command[1:] if argument.startswith("-")]
        wrong += [f"{program} has no flag {flag}" for flag in given if flag not in image.flags[program].names]
    return wrong


def check_written_paths(service: Service) -> list[str]:
    """All paths that the program writes to are on a writable mount, and writable for its user."""
    return [f"{path}: {why}" for path in written_paths(service) if (why := why_not_writable(service, path))]


def written_paths(service: Service) -> Iterator[str]:
    """The paths of ``writes`` in the image's facts, in this container."""
    flags = dict(argument.split("=", 1) for argument in command_of(service) if re.match("--?[^=]+=", argument))
    for written in image_of(service).writes:
        path = written if written.startswith("/") else {**environment_of(service), **flags}.get(written)
        if path:
            yield path


def why_not_writable(service: Service, path: str) -> str:
    """The reason why the container's user cannot write to a path, or nothing."""
    mounts = mounts_of(service)
    way = [str(place) for place in reversed(PurePosixPath(path).parents)] + [path]
    mount = next((place for place in reversed(way) if place in mounts), None)
    if mount is None:
        return "not on a mount, and the root file system is read-only"
    if mounts[mount] is None:
        return f"{mount} is mounted read-only"
    known = {**image_of(service).paths, mount: mounts[mount]}
    # The deepest directory that exists before the program starts; the program creates those below it.
    deepest = next(place for place in reversed(way) if place in known or place == mount)
    if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
        return "which capabilities are left is not known"
    for place in way[: way.index(deepest) + 1]:
        access = 3 if place == deepest else 1
        directory = known.get(place) or Owned()
        if not directory.allows(*user_of(service), access):
            owner = f"{directory.uid}:{directory.gid} {directory.mode:04o}"
            return f"{place} is {owner}, and the process is {':'.join(map(str, user_of(service)))}"
    return ""


def mounts_of(service: Service) -> dict[str, Owned | None]:
    """Owner and mode of each mount by its path; ``None`` for a read-only one."""
    found: dict[str, Owned | None] = {}
    for volume in service.get("volumes", []):
        source, target, *options = volume.split(":") if not volume.startswith("$") else ("socket", "/socket", "ro")
        # A new named volume takes owner and mode from the directory of the image that it covers.
        named = source in COMPOSE_FILE["volumes"]
        found[target] = image_of(service).owned(target) if named and "ro" not in options else None
    for entry in service.get("tmpfs", []):
        target, _, options = entry.partition(":")
        mode = re.search(r"mode=(\d+)", options)
        found[target] = Owned(mode=int(mode[1], 8) if mode else 0o1777)
    return found


def check_variables(service: Service) -> list[str]:
    """No variable of the image overrides a setting of ours: Grafana prefers ``GF_SECTION_KEY`` to grafana.ini."""
    image = image_of(service)
    ours = {name: str(value) for name, value in service.get("environment", {}).items()}
    wrong = []
    for section in GRAFANA_INI.sections() if image.name.startswith("grafana/grafana:") else ():
        for key, value in GRAFANA_INI[section].items():
            name = f"GF_{section}_{key}".replace(".", "_").replace("-", "_").upper()
            wanted = re.sub(r"\$__env\{(\w+)\}", lambda match: ours[match[1]], value)
            if name in image.env and environment_of(service)[name] != wanted:
                wrong.append(f"{name}={environment_of(service)[name]} overrides {section}.{key} = {wanted}")
    return wrong


CHECKS: list[Check] = [check_probe, check_flags, check_written_paths, check_variables]


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("check", CHECKS)
def test_the_image_supports_the_service(check: Check, name: str) -> None:
    assert check(COMPOSE_FILE["services"][name]) == []


Defect = Callable[[dict[str, Any]], object]
DEFECTS: dict[str, tuple[str, Check, Defect, str]] = {
    # These three were in a release.
    "a flag that only Debian's exporter has": (
        *("postgres-exporter", check_flags),
        lambda service: service.update(command=["--no-collector.bgwriter"]),
        "/bin/postgres_exporter has no flag --no-collector.bgwriter",
    ),
    "root without CAP_DAC_OVERRIDE in a directory of alloy's": (
        *("alloy", check_written_paths),
        lambda service: service.update(user="root"),
        "/var/lib/alloy/data: /var/lib/alloy is 473:473 0770, and the process is 0:0",
    ),
    "grafana.ini overridden: provisioning": (
        *("grafana", check_variables),
        lambda service: service["environment"].pop("GF_PATHS_PROVISIONING"),
        "GF_PATHS_PROVISIONING=/etc/grafana/provisioning overrides paths.provisioning = /etc/dicelab/provisioning",
    ),
    "grafana.ini overridden: logs": (
        *("grafana", check_variables),
        lambda service: service["environment"].pop("GF_PATHS_LOGS"),
        "GF_PATHS_LOGS=/var/log/grafana overrides paths.logs = /var/lib/grafana/log",
    ),
    # The same defects in other places.
    "logs on the read-only disk": (
        *("grafana", check_written_paths),
        lambda service: service["environment"].update(GF_PATHS_LOGS="/var/log/grafana"),
        "/var/log/grafana: not on a mount, and the root file system is read-only",
    ),
    "a health check by a program that is not there": (
        *("tempo", check_probe),
        lambda service: service["healthcheck"].update(test=["CMD", "wget", "--spider", "http://127.0.0.1:3200/ready"]),
        "the health check's wget is not in grafana/tempo:3.0.3",
    ),
    "a health check in a shell that lacks a program": (
        *("alloy", check_probe),
        lambda service: service["healthcheck"].update(test=["CMD", "bash", "-c", "curl -f 127.0.0.1:12345 | grep ok"]),
        "the health check's curl is not in grafana/alloy:v1.18.1",
    ),
    "another user's volume": (
        *("loki", check_written_paths),
        lambda service: service.update(user="10002:10002"),
        "/loki: /loki is 10001:10001 0755, and the process is 10002:10002",
    ),
    "a private directory of another user": (
        *("tempo", check_written_paths),
        lambda service: service.update(user="10002:10001"),
        "/var/tempo: /var/tempo is 10001:10001 0700, and the process is 10002:10001",
    ),
    "a file on the read-only disk": (
        *("frontend", check_written_paths),
        lambda service: service.pop("volumes"),
        "/var/lib/dicelab/sessions: not on a mount, and the root file system is read-only",
    ),
    "a misspelt flag": (
        *("prometheus", check_flags),
        lambda service: service["command"].append("--storage.tsdb.retention=31d"),
        "/bin/prometheus has no flag --storage.tsdb.retention",
    ),
    "the socket's directory on a tmpfs of root's": (
        *("postgres", check_written_paths),
        lambda service: service.update(volumes=service["volumes"][:1], tmpfs=["/tmp", "/run/postgresql:mode=0755"]),
        "/run/postgresql: /run/postgresql is 0:0 0755, and the process is 999:999",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_found(defect: str) -> None:
    name, check, apply, message = DEFECTS[defect]
    service = copy.deepcopy(COMPOSE_FILE["services"][name])
    apply(service)
    assert check(service) == [message]


def test_every_image_has_facts_and_sources() -> None:
    used = {service["image"] for service in COMPOSE_FILE["services"].values()}
    assert used | {IMAGES["dicelab"].base} == IMAGES.keys()
    for image in IMAGES.values():
        assert image.name == "dicelab" or re.fullmatch(r"[a-z0-9/-]+:v?\d+\.\d+(\.\d+)?(-[a-z-]+)?", image.name)
        for source in image.sources:
            if image.name == "dicelab":
                assert all((ROOT / file).is_file() for file in source["files"])
            else:
                assert re.fullmatch(r"[\w-]+/[\w-]+", source["repository"])
                assert "issue" in source or re.fullmatch("[0-9a-f]{40}", source["commit"])
        assert not image.entrypoint or image.find(image.entrypoint[0]), image.name
        assert set(image.flags) <= set(image.programs)


def test_facts_of_our_image_match_its_dockerfile() -> None:
    image = IMAGES["dicelab"]
    base = IMAGES[str(image.base)]
    assert re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE) == [image.base]
    final = DOCKERFILE.split("FROM ${BASE}\n")[1]
    assert re.findall(r"^USER (\S+)$", final, re.MULTILINE) == [":".join(map(str, image.user))]
    assert re.findall(r"^WORKDIR (\S+)$", final, re.MULTILINE) == [image.workdir]
    owners = re.findall(r"^COPY --from=build --chown=(\S+) \S+ (\S+)$", final, re.MULTILINE)
    assert {path: images.identity(owner) for owner, path in owners} == {
        path: (owned.uid, owned.gid) for path, owned in image.paths.items()
    }
    (line,) = re.findall(r"^ENV (.+)$", final, re.MULTILINE)
    stated = dict(word.split("=", 1) for word in line.split())
    stated["PATH"] = stated["PATH"].replace("$PATH", base.env["PATH"])
    assert stated == image.env
    assert image.cmd == base.cmd


@pytest.fixture(scope="module")
def private_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a checkout under umask 077, after ``make compose`` with a compose command that does nothing."""
    checkout = tmp_path_factory.mktemp("private") / "dicelab"
    for part in ("Makefile", "alloy", "grafana", "otel", "compose"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, checkout / part, ignore=shutil.ignore_patterns("__pycache__", ".env", ".targets"))
        else:
            checkout.mkdir()
            shutil.copy(source, checkout / part)
    for path in (checkout, *checkout.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    for stage in (6, 1):  # the second time over the files of the first
        subprocess.run(
            ["make", "compose", f"STAGE={stage}", "COMPOSE=true"],
            check=True,
            cwd=checkout,
            umask=0o077,
            stdout=subprocess.DEVNULL,
        )
    return checkout


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_can_read_the_configuration_of_a_private_checkout(name: str, private_checkout: Path) -> None:
    """Only the bits for others count: the container's user is neither the checkout's owner nor in its group."""
    for volume in COMPOSE_FILE["services"][name].get("volumes", []):
        source = volume.split(":")[0]
        if not source.startswith("."):
            continue
        mounted = private_checkout / "compose" / source
        assert mounted.exists(), f"{source} would be made by the container engine, as root"
        for path in (mounted, *mounted.rglob("*")):
            mode = path.stat().st_mode
            wanted = 0o005 if stat.S_ISDIR(mode) else 0o004
            assert mode & wanted == wanted, f"{path} is {stat.filemode(mode)}"


def test_make_compose_keeps_the_rest_of_a_private_checkout_private(private_checkout: Path) -> None:
    for path in (".", "compose/.env", "compose/stages", "otel", "otel/http.py", "Makefile"):
        assert not (private_checkout / path).stat().st_mode & 0o077, path


# Engine → the commands that print its flags, and its version.
PROGRAMS = {
    "prometheus": ("/bin/prometheus", ["--help"], ["--version"]),
    "postgres-exporter": ("/bin/postgres_exporter", ["--help"], ["--version"]),
    "tempo": ("/tempo", ["-help"], ["-version"]),
    "otel-collector": ("/otelcol-contrib", ["--help"], ["--version"]),
    "loki": ("/usr/bin/loki", ["-help"], ["-version"]),
    "alloy": ("/bin/alloy", ["run", "--help"], ["--version"]),
}


# Flags that a program reads before it parses the others, and does not list.
HIDDEN = {"loki": {"-health", "-health.url"}}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_has_exactly_the_listed_flags(name: str) -> None:
    program, help_arguments, version_arguments = PROGRAMS[name]
    image = image_of(COMPOSE_FILE["services"][name])
    binary = next((path for path in binaries_of(name) if image.version in output([path, *version_arguments])), None)
    if binary is None:
        pytest.skip(f"{name} {image.version} is not on PATH")
    listed = set(re.findall(r"(?<![\w-])--?(?:\[no-\])?([A-Za-z][\w.-]*)", output([binary, *help_arguments])))
    flags = image.flags[program]
    hidden = HIDDEN.get(name, set())
    if hidden:
        assert "connection refused" in output([binary, "-health", "-health.url=http://127.0.0.1:1/ready"])
    stated = {flag.lstrip("-").removeprefix("no-") for flag in flags.names - hidden}
    assert stated <= listed
    if flags.complete:
        assert listed - stated <= {"h", "help", "help-long", "help-man"}


def binaries_of(name: str) -> list[str]:
    """Every program on PATH that an engine could be."""
    engine = next(engine for engine in engines.ENGINES if engine.name == name)
    return [path for binary in engine.binaries if (path := shutil.which(binary))]


def output(command: list[str]) -> str:
    """The stdout and stderr of a program."""
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


# Engine → how its program checks a configuration: the arguments before and after those of the container's command.
CHECKERS: dict[str, tuple[list[str], list[str]]] = {
    "tempo": ([], ["-config.verify=true"]),
    "otel-collector": (["validate"], []),
    "loki": ([], ["-verify-config"]),
}


@pytest.mark.parametrize("name", CHECKERS)
def test_the_program_accepts_its_flags_and_configuration(name: str, tmp_path: Path) -> None:
    """As in the container, with the mounts replaced by their sources."""
    service = COMPOSE_FILE["services"][name]
    binaries = binaries_of(name)
    if not binaries:
        pytest.skip(f"{name} is not on PATH")

    def outside(text: str) -> str:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)  # compose's variables, with their defaults
        for volume in service["volumes"]:
            source, target = volume.split(":")[:2]
            here = (COMPOSE / source).resolve() if source.startswith(".") else tmp_path / source
            if not source.startswith("."):
                here.mkdir(exist_ok=True)  # a volume is an existing directory
            text = re.sub(rf"(?<![\w/-]){target}(?=/|$)", str(here), text)
        return text

    before, after = CHECKERS[name]
    for binary in binaries:
        checked = subprocess.run(
            [binary, *before, *map(outside, service["command"]), *after],
            env={variable: outside(value) for variable, value in environment_of(service).items()},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert checked.returncode == 0, checked.stdout


def accepts(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_the_lab_passes_only_flags_that_the_exporter_has() -> None:
    """Debian's exporter by the program's own help, upstream's by the list of its flags."""
    flag = "--no-collector.bgwriter"
    upstream = "\n".join(IMAGES["prometheuscommunity/postgres-exporter:v0.20.1"].flags["/bin/postgres_exporter"].names)
    assert not engines.lists_flag(upstream, "collector.bgwriter")
    assert engines.lists_flag(upstream, "collector.stat_bgwriter")
    assert engines.lists_flag("      --[no-]collector.bgwriter  Enable …", "collector.bgwriter")
    assert not engines.lists_flag("      --[no-]collector.bgwriter.more", "collector.bgwriter")
    engine = next(engine for engine in engines.ENGINES if engine.name == "postgres-exporter")
    variables = {"POSTGRES_EXPORTER_PORT": "9187"}
    binaries = binaries_of("postgres-exporter")
    assert binaries
    for binary in binaries:
        command = engine.command(engines.Setting(binary, Path(), variables))
        # A program parses its flags before it prints its version: an unknown one fails.
        assert accepts([*command, "--version"])
        assert (flag in command) is accepts([binary, flag, "--version"])
