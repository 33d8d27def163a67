"""The lab that an experiment is about: the one of the run dir, or any that answers at a URL."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError
from lab.supervise.rundir import RunDir
from otel import logs, traces

SERVICE = "traffic"  # what experiments call themselves in spans and log lines
# Spans leave this soon, in milliseconds, as those of a lab without engines do.
EXPORT_DELAY_MS = "300"


@dataclass(frozen=True)
class Running:
    """Where a lab is.

    Attributes:
        url: where its users go, the frontend or at stage 1 the roller.
        services: the URL of each service, by name; empty where only ``url`` is known.
        engines: the same of the engines.
    """

    url: str
    run_dir: RunDir
    services: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


def find(run_dir: Path, url: str | None = None) -> Running:
    """The lab at ``url``, or without one that of the run dir.

    Raises:
        LabError: when neither is there.
    """
    directory = RunDir(run_dir)
    state = directory.state() if directory.owner() is not None else None
    if state is None:
        if url is None:
            raise LabError(f"nothing runs in {directory.path}; start it with dicelab up, or say where by --url")
        return Running(url, directory)
    services = {entry["name"]: entry["url"] for entry in state["services"]}
    if url is not None and url not in services.values():
        return Running(url, directory)
    engines = {entry["name"]: entry["url"] for entry in state.get("engines", [])}
    return Running(url or services.get("frontend", services["dice-roller"]), directory, services, engines, state)


@dataclass(frozen=True)
class Face:
    """What the service at a URL offers, by its own API document."""

    name: str
    max_times: int  # of one batch; 0: it has no /roll-async
    sign_in: bool


async def face(session: aiohttp.ClientSession, url: str) -> Face:
    """Ask what there is at a URL.

    Raises:
        LabError: when it is no front of a lab.
    """
    try:
        async with session.get(f"{url}/openapi.json") as response:
            document = await response.json()
        paths = document["paths"]
        paths["/roll"]["get"]
        batch = paths.get("/roll-async", {}).get("get", {"parameters": []})
        times = next((entry for entry in batch["parameters"] if entry["name"] == "times"), None)
        async with session.get(f"{url}/sign-in") as response:
            sign_in = response.status == 200
        return Face(document["info"]["title"], times["schema"]["maximum"] if times else 0, sign_in)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        raise LabError(f"{url} does not answer: {error or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LabError(f"{url} is neither a frontend nor a dice-roller: its /openapi.json has no /roll") from None


@contextmanager
def telemetry(running: Running, environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """This process's own spans and log lines, sent and kept where the lab's services' are."""
    directory = running.run_dir
    directory.make()
    try:
        name, lock = _name_of_ours(directory)
        log = os.open(directory.logs / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise LabError(f"{directory.path}: {error.strerror}") from None
    endpoint = running.state.get("otlp_endpoint")
    if endpoint and not environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", EXPORT_DELAY_MS)
    try:
        file = traces.TraceFile(directory.traces / f"{name}.jsonl", 64 * 1024 * 1024, 3)
        stop_traces = traces.start(SERVICE, file=file, environ=environ)
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


def _name_of_ours(directory: RunDir) -> tuple[str, int]:
    """The name of our files: ``traffic``, or where another process writes those, one with our process id."""
    lock = os.open(directory.path / "traffic.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return SERVICE, lock
    except BlockingIOError:
        return f"{SERVICE}-{os.getpid()}", lock
