"""Processes that the supervisor starts: their exit, output and descriptors."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.supervise import output
from lab.supervise.full_disk import Unwritable
from lab.supervise.processes import OnLines, Process
from tests.support.limits import file_size_limit


async def python(
    program: str, directory: Path, on_lines: OnLines = lambda *_: None, unwritable: Unwritable | None = None
) -> Process:
    """Start Python with a program, whose output goes to files of a directory."""
    command = [sys.executable, "-uc", program]
    files = directory / "stdout", directory / "stderr"
    return await Process.start("python", command, os.environ, *files, on_lines, unwritable)


async def test_an_exit_is_noticed_despite_a_surviving_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "OUTPUT_TIMEOUT", 0.5)
    leaves_a_child = "import subprocess; print('done', flush=True); subprocess.Popen(['sleep', '60']); exit(3)"
    seen: list[bytes] = []
    process = await python(leaves_a_child, tmp_path, lambda _, lines: seen.extend(lines))
    try:
        assert await asyncio.wait_for(process.ended(), 30) == 3
        assert not process.running
        await process.stop()
        assert seen == [b"done"]
        assert (tmp_path / "stdout").read_bytes() == b"done\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_timeout(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
    ready = asyncio.Event()
    process = await python(program, tmp_path, lambda *_: ready.set())
    await asyncio.wait_for(ready.wait(), 30)
    started = asyncio.get_running_loop().time()
    await process.stop(0.2)
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert await process.ended() == -signal.SIGKILL


async def said(messages: list[str], count: int) -> None:
    """Wait for messages."""
    async with asyncio.timeout(30):
        while len(messages) < count:
            await asyncio.sleep(0.01)


async def test_lines_wait_while_their_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "RETRY_INTERVAL", 0.01)
    lines = b"".join(b"line %d\n" % number for number in range(200_000))  # more than a pipe and buffers hold
    messages: list[str] = []
    with file_size_limit(1000):
        process = await python(
            "for number in range(200_000): print('line', number)", tmp_path, unwritable=Unwritable(messages.append)
        )
        await said(messages, 1)
        await asyncio.sleep(0.1)
        assert process.running
    assert await asyncio.wait_for(process.ended(), 60) == 0
    assert (tmp_path / "stdout").read_bytes() == lines
    assert messages == [
        f"{tmp_path / 'stdout'} cannot be written: File too large. The services keep their log lines until it can.",
        "Log files can be written again.",
    ]


async def test_a_program_does_not_wait_for_its_stderr(tmp_path: Path) -> None:
    (tmp_path / "stderr").symlink_to("/dev/full")
    messages: list[str] = []
    unwritable = Unwritable(messages.append)
    program = "import sys; sys.stderr.write('line\\n' * 200_000)"
    process = await python(program, tmp_path, unwritable=unwritable)
    assert await asyncio.wait_for(process.ended(), 30) == 0
    assert len(messages) == 1
    unwritable.report_losses()
    assert messages[1:] == ["Log lines lost: 200,000."]


async def test_stopping_a_process_does_not_wait_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "OUTPUT_TIMEOUT", 0.2)
    (tmp_path / "stdout").symlink_to("/dev/full")
    messages: list[str] = []
    unwritable = Unwritable(messages.append)
    program = """if True:
        import signal, sys
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(sys.stdout.write('last\\n' * 200_000) and 0))
        print('first')
        signal.pause()
    """
    process = await python(program, tmp_path, unwritable=unwritable)
    await said(messages, 1)
    started = asyncio.get_running_loop().time()
    await process.stop(30)
    assert asyncio.get_running_loop().time() - started < 20
    assert await process.ended() == 0
    unwritable.report_losses()
    assert messages[1:] == ["Log lines lost: 200,001."]


SHORT_OF_DESCRIPTORS = """if True:
    import asyncio, os, resource
    from pathlib import Path
    from lab.supervise.processes import Process

    def open_now():
        return len(os.listdir("/proc/self/fd"))

    async def start():
        process = await Process.start(
            "true", ["true"], os.environ, Path("/dev/null"), Path("/dev/null"), lambda *_: None
        )
        await process.ended()

    async def main():
        await start()
        before, limits, failed = open_now(), resource.getrlimit(resource.RLIMIT_NOFILE), 0
        for more in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + more, limits[1]))
            try:
                await start()
            except OSError:
                failed += 1
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            await asyncio.sleep(0)  # transports close in the loop's next round
            assert open_now() == before, (more, before, open_now())
        assert 3 < failed < 12, failed

    asyncio.run(main())
"""


def test_a_failed_start_leaves_no_descriptor_open() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SHORT_OF_DESCRIPTORS], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
