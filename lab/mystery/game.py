"""One game: users roll dice, a fault is injected silently, a player looks for it, and finally the fault is removed.

Until the fault has an effect, a lab looks the same in every game: every link has a proxy, every service is restarted
once before the game and receives its defects over a socket, and no process, file or log line names a fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError
from lab.chaos import observations
from lab.chaos.observations import Observations
from lab.chaos.targets import RunDirTarget
from lab.client import Lab
from lab.load.generator import Client
from lab.mystery.case import Case, collect
from lab.mystery.plan import DEPLOYMENT, RESTART, SPIKE_SECONDS, SPIKE_USERS, Decoy, Plan, commitment
from lab.mystery.samples import Sampler, SamplesFile, Scrape, recent, up
from lab.mystery.situations import DELAYS, DIE_SERVICE_POSTGRES, LINKS, Facets
from lab.mystery.truth import Truth
from lab.mystery.users import TIMEOUT, Users, indicators, random_seed
from lab.signals import OPENMETRICS, format_time

READY_TIMEOUT = 60.0  # seconds for the services to be ready, before a game and after it
POLL = 0.1
SCRAPE_INTERVAL = 2.5  # seconds
ARRIVAL = 1.5  # seconds for the last spans and lines to be written
DECISION = 12.0  # seconds for the Collector to decide on a trace with tail sampling, and for Tempo to store it
ALIVE_INTERVAL = 0.5  # seconds between two checks that the lab still runs


@dataclass
class Game:
    """A game that has begun.

    Attributes:
        began: in seconds since 1970.
        onset: when the fault was injected, in seconds since 1970; ``None`` before.
        observed: the alerts, before and since the fault.
        evidence: the ids of the traces that the player has named.
    """

    lab: Lab
    plan: Plan
    nonce: str
    users: Users
    began: float
    onset: float | None = None
    scrapes: list[Scrape] = field(default_factory=list)
    observed: Observations = field(init=False)
    evidence: list[str] = field(default_factory=list)
    _faces_before: dict[str, Counter[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.observed = Observations(self.lab)

    @property
    def alerts(self) -> dict[str, float]:
        """The alerts that have fired since the fault, and after how many seconds."""
        return {name: round(one.since - self.observed.injected, 1) for name, one in self.observed.firing.items()}

    @property
    def commitment(self) -> str:
        return commitment(self.nonce, self.plan.document())

    def begin_fault(self) -> None:
        self.onset, self.observed.injected = time.time(), time.monotonic()
        self._faces_before = self.users.faces()

    def indicators(self, ended: float) -> dict[str, Any]:
        """How the fault has affected the users."""
        onset = ended if self.onset is None else self.onset
        faces = {die: counts - self._faces_before.get(die, Counter()) for die, counts in self.users.faces().items()}
        return indicators(self.users.requests, self.began, onset, ended, faces, self.users.dice)


# Lets somebody play; returns once the player has answered, given up, or run out of time.
Player = Callable[[Game], Awaitable[None]]


@dataclass(frozen=True)
class Played:
    """A game that is over.

    Attributes:
        put_back: whether every service was ready again in time.
    """

    game: Game
    case: Case
    truth: Truth
    indicators: dict[str, Any]
    put_back: bool


async def play(lab: Lab, plan: Plan, player: Player) -> Played:
    """Play a game in a lab, which must be entered.

    Raises:
        LabError: when the game cannot begin, or the lab is stopped during the game.
    """
    return await _unless_stopped(lab, _play(lab, plan, player))


async def _play(lab: Lab, plan: Plan, player: Player) -> Played:
    async with Client(TIMEOUT, traced=False) as client:
        async with RunDirTarget(lab) as target:
            servers = [server for link, server in LINKS.items() if plan.facets.postgres or link != DIE_SERVICE_POSTGRES]
            await target.prepare({server: DELAYS[server] for server in servers})
            if not await observations.ready(lab, READY_TIMEOUT, POLL, times=4):
                raise LabError(f"a service is not ready after {READY_TIMEOUT:g} s; dicelab status says which")
            users = Users(lab, client, random_seed())
            try:
                await users.start()
                game = Game(lab, plan, secrets.token_hex(16), users, time.time())
                async with _running_game(game, target):
                    await player(game)
                    ended = time.time()
                    await asyncio.sleep(arrival(lab))
                    case = await collect(lab, game.began, ended, game.scrapes, game.evidence)
                    noticed = game.indicators(ended)
            finally:
                await users.stop()
        put_back = await observations.ready(lab, READY_TIMEOUT, POLL, times=4)
    truth = Truth.of(plan, game.began + plan.onset if game.onset is None else game.onset, ended)
    return Played(game, case, truth, noticed, put_back)


def arrival(lab: Lab) -> float:
    """Seconds from the end of a game until its last spans and lines can be read."""
    return DECISION if lab.sampling == "tail" else ARRIVAL


async def _unless_stopped(lab: Lab, playing: Coroutine[Any, Any, Played]) -> Played:
    """Wait for a game, but no longer than the lab runs."""
    game = asyncio.ensure_future(playing)
    try:
        while not game.done():
            await asyncio.wait([game], timeout=ALIVE_INTERVAL)
            if lab.directory.owner() != lab.state["pid"]:
                raise LabError("the lab was stopped: this game does not count")
        return game.result()
    finally:
        game.cancel()
        await asyncio.gather(game, return_exceptions=True)


@asynccontextmanager
async def _running_game(game: Game, target: RunDirTarget) -> AsyncIterator[None]:
    """Scrape the services, and inject decoys and the fault at their times, while the block runs."""
    plan, facets = game.plan, game.plan.facets
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_scrape(game)),
                group.create_task(observations.record_alerts(game.observed)),
                group.create_task(game.users.watch()),
                group.create_task(_break(game, target, facets)),
                *(group.create_task(_decoy(game, target, decoy, facets)) for decoy in plan.decoys),
            ]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:  # for example, a fault that cannot be injected ends the game at once
        raise errors.exceptions[0] from None


async def _break(game: Game, target: RunDirTarget, facets: Facets) -> None:
    await _at(game, game.plan.onset)
    game.begin_fault()
    for fault in game.plan.faults:
        await fault.situation.inject(target, fault.parameters, facets)
    await asyncio.gather(
        *(fault.situation.keep(target, fault.parameters, facets) for fault in game.plan.faults if fault.situation.keep)
    )


async def _decoy(game: Game, target: RunDirTarget, decoy: Decoy, facets: Facets) -> None:
    await _at(game, decoy.after)
    if decoy.name == RESTART:
        await target.restart({decoy.service: {}})
    elif decoy.name == DEPLOYMENT:
        await asyncio.to_thread(_log_deployment, game.lab.directory.logs / "deployments.jsonl", decoy.service)
    else:
        await game.users.spike(SPIKE_USERS, SPIKE_SECONDS)


def _log_deployment(path: Path, service: str) -> None:
    line = {
        "timestamp": format_time(time.time()),
        "level": "INFO",
        "message": "Deployment finished",
        "logger": "deployments",
        "component": service,
    }
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        file.write(json.dumps(line) + "\n")


async def _at(game: Game, after: float) -> None:
    await asyncio.sleep(max(0.0, game.began + after - time.time()))


async def _scrape(game: Game) -> None:
    """Scrape all services at intervals, for the score, and for the player as a table of ``dicelab sql``."""
    lab = game.lab

    async def one(service: str, at: float) -> Scrape | None:
        with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
            async with asyncio.timeout(SCRAPE_INTERVAL):
                page = await lab.fetch(f"{lab.url(service)}/metrics", Accept=OPENMETRICS)
                if page.status == 200:
                    return Scrape(at, service, page.text)
        return None

    with closing(SamplesFile(lab.directory)) as file:
        sampler = Sampler()
        while True:
            at = round(time.time(), 3)  # the precision of a recorded case
            found = [page for page in await asyncio.gather(*(one(service, at) for service in lab.services)) if page]
            game.scrapes = recent([*game.scrapes, *found], game.onset, at)
            rows = [row for page in found for row in sampler.rows(page)]
            await asyncio.to_thread(file.write, rows + up(at, lab.services, {page.service for page in found}))
            await asyncio.sleep(max(0.0, at + SCRAPE_INTERVAL - time.time()))
