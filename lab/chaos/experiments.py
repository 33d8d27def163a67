"""``dicelab chaos``: break a running lab in one way, under traffic, and check that the telemetry shows it.

Each experiment says beforehand what it expects; it waits for a steady state, puts the fault in, watches, takes
it out, watches the recovery, and then asks the telemetry whether each expectation was met.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from rich.console import Console

from lab import LabError, check
from lab import client as running
from lab.chaos import expectations as observed
from lab.chaos.expectations import Expectation, Observed
from lab.chaos.target import PROJECT, ComposeLab, ContainerLab, SupervisedLab, Target, containers, in_containers
from lab.check import Missing, NotRunning
from lab.client import Running
from lab.load import generator as load
from lab.load.generator import Answer, Client, Record
from otel import logs

POLL = 0.1  # seconds
SETTLE = 2.0  # seconds of traffic after the recovery
WELL_SHARE = 0.99  # of the answers must be 200 for a steady state
TELEMETRY_PATIENCE = 15.0  # seconds that telemetry gets to arrive
PUT_BACK_TIMEOUT = 60.0
TRAFFIC_SECONDS = 24 * 3600.0  # longer than any experiment; it is stopped when that is over
# Seconds: with a second of waiting for a connection below the roller's patience of 4, so that only numbers hurt.
DIE_SERVICE_DELAY = 2.5
DATABASE_DELAY = 0.5  # seconds: below every limit on a query, so that only the number of connections hurts

Step = Callable[[Target], Awaitable[None]]

_line = logs.events(running.SERVICE)


@dataclass(frozen=True)
class Experiment:
    """One way to break a lab.

    Attributes:
        hypothesis: what is expected, in a sentence.
        stage: the first stage that has what is broken.
        needs: engines without which there is nothing to break.
        prepare: what must be in place before the steady state.
        inject, restore: put the fault in, take it out; ``None``: whoever supervises takes it out.
        expectations: in the order in which they are told.
    """

    hypothesis: str
    stage: int
    inject: Step
    restore: Step | None
    expectations: tuple[Expectation, ...]
    needs: tuple[str, ...] = ()
    prepare: Step | None = None


FRONT, ROLLER, DICE = "frontend", "dice-roller", "die-service"

EXPERIMENTS: dict[str, Experiment] = {
    "database-down": Experiment(
        "The database is gone: rolls are refused at once with 503, nothing hangs or restarts, and rolling goes on by"
        " itself as soon as it is back.",
        5,
        lambda target: target.stop("postgres"),
        lambda target: target.start("postgres"),
        (
            observed.only("200", "503"),
            observed.mostly("503", 0.95),
            observed.refused_promptly(),
            observed.none_hangs(5),
            observed.back_within(2),
            observed.not_ready(DICE, FRONT),
            observed.grows(DICE, "database_queries_total", result="error"),
            observed.is_seen(DICE, "database_connection_pool_size", 0),
            observed.grows(ROLLER, "die_service_requests_total", status="503"),
            observed.logged(DICE, "ERROR", "Database connection failed"),
            observed.logged(DICE, "INFO", "Database connected"),
            observed.span_failed(DICE, "GET /dice"),
            observed.alert("DatabaseDown"),
            observed.alert("HighErrorRatio"),
            observed.pool_is_right_again(),
            observed.same_processes("postgres"),
            observed.memory_is_back(DICE, ROLLER, FRONT),
        ),
    ),
    "database-slow": Experiment(
        "Every answer of the database takes half a second longer: its ten connections serve twenty queries a second,"
        " what is asked beyond that is refused after a second's wait.",
        5,
        lambda target: target.slow("postgres", DATABASE_DELAY),
        lambda target: target.slow("postgres", 0),
        (
            observed.only("200", "503"),
            observed.none_hangs(5),
            observed.back_within(2),
            observed.mean_at_least(DICE, "database_query_duration_seconds", DATABASE_DELAY),
            observed.is_seen(DICE, "database_connection_pool_available", 0),
            observed.grows(DICE, "database_queries_total", result="error"),
            observed.logged(DICE, "WARNING", "Connection pool exhausted"),
            observed.span_lasts(DICE, "SELECT", DATABASE_DELAY),
            observed.span_failed(DICE, "GET /dice"),
            observed.alert("HighErrorRatio"),
            observed.alert("DatabasePoolExhausted", 45),
            observed.pool_is_right_again(),
            observed.same_processes(),
            observed.memory_is_back(DICE, ROLLER, FRONT),
        ),
        prepare=lambda target: target.slow("postgres", 0),
    ),
    "die-service-down": Experiment(
        "The die-service is gone: the roller refuses every roll at once with 503, and rolls again when it is back.",
        3,
        lambda target: target.stop(DICE),
        lambda target: target.start(DICE),
        (
            observed.only("200", "503"),
            observed.mostly("503", 0.95),
            observed.refused_promptly(),
            observed.none_hangs(5),
            observed.back_within(10),
            observed.not_ready(ROLLER, FRONT),
            observed.grows(ROLLER, "die_service_requests_total", status="connection_error"),
            observed.grows(FRONT, "streamlit_requests_total", status_code="503"),
            observed.logged(ROLLER, "WARNING", "Die service error", die_service_status="connection_error"),
            observed.logged(FRONT, "ERROR", "Backend failed"),
            observed.span_failed(ROLLER, "GET"),
            observed.alert("ServiceDown"),
            observed.alert("HighErrorRatio"),
            observed.same_processes(DICE),
            observed.memory_is_back(ROLLER, FRONT),
        ),
    ),
    "die-service-slow": Experiment(
        "Every answer of the die-service takes 2.5 seconds longer: the roller's hundred connections serve 40 rolls a"
        " second, and once they are all taken it refuses the rest at once instead of piling it up.",
        3,
        lambda target: target.slow(DICE, DIE_SERVICE_DELAY),
        lambda target: target.slow(DICE, 0),
        (
            observed.only("200", "503"),
            observed.sheds(0.9),
            observed.none_hangs(7),
            observed.back_within(2),
            observed.mean_at_least(ROLLER, "die_service_request_duration_seconds", 0.8),
            observed.logged(ROLLER, "WARNING", "Die service error", die_service_status="connection_error"),
            observed.span_lasts(ROLLER, "GET", DIE_SERVICE_DELAY),
            observed.span_failed(ROLLER, "GET /roll"),
            observed.alert("HighLatency"),
            observed.same_processes(),
            observed.memory_is_back(ROLLER, FRONT),
        ),
        prepare=lambda target: target.slow(DICE, 0),
    ),
    "collector-down": Experiment(
        "The OpenTelemetry Collector is gone: rolls do not notice; their spans wait in the services and arrive later.",
        1,
        lambda target: target.stop("otel-collector"),
        lambda target: target.start("otel-collector"),
        (
            observed.only("200"),
            observed.unaffected(),
            observed.trace_arrives(),
            observed.none_dropped(),
            observed.alert("ServiceDown"),
            observed.same_processes("otel-collector"),
        ),
        needs=("otel-collector", "tempo"),
    ),
    "pool-exhausted": Experiment(
        "Somebody holds a lock on the table of dice: queries wait, are cancelled after two seconds, and meanwhile"
        " hold every connection; what finds none is refused after a second.",
        5,
        lambda target: target.lock(),
        lambda target: target.unlock(),
        (
            observed.only("200", "503", "504"),
            observed.none_hangs(6),
            observed.back_within(3),
            observed.is_seen(DICE, "database_connection_pool_available", 0),
            observed.grows(DICE, "database_queries_total", result="error"),
            observed.logged(DICE, "WARNING", "Connection pool exhausted"),
            observed.logged(DICE, "ERROR", "Query failed"),
            observed.span_failed(DICE, "SELECT", "504"),
            observed.span_failed(DICE, "GET /dice", "503"),
            observed.alert("HighErrorRatio"),
            observed.alert("DatabasePoolExhausted", 45),
            observed.pool_is_right_again(),
            observed.same_processes(),
            observed.memory_is_back(DICE, ROLLER, FRONT),
        ),
    ),
    "roller-killed": Experiment(
        "The roller is killed: what was under way and what comes next is refused at once, until the supervisor has"
        " started it again; that is too soon for an alert.",
        2,
        lambda target: target.kill(ROLLER),
        None,
        (
            observed.only("200", "503"),
            observed.refused_promptly(),
            observed.none_hangs(5),
            observed.back_within(10),
            observed.grows(FRONT, "streamlit_requests_total", status_code="503"),
            observed.logged(FRONT, "ERROR", "Backend failed"),
            observed.logged(ROLLER, "INFO", "Dice roller started"),
            observed.span_failed(FRONT, "GET"),
            observed.alert_stays_quiet("ServiceDown"),
            observed.same_processes(ROLLER),
            observed.memory_is_back(FRONT),
        ),
    ),
}


@dataclass(frozen=True)
class Verdict:
    """Whether an expectation was met (``None``: not checked), and what was seen."""

    text: str
    met: bool | None
    said: str


async def _experiment(
    args: argparse.Namespace, there: Running, engine: tuple[str, dict[str, str]] | None
) -> dict[str, Any]:
    experiment = EXPERIMENTS[args.experiment]
    _refuse(args.experiment, experiment, there)
    seed = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
    async with load.stoppable() as stop, session, Client(args.timeout) as client:
        places = (int(there.state["stage"]), there.run_dir, dict(there.services), dict(there.engines), session)
        lab = check.Lab(*places) if engine is None else ContainerLab(*places, engine=engine[0], containers=engine[1])
        seen = Observed(lab)
        await _well(lab)
        _line(logging.INFO, "Experiment started", experiment=args.experiment, seed=seed)
        run = _Run(args, experiment, seen, stop)
        async with load.shown(f"chaos {args.experiment}", run.said, run.share):
            try:
                async with SupervisedLab(there) if engine is None else ComposeLab(*engine) as target:
                    await run.through(target, client, there.url, seed)
            finally:
                put_back = await _put_back(lab)
                _line(logging.INFO, "Experiment done", experiment=args.experiment, all_ready=put_back)
            run.phase = "looking at the telemetry"
            deadline = time.monotonic() + TELEMETRY_PATIENCE
            verdicts = [] if stop.is_set() else [await _verdict(e, seen, deadline) for e in experiment.expectations]
    return _summary(args, experiment, seen, seed, verdicts, put_back, stop.is_set())


def _refuse(name: str, experiment: Experiment, there: Running) -> None:
    """Raise for a lab that the experiment makes no sense in."""
    if int(there.state["stage"]) < experiment.stage:
        raise LabError(f"stage {there.state['stage']} has nothing to break by {name}; stage {experiment.stage} has")
    if any(len(service.get("workers", [])) > 1 for service in there.state.get("services", [])):
        raise LabError("experiments break one process a service: start the lab without --workers")
    missing = [engine for engine in experiment.needs if engine not in there.engines]
    if missing:
        raise LabError(f"{name} needs {' and '.join(missing)}: dicelab up --engines, with them on PATH")
    database = there.state.get("postgres", {"pid": None})
    if name.startswith("database") and "pid" in database and database["pid"] is None:
        raise LabError(f"{name} needs a database of the lab's own; this lab uses another")


async def _well(lab: check.Lab) -> None:
    for service in lab.services:
        state = await observed.look(lab, service)
        if state.not_ready:
            raise LabError(f"the lab is not well to begin with: the {service} is not ready: {state.not_ready}")


class _Run:
    """The phases of one experiment."""

    def __init__(self, args: argparse.Namespace, experiment: Experiment, seen: Observed, stop: asyncio.Event) -> None:
        self.phase = "preparing"
        self._args = args
        self._experiment = experiment
        self._seen = seen
        self._stop = stop
        self._began = time.monotonic()

    def said(self) -> str:
        counts = Counter(answer.status for answer in self._seen.answers)
        return f"{self.phase}  " + "  ".join(f"{status}: {count}" for status, count in sorted(counts.items()))

    def share(self) -> float:
        whole = float(self._args.steady + self._args.fault + SETTLE)
        return min(1.0, (time.monotonic() - self._began) / whole)

    async def through(self, target: Target, client: Client, url: str, seed: int) -> None:
        seen, stop = self._seen, self._stop
        if self._experiment.prepare is not None:
            await self._experiment.prepare(target)
            await self._until_ready(self._args.recovery)
        self._began = time.monotonic()
        enough = asyncio.Event()
        background = [
            asyncio.ensure_future(self._traffic(client, url, enough)),
            asyncio.ensure_future(observed.watch(seen)),
            asyncio.ensure_future(observed.watch_alerts(seen)),
        ]
        try:
            self.phase = "steady state"
            await load.sleep(self._args.steady, stop)
            if stop.is_set():
                return
            self._check_steady()
            seen.processes_before = await target.processes()
            self.phase = "fault"
            seen.injected = time.monotonic()
            await self._experiment.inject(target)
            if self._experiment.restore is not None:
                await load.sleep(max(0.0, seen.injected + self._args.fault - time.monotonic()), stop)
                seen.restored = time.monotonic()
                await self._experiment.restore(target)
            else:
                await self._restarted(target)
                seen.restored = time.monotonic()
            self.phase = "recovery"
            await self._recovered()
            await load.sleep(min(SETTLE, self._args.steady), stop)
            seen.processes_after = await target.processes()
        finally:
            enough.set()
            answers, *others = background
            with suppress(asyncio.CancelledError):
                await answers
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _traffic(self, client: Client, url: str, enough: asyncio.Event) -> None:
        async def ask(number: int, due: float) -> None:
            self._seen.answers.append(
                await client.ask(url, "/roll", {"die": "fair"}, due=due, attributes={"die.type": "fair"})
            )

        due = load.arrivals(self._args.rate, TRAFFIC_SECONDS, load.PROFILES["steady"])
        await load.open_loop(due, ask, enough, Record())

    def _check_steady(self) -> None:
        answers = self._seen.answers
        good = sum(answer.status == "200" for answer in answers)
        if not answers or good < WELL_SHARE * len(answers):
            raise LabError(f"no steady state to begin with: {good} of {len(answers)} answers were 200")

    async def _restarted(self, target: Target) -> None:
        """Wait until another process has taken the place of one that was killed."""
        deadline = time.monotonic() + self._args.recovery
        while await target.processes() == self._seen.processes_before and not self._stop.is_set():
            if time.monotonic() > deadline:
                raise LabError(f"nobody has started again within {self._args.recovery:g} s what was killed")
            await asyncio.sleep(POLL)

    async def _until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while any([(await observed.look(self._seen.lab, s)).not_ready for s in self._seen.lab.services]):
            if time.monotonic() > deadline:
                raise LabError(f"the lab is not ready after {timeout:g} s")
            await asyncio.sleep(POLL)

    async def _recovered(self) -> None:
        """Wait until answers are 200 again and all services ready, but no longer than was given."""
        seen = self._seen
        deadline = seen.restored + self._args.recovery
        while time.monotonic() < deadline and not self._stop.is_set():
            answers = [answer for answer in seen.answers if answer.started >= seen.restored]
            looks = [seen.looks[service][-1] for service in seen.lab.services]
            ready = all(look.not_ready is None and look.at > seen.restored for look in looks)
            if ready and answers and answers[-1].status == "200" and seen.first_good() is not None:
                seen.recovered = max(look.at for look in looks)
                return
            await asyncio.sleep(POLL)


async def _put_back(lab: check.Lab) -> bool:
    """Wait until every service is ready again, whatever was done to them."""
    deadline = time.monotonic() + PUT_BACK_TIMEOUT
    well = 0
    while well < 3:  # one that is about to be restarted may be ready still
        await asyncio.sleep(2 * POLL)
        looks = await asyncio.gather(*(observed.look(lab, service) for service in lab.services))
        well = 0 if any(look.not_ready for look in looks) else well + 1
        if time.monotonic() > deadline:
            return False
    return True


async def _verdict(expectation: Expectation, seen: Observed, deadline: float) -> Verdict:
    while True:
        try:
            return Verdict(expectation.text, True, await expectation.question(seen))
        except NotRunning as absent:
            return Verdict(expectation.text, None, f"not checked, {absent}")
        except (Missing, aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError) as error:
            if time.monotonic() > deadline:
                return Verdict(expectation.text, False, str(error) or type(error).__name__)
        await asyncio.sleep(5 * POLL)


def _summary(
    args: argparse.Namespace,
    experiment: Experiment,
    seen: Observed,
    seed: int,
    verdicts: list[Verdict],
    put_back: bool,
    interrupted: bool,
) -> dict[str, Any]:
    noticed = [a.started + a.seconds - seen.injected for a in seen.answers if a.failed and a.started >= seen.injected]
    first = seen.first_good() if seen.restored else None
    return {
        "experiment": args.experiment,
        "hypothesis": experiment.hypothesis,
        "seed": seed,
        "rate": args.rate,
        "fault_seconds": round(seen.fault, 2),
        "interrupted": interrupted,
        "answers": {
            "steady": _phase(seen.steady),
            "fault": _phase(seen.during),
            "recovery": _phase([answer for answer in seen.answers if seen.restored <= answer.started]),
        },
        "expectations": [{"text": one.text, "met": one.met, "seen": one.said} for one in verdicts],
        "noticed_by_users_seconds": round(min(noticed), 3) if noticed and seen.injected else None,
        "detected_seconds": {what: round(at, 2) for what, at in sorted(seen.signs.items(), key=lambda sign: sign[1])},
        "first_good_seconds": None if first is None else round(first, 3),
        "all_ready_seconds": None if seen.recovered is None else round(seen.recovered - seen.restored, 2),
        "put_back": put_back,
        "held": bool(verdicts) and all(one.met is not False for one in verdicts) and put_back,
    }


def _phase(answers: list[Answer]) -> dict[str, Any]:
    seconds = sorted(answer.seconds for answer in answers)
    told: dict[str, Any] = dict(sorted(Counter(answer.status for answer in answers).items()))
    if seconds:
        told |= {
            "p50_ms": round(seconds[len(seconds) // 2] * 1000, 1),
            "p99_ms": round(seconds[math.ceil(0.99 * len(seconds)) - 1] * 1000, 1),
        }
    return told


def _show(summary: dict[str, Any], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    for phase, told in summary["answers"].items():
        say(f"{phase:8} " + "  ".join(f"{name}: {value}" for name, value in told.items()))
    marks: dict[bool | None, tuple[str, str]] = {True: ("✔", "green"), False: ("✘", "red"), None: ("–", "yellow")}  # noqa: RUF001
    for one in summary["expectations"]:
        mark, style = marks[one["met"]]
        say(f"{mark} {one['text']}: {one['seen']}", style)
    if summary["noticed_by_users_seconds"] is not None:
        say(f"Users noticed after {summary['noticed_by_users_seconds']:.2f} s")
    for what, seconds in list(summary["detected_seconds"].items())[:6]:
        say(f"Detected after {seconds:5.2f} s by: {what}")
    if summary["first_good_seconds"] is not None:
        say(f"First 200 {summary['first_good_seconds']:.2f} s after the end of the fault")
    if summary["all_ready_seconds"] is not None:
        say(f"Recovered, all ready, {summary['all_ready_seconds']:.2f} s after the end of the fault")
    if summary["interrupted"]:
        say("Interrupted: nothing was checked.", "yellow")
    if not summary["put_back"]:
        say("Not every service is ready again: see dicelab status.", "bold red")
    else:
        say("Everything is put back; every service is ready.")
    if not summary["interrupted"]:
        say("The hypothesis holds." if summary["held"] else "The hypothesis does not hold.", "bold")


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the command; returns 0 when every expectation that could be checked was met, else 1."""
    engine = asyncio.run(containers(PROJECT)) if args.compose else None
    there = running.find(args.run_dir) if engine is None else in_containers(args.run_dir, engine[1])
    if not args.json:
        console.print(
            f"{args.experiment}: {EXPERIMENTS[args.experiment].hypothesis}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    with running.telemetry(there):
        summary = asyncio.run(_experiment(args, there, engine))
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if summary["held"] else 1
