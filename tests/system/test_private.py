"""Other users of the machine can access neither the database nor the run dir's files."""

from __future__ import annotations

import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from lab.supervise.postgres import EmbeddedPostgres
from tests.support import labs
from tests.support.labs import Lab, dicelab, free_base_port, get, wait_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


def finished(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, output.decode()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def query(url: str, text: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(text)
        return list(cursor.fetchall())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("run") / "postgres")
    server.start()
    yield server
    server.close()
    assert server.socket_directory is not None
    assert not server.socket_directory.exists()


@pytest.fixture
def data(server: EmbeddedPostgres) -> Path:
    """The data directory; as root, the link to it."""
    return server.log.parent


def test_the_database_listens_on_a_private_socket_with_peer_authentication(server: EmbeddedPostgres) -> None:
    directory = server.socket_directory
    assert directory is not None
    assert mode(directory) == 0o700
    assert mode(directory / ".s.PGSQL.5432") == 0o700
    assert query(server.url, "SHOW listen_addresses") == [("",)]
    rules = query(server.url, "SELECT type, auth_method, options FROM pg_hba_file_rules")
    assert rules == [("local", "peer", ["map=lab"])]


def test_data_of_an_earlier_version_gets_peer_authentication(server: EmbeddedPostgres, data: Path) -> None:
    server.stop()
    (data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
    server.start()
    assert query(server.url, "SELECT type, auth_method FROM pg_hba_file_rules") == [("local", "peer")]
    with pytest.raises(psycopg2.OperationalError, match=r"no pg_hba\.conf entry"):
        psycopg2.connect(host=str(server.socket_directory), user="dice", dbname="dice")


def refusal(url: str, user: str) -> str:
    """The error that a system user gets on connecting; in a fork, because that user cannot read our modules."""
    account = pwd.getpwnam(user)
    outlet, entrance = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "let in"
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            psycopg2.connect(url)
        except BaseException as error:
            said = str(error)
        finally:
            os.write(entrance, said.encode())
            os._exit(0)
    os.close(entrance)
    with open(outlet) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


@as_root
def test_another_user_cannot_connect_to_the_socket(server: EmbeddedPostgres) -> None:
    assert "Permission denied" in refusal(server.url, "nobody")
    # The server's own user can enter the socket's directory, but fails peer authentication.
    assert "Peer authentication failed" in refusal(server.url, "embedded_postgres")


@as_root
def test_private_directories_keep_their_mode(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "run").mkdir(parents=True)
    for path in (closed, closed / "run"):
        path.chmod(0o700)
    above = [*(closed / "run").parents, *Path(sys.prefix).parents]
    before = {path: mode(path) for path in above}
    server = EmbeddedPostgres(closed / "run" / "postgres")
    try:
        server.start()
        assert query(server.url, "SELECT 1") == [(1,)]
    finally:
        server.close()
    assert {path: mode(path) for path in above} == before
    assert mode(closed / "run") == 0o700


@as_root
def test_root_data_in_the_run_dir_is_moved_out_intact(server: EmbeddedPostgres, data: Path) -> None:
    with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    target = data.readlink()
    data.unlink()
    target.rename(data)  # as in an earlier version
    server.start()
    assert data.is_symlink()
    assert query(server.url, "SELECT answer FROM kept") == [(42,)]


@as_root
def test_the_next_start_removes_data_of_deleted_run_dirs(tmp_path: Path) -> None:
    servers = []
    for name in ("gone", "next"):
        (tmp_path / name).mkdir()
        servers.append(EmbeddedPostgres(tmp_path / name / "postgres"))
    try:
        servers[0].start()
        data = (tmp_path / "gone" / "postgres").readlink()
        servers[0].close()
        assert data.exists()
        (tmp_path / "gone" / "postgres").unlink()
        servers[1].start()
        assert not data.exists()
    finally:
        for server in servers:
            server.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of stage 5 that was started under the usual umask."""
    before = os.umask(0o022)
    try:
        lab = labs.start(tmp_path_factory.mktemp("private") / "run", 5)
    finally:
        os.umask(before)
    yield lab
    lab.stop()


def test_only_the_owner_can_read_the_run_dir(lab: Lab) -> None:
    assert get(f"{lab.front}/roll?die=fair").status == 200
    wait_for(lab.spans)
    for path in (lab.run_dir, *lab.run_dir.rglob("*")):
        if not path.is_symlink():
            assert mode(path) & 0o077 == 0, path


def test_an_open_run_dir_is_made_private_but_no_other_directory(tmp_path: Path) -> None:
    port = ("--base-port", str(free_base_port()))
    old = tmp_path / "old"
    (old / "logs").mkdir(parents=True)
    (old / "lock").write_text("")
    old.chmod(0o755)
    try:
        assert finished(dicelab("up", "--stage", "1", "--detach", *port, "--run-dir", old))[0] == 0
        assert mode(old) == 0o700
    finally:
        assert finished(dicelab("down", "--run-dir", old))[0] == 0

    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("")
    home.chmod(0o755)
    code, output = finished(dicelab("up", "--stage", "1", "--detach", *port, "--run-dir", home))
    assert code == 1
    assert "holds other files" in output
    assert mode(home) == 0o755


@as_root
def test_a_run_dir_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", pwd.getpwnam("nobody").pw_uid, -1)
    code, output = finished(dicelab("up", "--stage", "1", "--run-dir", tmp_path / "run"))
    assert code == 1
    assert "belongs to another user" in output


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that a process itself listens on."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_proxy_of_a_slow_database_has_a_private_socket(lab: Lab) -> None:
    direct = lab.pid("die-service")
    with socket.socket(socket.AF_UNIX) as faults:
        faults.connect(lab.state["faults"])
        faults.sendall(b'{"slow": "postgres", "seconds": 0}\n')
        assert json.loads(faults.makefile().readline()) == {"done": True}
        assert listening_ports(lab.process.pid) == set()

        def pid() -> int | None:
            services = json.loads((lab.run_dir / "state.json").read_text())["services"]
            now: int = next(entry["pid"] for entry in services if entry["name"] == "die-service")
            return now if now != direct else None

        environ = Path(f"/proc/{wait_for(pid)}/environ").read_bytes().split(b"\0")
        (url,) = (entry.partition(b"=")[2].decode() for entry in environ if entry.startswith(b"DATABASE_URL="))
        assert url != lab.state["postgres"]["url"]
        directory = Path(url.partition("?host=")[2])
        assert mode(directory) == 0o700
        assert query(url, "SELECT 1") == [(1,)]  # the user who runs the lab may connect
    wait_for(lambda: not directory.exists())
