"""The spans and log lines of a command itself, kept with those of the lab that it uses."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from lab import LabError
from lab.client import Lab
from lab.supervise.rundir import RunDir
from otel import logs, traces

SERVICE = "traffic"  # the service name in those spans and log lines
EXPORT_DELAY_MS = "300"  # as for the services of a lab without engines


@contextmanager
def recorded(lab: Lab, environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Send the spans of this process where the lab's services send theirs, and keep its log lines in the run dir.

    Raises:
        LabError: when the run dir cannot be written, or an ``OTEL_*`` variable is not valid.
    """
    directory = lab.directory
    directory.make()
    try:
        name, lock = _file_name(directory)
        log = os.open(directory.logs / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise LabError(f"{directory.path}: {error.strerror}") from None
    endpoint = lab.state.get("otlp_endpoint")
    if endpoint and not environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", EXPORT_DELAY_MS)
    try:
        file = traces.TraceFile(directory.traces / f"{name}.jsonl", 64 * 1024 * 1024, 3)
        stop_traces = traces.start(SERVICE, file=file)
    except (traces.TracingError, OSError) as error:
        raise LabError(str(error)) from None
    stop_logs = logs.start(SERVICE, descriptor=log)
    try:
        yield
    finally:
        stop_traces()
        stop_logs()
        os.close(log)
        os.close(lock)


def _file_name(directory: RunDir) -> tuple[str, int]:
    """``traffic``, or with our process id appended if another process holds the lock; and the lock's descriptor."""
    lock = os.open(directory.path / "traffic.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return SERVICE, lock
    except BlockingIOError:
        return f"{SERVICE}-{os.getpid()}", lock
