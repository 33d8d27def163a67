"""The command: what it starts and prints, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.support import labs
from tests.support.labs import Lab, dicelab, free_base_port, get, processes_of, wait_for


def finished(process: subprocess.Popen[bytes], timeout: float = 60) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output.decode()


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def labs_to_stop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[signal.Signals, Lab]]:
    """A lab for each signal, all started at the same time."""
    directory = tmp_path_factory.mktemp("stop")
    with ThreadPoolExecutor() as pool:
        starting = {number: pool.submit(labs.start, directory / number.name, 5) for number in STOP_SIGNALS}
    yield {number: one.result() for number, one in starting.items()}
    for one in starting.values():
        one.result().stop()


@pytest.mark.parametrize("stop", STOP_SIGNALS)
def test_stopping_the_command_stops_every_process(
    labs_to_stop: dict[signal.Signals, Lab], stop: signal.Signals
) -> None:
    lab = labs_to_stop[stop]
    run_dir = lab.run_dir
    assert len(processes_of(run_dir)) >= 5  # the command, three services, PostgreSQL and its workers
    assert get(f"{lab.front}/roll?die=fair").status == 200
    assert lab.stop(stop) == 0
    assert processes_of(run_dir) == []
    assert not (run_dir / "state.json").exists()
    for service in lab.services:
        assert all(json.loads(line) for line in lab.log_lines(service))


@pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies are Linux's")
def test_services_and_database_run_with_batch_scheduling(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(5)
    threads = [
        int(thread.name)
        for process in (lab.state["postgres"], *lab.state["services"])
        for thread in Path(f"/proc/{process['pid']}/task").iterdir()
    ]
    assert len(threads) > 4  # including those that write lines and spans
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


def test_detach_status_and_down(tmp_path: Path) -> None:
    run_dir, base = tmp_path / "run", str(free_base_port())
    code, output = finished(
        dicelab("up", "--stage", "2", "--detach", "--base-port", base, "--run-dir", run_dir, "--roll-delay", "0")
    )
    try:
        assert code == 0, output
        assert f"http://127.0.0.1:{base}" in output
        state = json.loads((run_dir / "state.json").read_text())
        assert state["stage"] == 2
        assert [service["name"] for service in state["services"]] == ["dice-roller", "frontend"]
        assert "postgres" not in state
        assert get(f"http://127.0.0.1:{int(base) + 2}/roll?die=fair").status == 200
        code, output = finished(dicelab("status", "--run-dir", run_dir))
        assert code == 0
        assert output.count("ready") == 2
        assert "stage 2, standard telemetry" in output
        code, output = finished(dicelab("status", "--json", "--run-dir", run_dir))
        assert code == 0
        document = json.loads(output)
        assert (document["running"], document["stage"], document["telemetry"]) == (True, 2, "standard")
        assert [(part["name"], part["ready"]) for part in document["parts"]] == [
            ("dice-roller", True),
            ("frontend", True),
        ]
        os.kill(state["services"][0]["pid"], signal.SIGKILL)
        expected = ("dice-roller ended with signal SIGKILL", "Dice roller started")
        wait_for(lambda: all(text in (run_dir / "dicelab.log").read_text() for text in expected))
        wait_for(lambda: "dice-roller is started again, as process" in (run_dir / "dicelab.log").read_text())
        wait_for(lambda: finished(dicelab("status", "--run-dir", run_dir))[0] == 0)
        code, output = finished(dicelab("status", "--run-dir", run_dir))
        assert "started again 1x" in output
        again = json.loads((run_dir / "state.json").read_text())["services"][0]
        assert again["pid"] != state["services"][0]["pid"]
        os.kill(again["pid"], signal.SIGSTOP)
        try:
            code, output = finished(dicelab("status", "--run-dir", run_dir))
        finally:
            os.kill(again["pid"], signal.SIGCONT)
        assert code == 1
        assert "does not answer" in output
    finally:
        code, output = finished(dicelab("down", "--run-dir", run_dir))
    assert code == 0
    assert processes_of(run_dir) == []
    assert finished(dicelab("status", "--run-dir", run_dir))[0] == 3
    code, output = finished(dicelab("status", "--json", "--run-dir", run_dir))
    assert code == 3
    assert json.loads(output) == {"running": False, "run_dir": str(run_dir)}
    assert finished(dicelab("down", "--run-dir", run_dir))[0] == 0


def one_line(code: int, output: str) -> str:
    assert code == 1
    (line,) = output.splitlines()
    assert line.startswith("dicelab: ")
    return line


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_obstacles_are_reported_before_anything_starts(tmp_path: Path, detach: tuple[str, ...]) -> None:
    base = free_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + 2))
        taken.listen()
        line = one_line(*finished(dicelab("up", "--base-port", str(base), "--run-dir", tmp_path / "run", *detach)))
    assert f"port {base + 2} is already in use; choose another with --base-port" in line
    assert "frontend" in line
    assert not (tmp_path / "run" / "postgres").exists()
    (tmp_path / "file").write_text("")
    assert "file" in one_line(*finished(dicelab("up", "--run-dir", tmp_path / "file" / "run", *detach)))


def test_a_run_dir_in_use_is_refused(stage_lab: Callable[[int], Lab]) -> None:
    lab = stage_lab(1)
    line = one_line(*finished(dicelab("up", "--stage", "1", "--run-dir", lab.run_dir)))
    assert str(lab.process.pid) in line
    assert get(f"{lab.front}/roll?die=fair").status == 200
    assert (lab.run_dir / "state.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--roll-delay", "-1"], ["--base-port", "99999"], ["--stage", "x"], ["--stage", "7"], ["--det"], ["--engine"]],
)
def test_wrong_usage_is_reported(tmp_path: Path, arguments: list[str]) -> None:
    code, output = finished(dicelab("up", *arguments, "--run-dir", tmp_path / "run"))
    assert code == 2
    assert arguments[0] in output


def test_an_invalid_setting_is_reported_with_the_services_message(tmp_path: Path) -> None:
    started = time.monotonic()
    process = dicelab(
        "up", "--stage", "1", "--run-dir", tmp_path / "run", "--base-port", str(free_base_port()), MAX_ROLLS="no"
    )
    code, output = finished(process)
    assert code == 1
    assert "MAX_ROLLS='no': must be a whole number" in output
    assert "dice-roller ended with status 2" in output
    assert time.monotonic() - started < 45
    assert processes_of(tmp_path / "run") == []


def test_services_do_not_outlive_a_killed_supervisor(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(1)
    lab.process.kill()
    lab.process.wait()
    wait_for(lambda: not processes_of(lab.run_dir))
    again = dicelab("up", "--stage", "1", "--detach", "--run-dir", lab.run_dir, "--base-port", str(free_base_port()))
    assert finished(again)[0] == 0
    assert finished(dicelab("down", "--run-dir", lab.run_dir))[0] == 0


def alone(run_dir: Path) -> bool:
    """Whether no process uses a run dir."""
    return not processes_of(run_dir)


def test_temporary_files_do_not_outlive_a_killed_lab(own_lab: Callable[..., Lab]) -> None:
    labs_of = {command: own_lab(2) for command in ("up", "down")}
    for command, lab in labs_of.items():
        directories = [Path(directory) for directory in lab.state["directories"]]
        assert [path.name for directory in directories for path in directory.glob("dicelab-page-*/*")] == ["panel.sock"]
        assert Path(lab.state["faults"]).parent in directories
        for pid in (lab.pid("frontend"), lab.process.pid):
            os.kill(pid, signal.SIGKILL)
        lab.process.wait()
        assert all(directory.exists() for directory in directories)
        wait_for(partial(alone, lab.run_dir))
        if command == "up":
            base = str(free_base_port())
            up = dicelab("up", "--stage", "1", "--detach", "--run-dir", lab.run_dir, "--base-port", base)
            assert finished(up)[0] == 0
            assert not any(directory.exists() for directory in directories)
        assert finished(dicelab("down", "--run-dir", lab.run_dir))[0] == 0
        assert not any(directory.exists() for directory in directories)
        assert not (lab.run_dir / "state.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupting_a_detached_start_stops_the_lab(tmp_path: Path, number: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    process = dicelab("up", "--stage", "2", "--detach", "--run-dir", run_dir, "--base-port", str(free_base_port()))
    wait_for((run_dir / "logs" / "dice-roller.jsonl").exists)  # it has started, and the frontend takes longer
    process.send_signal(number)
    try:
        code, output = finished(process)
        assert code == 128 + number
        assert output == "dicelab: interrupted; everything that had started has been stopped\n"
        assert processes_of(run_dir) == []
    finally:
        finished(dicelab("down", "--run-dir", run_dir))


def test_a_detached_start_on_a_full_disk_says_why_it_failed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    (run_dir / "state.tmp").symlink_to("/dev/full")
    (run_dir / "dicelab.log").write_bytes(b"x" * 100_000)
    process = dicelab("up", "--stage", "1", "--detach", "--run-dir", run_dir, "--base-port", str(free_base_port()))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # nothing fits into the log
    assert one_line(*finished(process)) == f"dicelab: no space left on device in {run_dir}"
    assert not os.path.lexists(run_dir / "state.tmp")
    assert processes_of(run_dir) == []


def test_down_stops_a_database_left_behind(own_lab: Callable[..., Lab]) -> None:
    lab = own_lab(5)
    lab.process.kill()
    lab.process.wait()
    postgres = lab.state["postgres"]["pid"]
    assert Path(f"/proc/{postgres}").exists()
    code, output = finished(dicelab("down", "--run-dir", lab.run_dir))
    assert code == 0
    assert "database" in output
    wait_for(lambda: not running(postgres))


def test_run_dirs_may_have_any_name(tmp_path: Path) -> None:
    run_dir, base = tmp_path / ("with a space & more é" + "x" * 120), free_base_port()
    up = dicelab("up", "--stage", "5", "--detach", "--base-port", str(base), "--run-dir", run_dir, "--roll-delay", "0")
    try:
        assert finished(up)[0] == 0
        assert get(f"http://127.0.0.1:{base + 2}/roll?die=fair").status == 200
    finally:
        assert finished(dicelab("down", "--run-dir", run_dir))[0] == 0
    assert processes_of(run_dir) == []


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("moment", ["initdb", "postmaster.pid"])
def test_interrupting_a_starting_database_stops_it(tmp_path: Path, moment: str) -> None:
    run_dir = tmp_path / "run"
    process = dicelab("up", "--no-tail", "--run-dir", run_dir, "--base-port", str(free_base_port()))
    wait_for((run_dir / "postgres" / ("PG_VERSION" if moment == "initdb" else moment)).exists)
    process.send_signal(signal.SIGINT)
    assert finished(process)[0] == 0
    assert processes_of(run_dir) == []


def test_an_external_database_is_used(own_lab: Callable[..., Lab], stage_lab: Callable[[int], Lab]) -> None:
    url = stage_lab(5).state["postgres"]["url"]
    lab = own_lab(5, DATABASE_URL=url)
    assert lab.state["postgres"] == {"url": url, "pid": None}
    assert not (lab.run_dir / "postgres").exists()
    assert get(f"{lab.front}/roll?die=fair").status == 200
    assert lab.stop() == 0
    assert get(f"{stage_lab(5).front}/roll?die=fair").status == 200  # the lab must not stop it
