"""The containers of a compose project, through docker or podman."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from lab import LabError

PROJECT = "dicelab"  # the compose project
COLLECTOR = "otel-collector"
TAIL_CONFIGURATION = "/sampling/tail.yaml"  # an argument of a Collector with tail sampling ends like this
# The command of each container engine, and the template that prints a container's compose service.
COMMANDS = {
    "docker": '{{.Label "com.docker.compose.service"}}',
    "podman": '{{index .Labels "com.docker.compose.service"}}',
}


@dataclass(frozen=True)
class Containers:
    """The running containers of a project.

    Attributes:
        command: ``docker`` or ``podman``.
        ids: the id of each container, by the name of its compose service.
        sampling: how the Collector samples traces: ``tail``, or ``none`` where it keeps all.
    """

    command: str
    ids: Mapping[str, str]
    sampling: str = "none"

    def id(self, name: str) -> str:
        """The id of a container.

        Raises:
            LabError: when the project has no such container.
        """
        if name not in self.ids:
            raise LabError(f"the project has no container for {name}")
        return self.ids[name]

    async def run(self, *arguments: str) -> str:
        """Run a command of the container engine and return what it prints.

        Raises:
            LabError: when the command fails.
        """
        return await output([self.command, *arguments])

    def log_lines(self, name: str) -> list[str]:
        """The complete lines that a container has written to stdout, as far as docker or podman has kept them."""
        logs = subprocess.run(
            [self.command, "logs", self.id(name)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return logs.stdout.decode(errors="replace").split("\n")[:-1]


async def find(project: str = PROJECT) -> Containers:
    """Find the running containers of a compose project.

    Raises:
        LabError: when there are none.
    """
    label = f"label=com.docker.compose.project={project}"
    for command, of_service in COMMANDS.items():
        if shutil.which(command):
            with suppress(LabError):  # the client is installed, but its daemon does not run
                lines = await output([command, "ps", "--filter", label, "--format", "{{.ID}} " + of_service])
                if lines:
                    found = (line.partition(" ") for line in lines.splitlines())
                    ids = {name: container for container, _, name in found}
                    return Containers(command, ids, await _sampling(command, ids))
    raise LabError(f"no containers of the project {project} run here; make compose starts some")


async def _sampling(command: str, ids: Mapping[str, str]) -> str:
    if COLLECTOR not in ids:
        return "none"
    arguments = await output([command, "inspect", "--format", "{{range .Args}}{{.}}\n{{end}}", ids[COLLECTOR]])
    return "tail" if any(one.endswith(TAIL_CONFIGURATION) for one in arguments.split()) else "none"


async def output(command: Sequence[str]) -> str:
    """Run a command and return what it prints.

    Raises:
        LabError: when it fails.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must not interrupt the commands that remove a fault
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise LabError(f"{' '.join(command)}: {errors.decode(errors='replace').strip()[-300:]}")
    return output.decode()
