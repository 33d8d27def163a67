"""``dicelab chaos``: break a running lab in one way, under traffic, and check that the telemetry shows it.

An experiment waits for a steady state, injects the fault, removes it, waits for the recovery, and then checks each of
its expectations.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from lab import LabError, containers, telemetry
from lab.chaos import observations
from lab.chaos.expectations import Expectation, alerts
from lab.chaos.experiments import EXPERIMENTS, Experiment
from lab.chaos.mark import marked
from lab.chaos.observations import Observations
from lab.chaos.pods import PodTarget
from lab.chaos.targets import ContainerTarget, RunDirTarget, Target
from lab.client import BASE_PORT, Lab, Missing, NotRunning, lowest_stage
from lab.kubernetes import pods
from lab.load import generator
from lab.load.generator import Client, Record, Response
from lab.load.latency import Latencies
from lab.terminal import progress, say
from lab.waiting import sleep, stop_signal, until, within
from otel import logs

POLL = 0.1  # seconds
SETTLE = 2.0  # seconds of traffic after the recovery
GOOD_SHARE = 0.99  # the share of responses that must be 200 in a steady state
TELEMETRY_TIMEOUT = 15.0  # seconds for telemetry to arrive
PUT_BACK_TIMEOUT = 60.0
ALERTS_SILENT = 120.0  # seconds after the end of a fault
TRAFFIC_SECONDS = 24 * 3600.0  # longer than any experiment; its end stops the traffic
BATCHES = 4  # the first stage that has batches
BATCH = 5  # rolls
DETECTIONS = 6  # that are printed

_log = logs.events(telemetry.SERVICE)


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        compose: whether the lab runs in containers.
        kubernetes: whether it runs in a cluster.
        addresses: of the lab in the cluster: names of its parts, or an empty one for the whole, each with a URL.
        rate: rolls a second.
        steady, fault, recovery: seconds of each phase; the last one is an upper limit.
        silence: the longest wait for alerts to fall silent, in seconds after the end of the fault.
        timeout: seconds for one request.
    """

    experiment: str
    run_dir: Path
    compose: bool
    kubernetes: bool
    addresses: Sequence[tuple[str, str]]
    rate: float
    steady: float
    fault: float
    recovery: float
    silence: float
    seed: int | None
    timeout: float
    json: bool


@dataclass(frozen=True)
class Verdict:
    """Whether an expectation was met (``None``: not checked), and what was seen."""

    text: str
    met: bool | None
    seen: str
    timed: bool


async def _experiment(options: Options, lab: Lab) -> dict[str, Any]:
    experiment = EXPERIMENTS[options.experiment]
    _check_applicable(options.experiment, experiment, lab)
    target = _target(lab)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    async with stop_signal() as stop, lab, Client(options.timeout) as client:
        observed = Observations(lab)
        started = put_back = False
        run = _Run(options, experiment, observed, stop)
        async with progress(f"chaos {options.experiment}", run.words, run.share):
            try:
                async with target:  # a lab of dicelab up refuses a second experiment
                    await _check_ready(lab)
                    _log(logging.INFO, "Experiment started", experiment=options.experiment, seed=seed)
                    started = True
                    # The exporter reads the mark in the run dir; only a lab of dicelab up has one.
                    with marked(lab.run_dir, options.experiment) if isinstance(target, RunDirTarget) else nullcontext():
                        await run.execute(target, client)
            finally:
                if started:
                    # A service that is about to be restarted may still be ready.
                    put_back = await observations.ready(lab, PUT_BACK_TIMEOUT, 2 * POLL, times=4)
                    _log(logging.INFO, "Experiment done", experiment=options.experiment, all_ready=put_back)
            processes = await target.processes() if observed.processes_after else {}
            restarted = [name for name, one in observed.processes_after.items() if processes.get(name) != one]
            run.phase = "checking the telemetry"
            deadline = time.monotonic() + TELEMETRY_TIMEOUT
            expectations = [*experiment.expectations, experiment.expected_alert]
            if experiment.first_alert:
                expectations.append(alerts.fall_silent(ALERTS_SILENT))
            verdicts = [] if stop.is_set() else [await _verdict(e, observed, deadline) for e in expectations]
    return _summary(options, observed, verdicts) | {
        "seed": seed,
        "interrupted": stop.is_set(),
        "put_back": put_back,
        "restarted_at_the_end": restarted,
        "held": bool(verdicts) and all(one.met is not False for one in verdicts) and put_back,
    }


def _target(lab: Lab) -> Target:
    if lab.pods is not None:
        return PodTarget(lab.pods)
    return RunDirTarget(lab) if lab.containers is None else ContainerTarget(lab.containers)


async def _in_cluster(options: Options) -> Lab:
    """The lab in the cluster that kubectl uses, at the given addresses or behind ``dicelab forward``."""
    found = await pods.find()
    stage = lowest_stage(found.workloads)
    front = f"http://127.0.0.1:{BASE_PORT + (0 if stage == 1 else 2)}"
    lab = Lab.elsewhere(options.run_dir, stage, {"": front, **dict(options.addresses)}, found)
    async with lab:
        await lab.find_engines()
    return lab


def _check_applicable(name: str, experiment: Experiment, lab: Lab) -> None:
    """Raise for a lab that the experiment does not apply to."""
    if lab.stage < experiment.stage:
        raise LabError(f"{name} needs stage {experiment.stage} or later; this lab is at stage {lab.stage}")
    if any(len(service.get("workers", [])) > 1 for service in lab.state.get("services", [])):
        raise LabError("experiments need one process a service: start the lab without --workers")
    missing = [engine for engine in experiment.needs if engine not in lab.engines]
    if missing:
        raise LabError(f"{name} needs {' and '.join(missing)}: dicelab up --engines, with them on PATH")
    database = lab.state.get("postgres", {"pid": None})
    if name.startswith("database") and "pid" in database and database["pid"] is None:
        raise LabError(f"{name} needs a database that this lab has started; it uses another")


async def _check_ready(lab: Lab) -> None:
    for service, snapshot in (await observations.snapshots(lab)).items():
        if snapshot.not_ready:
            raise LabError(f"the lab is not ready to begin with: the {service} says {snapshot.not_ready}")


class _Run:
    """The phases of one experiment."""

    def __init__(self, options: Options, experiment: Experiment, observed: Observations, stop: asyncio.Event) -> None:
        self.phase = "preparing"
        self._options = options
        self._experiment = experiment
        self._observed = observed
        self._stop = stop
        self._began = time.monotonic()

    def words(self) -> str:
        counts = Counter(response.status for response in self._observed.responses)
        return f"{self.phase}  " + "  ".join(f"{status}: {count}" for status, count in sorted(counts.items()))

    def share(self) -> float:
        whole = self._options.steady + self._options.fault + SETTLE
        return min(1.0, (time.monotonic() - self._began) / whole)

    async def execute(self, target: Target, client: Client) -> None:
        observed, stop = self._observed, self._stop
        if self._experiment.prepare is not None:
            await self._experiment.prepare(target)
            if not await observations.ready(observed.lab, self._options.recovery, POLL):
                raise LabError(f"the lab is not ready after {self._options.recovery:g} s")
        self._began = time.monotonic()
        end_of_traffic = asyncio.Event()
        traffic = asyncio.ensure_future(self._traffic(client, end_of_traffic))
        recorders = [
            asyncio.ensure_future(observations.record_services(observed)),
            asyncio.ensure_future(observations.record_alerts(observed)),
        ]
        try:
            self.phase = "steady state"
            await sleep(self._options.steady, stop)
            if stop.is_set():
                return
            self._check_steady()
            observed.processes_before = await target.processes()
            self.phase = "fault"
            observed.injected = time.monotonic()
            await self._experiment.inject(target)
            if self._experiment.restore is not None:
                await sleep(max(0.0, observed.injected + self._options.fault - time.monotonic()), stop)
                observed.restored = time.monotonic()
                await self._experiment.restore(target)
            else:
                await self._restarted(target)
                observed.restored = time.monotonic()
            self.phase = "recovery"
            await self._recovered()
            await sleep(min(SETTLE, self._options.steady), stop)
            self.phase = "waiting for the alerts"
            await self._alerts_settled()
            observed.processes_after = await target.processes()
        finally:
            end_of_traffic.set()
            with suppress(asyncio.CancelledError):
                await traffic
            for recorder in recorders:
                recorder.cancel()
            await asyncio.gather(*recorders, return_exceptions=True)

    async def _traffic(self, client: Client, end: asyncio.Event) -> None:
        lab = self._observed.lab
        batches = self._experiment.batches and lab.stage >= BATCHES

        async def ask(number: int, due: float) -> None:
            batch = batches and number % 4 == 0
            query = {"die": "fair", "times": str(BATCH)} if batch else {"die": "fair"}
            route = "/roll-async" if batch else "/roll"
            response = await client.ask(lab.front, route, query, due=due, attributes={"die.type": "fair"})
            self._observed.responses.append(response)

        due = generator.arrivals(self._options.rate, TRAFFIC_SECONDS, generator.PROFILES["steady"])
        await generator.open_loop(due, ask, end, Record())

    def _check_steady(self) -> None:
        responses = self._observed.responses
        good = sum(response.status == "200" for response in responses)
        if not responses or good < GOOD_SHARE * len(responses):
            raise LabError(f"there is no steady state: {good} of {len(responses)} responses were 200")

    async def _restarted(self, target: Target) -> None:
        """Wait until the supervisor has restarted the killed process, and it is ready.

        How long that takes depends on the other work on the machine.
        """
        before = self._observed.processes_before
        async for _ in within(self._options.recovery, POLL):
            now = await target.processes()
            restarted = [name for name in before if now.get(name) not in (None, before[name])]
            ready = [await self._observed.lab.fetch_ready(name) for name in restarted]
            if (restarted and all(ready)) or self._stop.is_set():
                return
        raise LabError(f"the killed process is not ready again after {self._options.recovery:g} s")

    async def _alerts_settled(self) -> None:
        """Wait for the alert of a kill, which may fire after the restart, and until every alert is silent again."""
        observed, experiment, options = self._observed, self._experiment, self._options
        if "prometheus" not in observed.lab.engines:
            return
        if experiment.restore is None and experiment.first_alert:
            async for _ in until(observed.injected + experiment.alert_within, POLL):
                if observed.firing or self._stop.is_set():
                    break
        async for _ in until(observed.restored + options.silence, POLL):
            if observed.silent or self._stop.is_set():
                break
        observed.watched = time.monotonic() - observed.restored

    async def _recovered(self) -> None:
        """Wait until responses are 200 again and all services are ready, but no longer than the options allow."""
        observed = self._observed
        async for _ in until(observed.restored + self._options.recovery, POLL):
            if self._stop.is_set():
                return
            latest = [observed.snapshots[service][-1] for service in observed.lab.services]
            ready = all(one.not_ready is None and one.at > observed.restored for one in latest)
            responses = observed.after
            if ready and responses and responses[-1].status == "200" and observed.first_good() is not None:
                observed.recovered = max(one.at for one in latest)
                return


async def _verdict(expectation: Expectation, observed: Observations, deadline: float) -> Verdict:
    """The verdict on an expectation, which is checked repeatedly until it is met or the deadline has passed."""
    missing = ""
    async for _ in until(deadline, 5 * POLL):
        try:
            return Verdict(expectation.text, True, await expectation.check(observed), expectation.timed)
        except NotRunning as reason:
            return Verdict(expectation.text, None, f"not checked, {reason}", expectation.timed)
        except (Missing, aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError, KeyError) as error:
            missing = str(error) or type(error).__name__
    return Verdict(expectation.text, False, missing, expectation.timed)


def _summary(options: Options, observed: Observations, verdicts: list[Verdict]) -> dict[str, Any]:
    failures = [
        response for response in observed.responses if response.failed and response.started >= observed.injected
    ]
    noticed = min((one.started + one.seconds - observed.injected for one in failures), default=None)
    first = observed.first_good() if observed.restored else None
    return {
        "experiment": options.experiment,
        "hypothesis": EXPERIMENTS[options.experiment].hypothesis,
        "rate": options.rate,
        "fault_seconds": round(observed.fault, 2),
        "answers": {
            "steady": _phase(observed.steady),
            "fault": _phase(observed.during),
            "recovery": _phase(observed.after),
        },
        "expectations": [asdict(one) for one in verdicts],
        "noticed_by_users_seconds": None if noticed is None or not observed.injected else round(noticed, 3),
        "detected_seconds": {
            what: round(seconds, 2) for what, seconds in sorted(observed.detections.items(), key=lambda one: one[1])
        },
        "first_good_seconds": None if first is None else round(first, 3),
        "alerts": {
            name: {
                "fired_seconds": round(one.since - observed.injected, 1),
                "silent_seconds": None if one.until is None else round(one.until - observed.restored, 1),
            }
            for name, one in observed.firing.items()
        },
        "all_ready_seconds": None if observed.recovered is None else round(observed.recovered - observed.restored, 2),
    }


def _phase(responses: list[Response]) -> dict[str, Any]:
    summary: dict[str, Any] = dict(sorted(Counter(response.status for response in responses).items()))
    latencies = Latencies(response.seconds for response in responses)
    if len(latencies):
        summary |= {f"p{percent}_ms": round(latencies.percentile(percent) * 1000, 1) for percent in (50, 99)}
    return summary


def _show(summary: dict[str, Any], console: Console) -> None:
    for phase, figures in summary["answers"].items():
        say(console, f"{phase:8} " + "  ".join(f"{name}: {value}" for name, value in figures.items()))
    marks: dict[bool | None, tuple[str, str]] = {True: ("✔", "green"), False: ("✘", "red"), None: ("–", "yellow")}  # noqa: RUF001
    for one in summary["expectations"]:
        mark, style = marks[one["met"]]
        say(console, f"{mark} {one['text']}: {one['seen']}", style)
    if any(one["timed"] and one["met"] is False for one in summary["expectations"]):
        say(console, "Other work on this machine lengthens durations: repeat this while it is idle.", "yellow")
    if summary["noticed_by_users_seconds"] is not None:
        say(console, f"Users noticed after {summary['noticed_by_users_seconds']:.2f} s")
    for what, seconds in list(summary["detected_seconds"].items())[:DETECTIONS]:
        say(console, f"Detected after {seconds:5.2f} s by: {what}")
    for name, times in summary["alerts"].items():
        silent = times["silent_seconds"]
        end = "still fires" if silent is None else f"was silent {silent:.0f} s after the end of the fault"
        say(console, f"Alert {name} fired after {times['fired_seconds']:.0f} s, {end}")
    if summary["first_good_seconds"] is not None:
        say(console, f"First 200 {summary['first_good_seconds']:.2f} s after the end of the fault")
    if summary["all_ready_seconds"] is not None:
        say(console, f"All services ready {summary['all_ready_seconds']:.2f} s after the end of the fault")
    if summary["interrupted"]:
        say(console, "Interrupted: nothing was checked.", "yellow")
    if not summary["put_back"]:
        say(console, "Not every service is ready again: see dicelab status.", "bold red")
    else:
        say(console, "The fault is removed; every service is ready.")
    if summary["restarted_at_the_end"]:
        names = ", ".join(summary["restarted_at_the_end"])
        say(console, f"Restarted to remove the fault, so that its counters begin at 0: {names}")
    if not summary["interrupted"]:
        say(console, "The hypothesis holds." if summary["held"] else "The hypothesis does not hold.", "bold")


def run(options: Options, console: Console) -> int:
    """Run the command; returns 0 if every expectation that could be checked was met, else 1."""
    if options.compose:
        lab = Lab.in_containers(options.run_dir, asyncio.run(containers.find()))
    elif options.kubernetes:
        lab = asyncio.run(_in_cluster(options))
    else:
        lab = Lab.in_run_dir(options.run_dir)
    if not options.json:
        say(console, f"{options.experiment}: {EXPERIMENTS[options.experiment].hypothesis}")
    with telemetry.recorded(lab):
        summary = asyncio.run(_experiment(options, lab))
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        _show(summary, console)
    return 0 if summary["held"] else 1
