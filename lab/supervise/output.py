"""The output of a child process: its lines are appended to a file, also when that cannot be written for a while."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from lab.supervise.full_disk import Unwritable
from lab.supervise.rundir import RotatingFile
from lab.waiting import sleep

CHUNK = 256 * 1024
# Seconds to wait for the last output of a process that has ended, because a child of it may keep the pipe open; and for
# a file that cannot be written while its process is being stopped.
OUTPUT_TIMEOUT = 2.0
RETRY_INTERVAL = 1.0  # seconds between attempts to write a file


class Pipe:
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
    async def opened(cls) -> Pipe:
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


class Output:
    """Appends the lines of a pipe to a file, which the first line creates.

    Args:
        keep: whether lines are kept while the file cannot be written. The pipe then fills up, and the process has to
            wait or to count what it drops. Without it such lines are lost, and counted here.
        on_lines: called with lines that were read, each without the newline.
    """

    def __init__(
        self, pipe: Pipe, path: Path, keep: bool, unwritable: Unwritable, on_lines: Callable[[list[bytes]], None]
    ) -> None:
        self._pipe = pipe
        self._path = path
        self._keep = keep
        self._unwritable = unwritable
        self._on_lines = on_lines
        self._file: RotatingFile | None = None
        self._waiting = False  # for a file that cannot be written
        self._given_up = asyncio.Event()
        self._copying = asyncio.create_task(self._copy())

    def give_up(self) -> None:
        """From now on lines are lost if the file cannot be written."""
        self._given_up.set()

    async def finish(self) -> None:
        """Wait for the rest of the output of a process that has ended, but not for long."""
        await asyncio.wait([self._copying], timeout=OUTPUT_TIMEOUT)
        if self._waiting:
            self.give_up()
            await asyncio.wait([self._copying], timeout=OUTPUT_TIMEOUT)
        self._copying.cancel()
        (outcome,) = await asyncio.gather(self._copying, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    async def _copy(self) -> None:
        rest = b""
        try:
            while chunk := await self._pipe.reader.read(CHUNK):
                whole, newline, rest = (rest + chunk).rpartition(b"\n")
                if newline:
                    await self._append(whole + newline)
                    self._on_lines(whole.split(b"\n"))
        finally:
            if rest:  # the output ended in the middle of a line
                if not self._write(rest + b"\n"):
                    self._unwritable.lost(self._path, 1)
                self._on_lines([rest])
            if self._file is not None:
                self._file.close()
            self._pipe.close()

    async def _append(self, lines: bytes) -> None:
        while not self._write(lines):
            if not self._keep or self._given_up.is_set():
                self._unwritable.lost(self._path, lines.count(b"\n"))
                break
            self._waiting = True
            await sleep(RETRY_INTERVAL, self._given_up)
        self._waiting = False

    def _write(self, lines: bytes) -> bool:
        try:
            self._file = self._file or RotatingFile.shared(self._path)
            self._file.write(lines)
        except OSError as error:
            self._unwritable.failed(self._path, error, self._keep)
            return False
        self._unwritable.written(self._path)
        return True
