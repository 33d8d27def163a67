"""The facts of the images that the compose file names (``compose/images.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from lab.paths import COMPOSE


@dataclass(frozen=True)
class Owned:
    """Owner and mode of a directory."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o755

    def allows(self, uid: int, gid: int, access: int) -> bool:
        """Whether a process without CAP_DAC_OVERRIDE has this access.

        Args:
            access: bits of 4 (read), 2 (write) and 1 (search).
        """
        shift = 6 if uid == self.uid else 3 if gid == self.gid else 0
        return self.mode >> shift & access == access


@dataclass(frozen=True)
class Flags:
    """The flags of a program.

    Attributes:
        complete: whether the list has all flags of the program.
    """

    names: frozenset[str]
    complete: bool


@dataclass(frozen=True)
class Image:
    """The facts of an image; the fields are those of ``images.yaml``, explained there."""

    name: str
    user: tuple[int, int]
    users: Mapping[str, tuple[int, int]]
    env: Mapping[str, str]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    volumes: tuple[str, ...]
    paths: Mapping[str, Owned]
    writes: tuple[str, ...]
    programs: tuple[str, ...]
    flags: Mapping[str, Flags]
    sources: tuple[Mapping[str, Any], ...] = field(repr=False)
    stop_signal: str = "SIGTERM"
    base: str | None = None

    @property
    def version(self) -> str:
        """The version in the tag, such as ``3.14.0``."""
        return self.name.partition(":")[2].removeprefix("v").partition("-")[0]

    def find(self, program: str) -> str | None:
        """The path of a program on the image's PATH, or ``None``."""
        if program.startswith("/"):
            return program if program in self.programs else None
        places = (f"{directory}/{program}" for directory in self.env["PATH"].split(":"))
        return next((path for path in places if path in self.programs), None)

    def owned(self, path: str) -> Owned:
        """Owner and mode of a directory of the image; root:root 0755 by default."""
        return self.paths.get(path, Owned())


def identity(text: str) -> tuple[int, int]:
    """The numbers of ``uid:gid``."""
    uid, _, gid = text.partition(":")
    return int(uid), int(gid)


@cache
def load() -> dict[str, Image]:
    """Every image by its name in the compose file."""
    document: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "images.yaml").read_text())
    return {name: _image(name, entry) for name, entry in document.items()}


def _image(name: str, entry: Mapping[str, Any]) -> Image:
    return Image(
        name=name,
        user=identity(entry["user"]),
        users={user: identity(text) for user, text in entry.get("users", {}).items()},
        env=entry["env"],
        entrypoint=tuple(entry["entrypoint"]),
        cmd=tuple(entry["cmd"]),
        workdir=entry["workdir"],
        volumes=tuple(entry["volumes"]),
        paths={path: Owned(*identity(one["owner"]), int(one["mode"], 8)) for path, one in entry["paths"].items()},
        writes=tuple(entry["writes"]),
        programs=tuple(entry["programs"]),
        flags={
            program: Flags(frozenset(_spellings(one["names"])), one.get("complete", True))
            for program, one in entry["flags"].items()
        },
        sources=tuple(entry["sources"]),
        stop_signal=entry.get("stop_signal", "SIGTERM"),
        base=entry.get("base"),
    )


def _spellings(names: list[str]) -> list[str]:
    """The flags, spelt out: ``--[no-]x`` stands for ``--x`` and ``--no-x``."""
    return [spelling for name in names for spelling in {name.replace("[no-]", ""), name.replace("[no-]", "no-")}]
