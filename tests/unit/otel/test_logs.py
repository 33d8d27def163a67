"""JSON lines: each log record becomes one complete JSON object on one line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.labs import wait_for

# The modules of the two packages that limit the waiting lines, and the objects that count the dropped ones.
LIMITED = {"standard": "otel.standard.stdout", "fast": "otel.fast.logs"}
COUNTED = {"standard": "otel.standard.stdout._handlers", "fast": "otel.fast.logs._writers"}


@pytest.fixture(scope="module", params=list(LIMITED))
def telemetry(request: pytest.FixtureRequest) -> str:
    """The package under test."""
    return str(request.param)


@pytest.fixture(scope="module")
def logs(telemetry: str) -> Any:
    return import_module(f"otel.{telemetry}.logs")


class Captured:
    def __init__(self) -> None:
        self._read, self.write = os.pipe()

    def lines(self) -> list[dict[str, Any]]:
        os.close(self.write)
        return self.read()

    def read(self) -> list[dict[str, Any]]:
        """Read to the end, which comes once ``write`` is closed."""
        with open(self._read, "rb") as file:
            return [json.loads(line) for line in file.read().splitlines()]


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hook = root.handlers[:], root.level, sys.excepthook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook = hook
    logging.captureWarnings(False)


@pytest.mark.usefixtures("root_logger")
def test_event_fields_follow_the_fixed_fields(logs: Any) -> None:
    out = Captured()
    stop = logs.start("dice-roller", descriptor=out.write)
    logging.getLogger("any").info("Roll completed", extra={"fields": {"roll_value": 5, "die_found": True}})
    stop()
    (line,) = out.lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "INFO",
        "message": "Roll completed",
        "logger": "dice-roller",
        "roll_value": 5,
        "die_found": True,
    }


def as_json(text: str) -> Any:
    """A text after its way through JSON, in which two surrogates that form a pair become one character."""
    return json.loads(json.dumps(text))


@pytest.mark.usefixtures("root_logger")
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    message=st.text(st.characters(blacklist_categories=())),
    value=st.one_of(st.text(st.characters(blacklist_categories=())), st.integers(), st.floats(), st.binary()),
)
def test_any_message_and_field_can_be_logged(logs: Any, message: str, value: object) -> None:
    out = Captured()
    stop = logs.start("frontend", descriptor=out.write)
    logging.getLogger("any").warning("%s", message, extra={"fields": {"value": value}})
    stop()
    (line,) = out.lines()
    assert line["message"] == as_json(message)
    assert "value" in line


class Wordless(Exception):
    def __str__(self) -> str:
        raise self

    __repr__ = __str__


@pytest.mark.usefixtures("root_logger")
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    message=st.text(st.characters(blacklist_categories=())),
    value=st.one_of(st.text(st.characters(blacklist_categories=())), st.integers(), st.floats(), st.binary()),
)
def test_any_message_and_field_can_be_an_event(logs: Any, message: str, value: object) -> None:
    out = Captured()
    stop = logs.start("frontend", descriptor=out.write)
    line = logs.events("frontend")
    line(logging.INFO, "odd", value=Wordless())
    line(logging.WARNING, message, value=value)
    stop()
    odd, plain = out.lines()
    assert "unprintable log line 'odd'" in odd["message"]
    assert (plain["level"], plain["message"], plain["logger"]) == ("WARNING", as_json(message), "frontend")
    assert "value" in plain


def test_errors_after_stop_go_to_stderr(telemetry: str) -> None:
    program = """if True:
        import logging
        from otel import logs
        logs.start('traffic')()
        logging.getLogger('asyncio').error('never retrieved')
        raise RuntimeError('too late')
    """
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TELEMETRY": telemetry},
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "never retrieved"
    assert result.stderr.splitlines()[-1] == "RuntimeError: too late"


@pytest.mark.usefixtures("root_logger")
def test_library_lines_name_the_library_and_keep_the_traceback(logs: Any) -> None:
    out = Captured()
    stop = logs.start("frontend", descriptor=out.write)
    try:
        raise KeyError("missing")
    except KeyError:
        logging.getLogger("some.package").exception("It failed")
    logging.getLogger("some.package").info("broken %d", "no number")
    stop()
    failed, broken = out.lines()
    assert failed["source"] == "some.package"
    assert failed["exception"].splitlines()[-1] == "KeyError: 'missing'"
    assert "unprintable log line" in broken["message"]


@pytest.mark.usefixtures("root_logger")
def test_a_stalled_reader_causes_drops_but_no_blocking(
    telemetry: str, logs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{LIMITED[telemetry]}.MAX_WAITING_LINES", 2000)
    monkeypatch.setattr(COUNTED[telemetry], [])  # other tests expect none to be dropped
    out = Captured()
    stop = logs.start("frontend", descriptor=out.write)
    written = 30_000  # far more than a pipe and the waiting lines hold
    for number in range(written):
        logging.getLogger("any").info("x" * 100, extra={"fields": {"number": number}})
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"],
        stdin=out._read,
        stdout=subprocess.PIPE,
    )
    stop()
    os.close(out.write)
    content, _ = reader.communicate()
    lines = [json.loads(line) for line in content.splitlines()]
    kept = [line for line in lines if "number" in line]
    lost = sum(int(line["message"].split()[0]) for line in lines if "lines dropped" in line["message"])
    assert 0 < len(kept) < written
    assert len(kept) + lost == written


@pytest.mark.usefixtures("root_logger")
def test_lines_of_each_thread_are_written_once_and_in_order(logs: Any) -> None:
    out = Captured()
    written = 5000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor() as pool:
            read = pool.submit(out.read)
            stop = logs.start("frontend", descriptor=out.write)
            line = logs.events("frontend")

            def write(thread: int) -> None:
                for number in range(written):
                    line(logging.INFO, "x", thread=thread, number=number)

            try:
                list(pool.map(write, range(3)))
            finally:
                stop()
                os.close(out.write)
            lines = read.result()
    finally:
        sys.setswitchinterval(interval)
    for thread in range(3):
        assert [line["number"] for line in lines if line["thread"] == thread] == list(range(written))


def test_uncaught_exceptions_and_warnings_are_logged(telemetry: str) -> None:
    program = textwrap.dedent(
        """
        import threading, warnings
        from otel import logs
        stop = logs.start("dice-roller")
        warnings.warn("beware")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start(); thread.join()
        import atexit; atexit.register(stop)
        raise RuntimeError("the end")
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TELEMETRY": telemetry},
        check=False,
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert not result.stderr
    assert "beware" in lines[0]["message"]
    assert "ZeroDivisionError" in lines[1]["exception"]
    assert lines[2]["level"] == "CRITICAL"
    assert "RuntimeError: the end" in lines[2]["exception"]


@pytest.mark.usefixtures("root_logger")
def test_lines_wait_while_the_disk_is_full(logs: Any, tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)  # each write fails with ENOSPC
    stop = logs.start("frontend", descriptor=descriptor)
    line = logs.events("frontend")
    try:
        line(logging.INFO, "on a full disk")
        time.sleep(0.1)  # the first attempt fails
        file = os.open(tmp_path / "lines", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
        line(logging.INFO, "afterwards")
        wait_for(lambda: (tmp_path / "lines").read_text().count("\n") == 2)
    finally:
        stop()
        os.close(descriptor)
    messages = [json.loads(text)["message"] for text in (tmp_path / "lines").read_text().splitlines()]
    assert messages == ["on a full disk", "afterwards"]


@pytest.mark.usefixtures("root_logger")
def test_a_full_disk_does_not_delay_the_end(logs: Any) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stop = logs.start("frontend", descriptor=descriptor)
    logs.events("frontend")(logging.INFO, "lost")
    time.sleep(0.1)
    began = time.monotonic()
    stop()
    os.close(descriptor)
    assert time.monotonic() - began < 4  # without an end of the attempts, stop() waits five seconds
