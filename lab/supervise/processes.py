"""Child processes: start one, write its output to files, stop it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from lab.supervise.rundir import RotatingFile

LAST_LINES = 15
STOP_TIMEOUT = 30.0  # seconds; the frontend gives its page 8, its requests 8 and its last spans 5
# Seconds to wait for the last output of a process that has ended: a child of it may keep the pipe open.
OUTPUT_TIMEOUT = 2.0
CHUNK = 256 * 1024

# Called with the service's name and its lines, each without the newline.
OnLines = Callable[[str, list[bytes]], None]


class Process:
    """A running process. Its output is appended unchanged to two files, each of which is created by its first line."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, outputs: Sequence[tuple[_Pipe, Path]], on_lines: OnLines
    ) -> None:
        self.name = name
        self._process = process
        self._on_lines = on_lines
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)
        self._pumps = [asyncio.create_task(self._pump(pipe, path)) for pipe, path in outputs]

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        stdout: Path,
        stderr: Path,
        on_lines: OnLines,
    ) -> Process:
        pipes: list[_Pipe] = []
        try:
            for _ in range(2):
                pipes.append(await _Pipe.opened())
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipes[0].write_end,
                stderr=pipes[1].write_end,
                # Only the supervisor gets Ctrl-C; it then stops the processes in order.
                start_new_session=True,
                preexec_fn=partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
            )
        except BaseException:
            for pipe in pipes:
                pipe.close()
            raise
        finally:
            for pipe in pipes:
                os.close(pipe.write_end)
        return cls(name, process, list(zip(pipes, (stdout, stderr), strict=True)), on_lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for the end of the process and of its output; returns its exit status, negative for a signal."""
        status = await self._process.wait()
        _, unfinished = await asyncio.wait(self._pumps, timeout=OUTPUT_TIMEOUT)
        for pump in unfinished:
            pump.cancel()
        for outcome in await asyncio.gather(*self._pumps, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        return status

    def last_lines(self) -> list[str]:
        return [line.decode(errors="replace") for line in self._last]

    async def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Send SIGTERM, and SIGKILL to a process that has not ended after ``timeout`` seconds."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), timeout)
        except asyncio.TimeoutError:
            self.kill()
        await self.ended()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _pump(self, pipe: _Pipe, path: Path) -> None:
        file: RotatingFile | None = None
        rest = b""
        try:
            while chunk := await pipe.reader.read(CHUNK):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if not newline:
                    continue
                file = self._write(file, path, whole + newline)
                self._report(whole.split(b"\n"))
        finally:
            if rest:  # the output ended in the middle of a line
                file = self._write(file, path, rest)
                self._report([rest])
            if file is not None:
                file.close()
            pipe.close()

    def _write(self, file: RotatingFile | None, path: Path, lines: bytes) -> RotatingFile | None:
        """Write to the file. On an error, such as a full disk, report it and go on without these lines."""
        try:
            file = file or RotatingFile.shared(path)
            file.write(lines)
        except OSError as error:
            self._report([f"{path}: {error.strerror}; lines are lost".encode()])
        return file

    def _report(self, lines: list[bytes]) -> None:
        self._last.extend(lines)
        self._on_lines(self.name, lines)


class _Pipe:
    """A pipe from a child process. asyncio's own pipes would keep waiting for any grandchild that holds them open.

    Attributes:
        write_end: the descriptor that the child inherits; the caller closes it.
        reader: reads the other end.
    """

    def __init__(self, write_end: int, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self.write_end = write_end
        self.reader = reader
        self._transport = transport

    @classmethod
    async def opened(cls) -> _Pipe:
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader(limit=CHUNK, loop=loop)
        file = os.fdopen(read_end, "rb", buffering=0)
        try:
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), file)
        except BaseException:
            os.close(write_end)
            file.close()
            raise
        return cls(write_end, reader, transport)

    def close(self) -> None:
        self._transport.close()


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def schedule_batch() -> None:
    """Set SCHED_BATCH for this process and its children: a wake-up does not preempt the running process.

    Every roll wakes the services and the database several times. With fewer CPUs than processes, each preemption costs
    a context switch and cold caches; with a thousand clients they nearly treble the response time. Call this before any
    thread is started.
    """
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or forbidden in a container
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _die_with(supervisor: int) -> None:
    """Make the kernel send SIGTERM when the supervisor dies, however it dies."""
    PR_SET_PDEATHSIG = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:  # it died before the call
        os._exit(1)
