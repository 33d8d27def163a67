"""The guides in ``docs/stages``: the commands that they show, run as a reader would type them.

A ``console`` block contains commands, each after ``$ ``, and their output. In the output, ``…`` stands for any text
within a line; a line with only ``…`` stands for any number of lines.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.paths import DOCS

GUIDES = sorted((DOCS / "stages").glob("*.md"))
# Only the system's programs: with engines from elsewhere, spans would not go to files.
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Command:
    """A command of a guide, and the output that the guide shows."""

    text: str
    output: str


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[Command]:
    """The commands of all console blocks; a command continues while a quote is open or a line ends with a backslash."""
    for block in blocks(text, "console"):
        lines = block.splitlines()
        while lines:
            line = lines.pop(0)
            assert line.startswith("$ "), f"output without a command: {line}"
            command = line.removeprefix("$ ")
            while command.endswith("\\") or command.count('"') % 2 or command.count("'") % 2:
                command += f"\n{lines.pop(0)}"
            output = []
            while lines and not lines[0].startswith("$ "):
                output.append(lines.pop(0))
            yield Command(command, "\n".join(output))


def matches(shown: str, printed: str) -> bool:
    """Whether the output of a command is the one that the guide shows; widths of columns do not matter."""
    pattern = "".join(
        r"(?:[^\n]*\n)*?" if line == "…" else r"[^\n]*?".join(map(re.escape, line.split("…"))) + r"\n"
        for line in _squeezed(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _squeezed(printed))) is not None


def _squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


class Shell:
    """One bash session in which commands run one after the other, so that variables persist.

    Args:
        directory: where it begins; the lab's run dir is ``.dicelab`` in it.
        base_port: the port that replaces the guides' port 8000.
    """

    def __init__(self, directory: Path, base_port: int, **variables: str) -> None:
        self._base_port = base_port
        path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}"
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env={"PATH": path, "HOME": str(directory), "LANG": "C.UTF-8", "NO_PROXY": "127.0.0.1", **variables},
        )

    def run(self, command: str) -> tuple[int, str]:
        """Exit status and output, both with the guides' ports."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = uuid.uuid4().hex
        self._process.stdin.write(f"{{ {self._here(command)}\n}} </dev/null\necho {mark} $?\n")
        self._process.stdin.flush()
        output = ""
        while mark not in output:
            line = self._process.stdout.readline()
            assert line, f"bash ended: {output}"
            output += line
        printed, _, status = output.rpartition(mark)
        return int(status), self._as_shown(printed)

    def close(self) -> None:
        self._process.communicate("exit\n", timeout=30)

    def _here(self, command: str) -> str:
        moved = re.sub(r"(127\.0\.0\.1:)80(\d\d)", lambda port: f"{port[1]}{self._base_port + int(port[2])}", command)
        return re.sub(r"^dicelab up\b", f"dicelab up --base-port {self._base_port}", moved)

    def _as_shown(self, output: str) -> str:
        return re.sub(
            r"(127\.0\.0\.1:)(\d+)",
            lambda port: f"{port[1]}{8000 + int(port[2]) - self._base_port}",
            output,
        )


def environment() -> dict[str, str]:
    """Variables that make the guides' labs fast, and the same on every machine, including their failed rolls."""
    return {
        "ROLL_DELAY": "0.05",
        "RANDOM_SEED": "2366",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
    }
