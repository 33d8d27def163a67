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

from lab.supervise import output
from lab.supervise.full_disk import Unwritable
from lab.supervise.output import Output, Pipe

LAST_LINES = 15
STOP_TIMEOUT = 30.0  # seconds; the frontend gives its page 8, its requests 8 and its last spans 5

# Called with the service's name and its lines, each without the newline.
OnLines = Callable[[str, list[bytes]], None]


class Process:
    """A running process, whose output is appended to two files.

    While the disk is full, lines for stdout are kept, because a service counts those that it drops. Lines for stderr,
    and for a file that takes both, are lost and counted: most programs would wait for their log and do nothing else.
    """

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        outputs: Sequence[tuple[Pipe, Path]],
        on_lines: OnLines,
        unwritable: Unwritable,
    ) -> None:
        self.name = name
        self._process = process
        self._on_lines = on_lines
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)
        (stdout, lines), (stderr, log) = outputs
        self._outputs = [
            Output(stdout, lines, lines != log, unwritable, self._report),
            Output(stderr, log, False, unwritable, self._report),
        ]

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        environ: Mapping[str, str],
        stdout: Path,
        stderr: Path,
        on_lines: OnLines,
        unwritable: Unwritable | None = None,
    ) -> Process:
        """Start a process.

        Args:
            stdout, stderr: the files that its output is appended to.
            unwritable: takes what goes wrong with them; without it ``on_lines`` gets the messages.
        """
        unwritable = unwritable or Unwritable(lambda text: on_lines(name, [text.encode()]))
        pipes: list[Pipe] = []
        try:
            for _ in range(2):
                pipes.append(await Pipe.opened())
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
        return cls(name, process, list(zip(pipes, (stdout, stderr), strict=True)), on_lines, unwritable)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for the end of the process and of its output; returns its exit status, negative for a signal."""
        status = await self._process.wait()
        await asyncio.gather(*(one.finish() for one in self._outputs))
        return status

    def last_lines(self) -> list[str]:
        return [line.decode(errors="replace") for line in self._last]

    async def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Send SIGTERM, and SIGKILL to a process that has not ended after ``timeout`` seconds."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        # A service waits some seconds for its last lines to be read: on a full disk they are read, counted and lost.
        giving_up = asyncio.get_running_loop().call_later(output.OUTPUT_TIMEOUT, self._give_up)
        try:
            await asyncio.wait_for(self._process.wait(), timeout)
        except asyncio.TimeoutError:
            self.kill()
        finally:
            giving_up.cancel()
        await self.ended()

    def _give_up(self) -> None:
        for one in self._outputs:
            one.give_up()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _report(self, lines: list[bytes]) -> None:
        self._last.extend(lines)
        self._on_lines(self.name, lines)


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
