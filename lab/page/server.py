"""Serves the page's requests for exercises and games on a Unix socket.

The socket is in a directory that no other user can enter; the frontend finds its path in ``LEARN_SOCKET`` and relays
the page's requests. An action that uses the lab runs ``dicelab learn`` as a process of its own, so that the supervisor
never waits for it. A thread answers an action that only reads::

    POST /  {"words": ["answer", "1.1"], "answer": "42"}
    200     {"status": 0, "document": {"exercise": "1.1", "right": true, "text": "Right."}, "error": "", "busy": ""}

``busy`` is the number of the exercise that is being prepared or checked at the moment, empty where none is.

``{"words": ["mystery", ACTION]}`` controls the mystery game, see :mod:`lab.page.game`.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from lab import LabError
from lab.learn import READING, WORKING
from lab.page.game import ACTIONS, HostedGame
from lab.supervise.private import private_directory

NUMBER = re.compile(r"[1-9](\.[1-9])?")  # of a stage or an exercise
MAX_BYTES = 64 * 1024  # bytes of a request
TIMEOUT = 240.0  # seconds for one exercise
BAD_INPUT = 2

Reply = tuple[int, Any, str]  # the exit status of the command, its JSON document, its error


class PageServer:
    """Answers the page's requests, in the process of ``dicelab up``.

    Args:
        run_dir: the run dir of the lab.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._directory = private_directory()  # a run dir's path may be too long for a socket
        self._runner: web.AppRunner | None = None
        self._busy: list[str] = []
        self._game = HostedGame(run_dir)

    @property
    def path(self) -> Path:
        return self._directory / "learn.sock"

    async def open(self) -> None:
        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_post("/", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=False)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path), shutdown_timeout=0.5).start()

    async def close(self) -> None:
        await self._game.close()
        if self._runner is not None:
            await self._runner.cleanup()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            document = await request.json()
            words, answer = [str(word) for word in document["words"]], str(document.get("answer", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return web.json_response({"error": "a JSON object with words is expected"}, status=400)
        if words[0:1] == ["mystery"] and len(words) == 2 and words[1] in ACTIONS:
            status, found, error = await self._game.do(words[1], answer)
            return web.json_response({"status": status, "document": found, "error": error, "busy": ""})
        if not 1 <= len(words) <= 2 or words[0] not in READING + WORKING or not all(map(NUMBER.fullmatch, words[1:])):
            return web.json_response({"error": "no such action"}, status=400)
        works = words[0] in ("ask", "answer") and len(words) == 2
        if works:
            self._busy.append(words[1])
        try:
            if words[0] in WORKING:
                status, found, error = await self._run(words, answer)
            else:
                status, found, error = await asyncio.to_thread(self._read, words)
        finally:
            if works:
                self._busy.remove(words[1])
        return web.json_response(
            {"status": status, "document": found, "error": error, "busy": next(iter(self._busy), "")}
        )

    def _read(self, words: list[str]) -> Reply:
        from lab.learn.course import Course  # imported here: it takes half a second, which most labs do not need

        try:
            return 0, Course(self._run_dir).document(*words), ""
        except LabError as error:
            return BAD_INPUT, None, str(error)

    async def _run(self, words: list[str], answer: str) -> Reply:
        file = ["--file", "/dev/stdin"] if words[0] == "answer" else []
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lab.cli", "learn", "--json", "--run-dir", str(self._run_dir), *file, "--", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(TIMEOUT):
                output, errors = await process.communicate(answer.encode())
        except TimeoutError:
            return BAD_INPUT, None, f"it took longer than {TIMEOUT:g} s"
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        found: Any = None
        with suppress(ValueError):
            found = json.loads(output.decode(errors="replace"))
        return process.returncode or 0, found, errors.decode(errors="replace").strip().removeprefix("dicelab: ")
