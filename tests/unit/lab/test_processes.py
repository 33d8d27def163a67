"""Processes that the supervisor starts: their exit, output and descriptors."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.supervise import processes
from lab.supervise.processes import OnLines, Process


async def python(program: str, directory: Path, on_lines: OnLines) -> Process:
    """Start Python with a program, whose output goes to files of a directory."""
    command = [sys.executable, "-uc", program]
    return await Process.start("python", command, os.environ, directory / "stdout", directory / "stderr", on_lines)


async def test_an_exit_is_noticed_despite_a_surviving_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "OUTPUT_TIMEOUT", 0.5)
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
