"""The situations of the game: what is broken, how a player names it, and how it is injected.

A situation is an instance of :class:`Situation`, with a component, a mechanism, and a coroutine function that injects
the fault. To add one, add it to :data:`SITUATIONS`: the lists that a player chooses from, the random choice, the score
and the admission test use that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.chaos.targets import RunDirTarget
from lab.client import DIE_SERVICE, FRONTEND, ROLLER, Lab
from lab.supervise.stages import POSTGRES

FRONTEND_ROLLER = f"{FRONTEND}->{ROLLER}"
ROLLER_DIE_SERVICE = f"{ROLLER}->{DIE_SERVICE}"
DIE_SERVICE_POSTGRES = f"{DIE_SERVICE}->{POSTGRES}"
# The server of each link, which is also the name of the link's proxy.
LINKS = {FRONTEND_ROLLER: ROLLER, ROLLER_DIE_SERVICE: DIE_SERVICE, DIE_SERVICE_POSTGRES: POSTGRES}
NOTHING = "nothing"
MECHANISMS = {
    "down": "it does not run, or accepts no requests",
    "crashing": "it is killed again and again, and restarted",
    "slow-network": "every answer on a link takes longer",
    "lock": "a lock is held on a table",
    "pool-too-small": "too few connections for the load",
    "connection-leak": "connections are not returned to the pool",
    "blocked-loop": "the event loop is blocked by a wait",
    "slow-worker": "one of several processes is slow",
    "retry-storm": "requests time out too soon and are repeated at once",
    "wrong-weights": "a die is loaded",
    "context-lost": "the trace context is not passed on",
    "sampling": "only few traces are recorded",
    "export-failure": "telemetry is not exported, or not stored",
    NOTHING: "everything is as it should be",
}
EVERYONE, SOME, NOBODY = "everyone", "some", "nobody"
IMPACTS = {
    EVERYONE: "every roll fails or takes longer",
    SOME: "some rolls do: those of one die, or at random",
    NOBODY: "no roll does: only the telemetry is affected, or nothing",
}
CRASH_INTERVAL = 11.0  # seconds; long enough that the supervisor does not double its pause before each restart
# The delay of each link without a fault, in seconds, as if the services were on distant machines.
DELAYS = {ROLLER: 0.01, DIE_SERVICE: 0.02, POSTGRES: 0.08}


@dataclass(frozen=True)
class Facets:
    """The properties of a lab that decide which situations are possible.

    Attributes:
        workers: the number of processes of the dice-roller.
        postgres: whether the lab runs a database of its own.
        engines: the names of the engines that run.
    """

    stage: int
    workers: int = 1
    postgres: bool = True
    engines: tuple[str, ...] = ()

    @classmethod
    def of(cls, lab: Lab) -> Facets:
        roller = next(service for service in lab.state["services"] if service["name"] == ROLLER)
        postgres = bool(lab.state.get("postgres", {}).get("pid"))
        return cls(lab.stage, len(roller.get("workers", [0])), postgres, tuple(lab.engines))

    @property
    def components(self) -> tuple[str, ...]:
        """The components that a player can name, in the order of the list."""
        with_postgres = (POSTGRES, DIE_SERVICE_POSTGRES) if self.postgres else ()
        services = (FRONTEND, ROLLER, DIE_SERVICE)
        return (*services, *with_postgres, FRONTEND_ROLLER, ROLLER_DIE_SERVICE, *self.engines, NOTHING)

    @property
    def roller_processes(self) -> tuple[str, ...]:
        return tuple(ROLLER if worker == 1 else f"{ROLLER}-{worker}" for worker in range(1, self.workers + 1))


Parameters = dict[str, Any]
# Injects a fault, given its parameters.
Inject = Callable[[RunDirTarget, Parameters, Facets], Awaitable[None]]
Draw = Callable[[random.Random, Facets, float], Parameters]


@dataclass(frozen=True)
class Situation:
    """One way in which a lab can be broken.

    Attributes:
        name: used in the history, in case files and by ``--only`` of the admission test; never while a game runs.
        component, mechanism, impact: the right answer; the component may be a template of the parameters.
        story: what has happened, told after the game; a template of the parameters.
        telemetry_only: whether no user notices.
        draw: draws the parameters, given a random generator, the lab, and the strength from 0.5 (subtle) to 1.
        inject: injects the fault.
        keep: runs while the fault lasts, such as killing again; cancelled at its end.
        stage, workers, postgres, engines: what the lab must have.
        without: engines that the lab must not have.
        one_process: whether each service must be one process.
        unseen: whether no trace, log line or metric of the services shows the fault.
    """

    name: str
    component: str
    mechanism: str
    impact: str
    story: str
    inject: Inject
    draw: Draw = lambda chance, facets, strength: {}
    keep: Inject | None = None
    telemetry_only: bool = False
    stage: int = 3
    workers: int = 1
    postgres: bool = False
    engines: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    one_process: bool = False
    unseen: bool = False

    def possible(self, facets: Facets) -> bool:
        return (
            facets.stage >= self.stage
            and facets.workers >= self.workers
            and (not self.one_process or facets.workers == 1)
            and (not self.postgres or facets.postgres)
            and set(self.engines) <= set(facets.engines)
            and not set(self.without) & set(facets.engines)
        )

    def where(self, parameters: Mapping[str, Any]) -> str:
        """The component, given the parameters."""
        return self.component.format_map(parameters)


def _switched(**defects: Any) -> Inject:
    """Gives the dice-roller's processes these defects; a value may be a function of the parameters."""
    return _switched_in(lambda parameters, facets: facets.roller_processes, defects)


def _switched_in(names: Callable[[Parameters, Facets], tuple[str, ...]], defects: Mapping[str, Any]) -> Inject:
    async def inject(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
        values = {name: value(parameters) if callable(value) else value for name, value in defects.items()}
        await target.switch(dict.fromkeys(names(parameters, facets), values))

    return inject


def _processes_of(service: str) -> Callable[[Parameters, Facets], tuple[str, ...]]:
    def names(parameters: Parameters, facets: Facets) -> tuple[str, ...]:
        if service == FRONTEND:
            return (FRONTEND,)
        return tuple(service if worker == 1 else f"{service}-{worker}" for worker in range(1, facets.workers + 1))

    return names


def _slow(server: str) -> Inject:
    async def inject(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
        await target.slow(server, DELAYS[server] + float(parameters["seconds"]))

    return inject


def _delay(low: float, high: float) -> Draw:
    def draw(chance: random.Random, facets: Facets, strength: float) -> Parameters:
        return {"seconds": round(chance.uniform(low, high) * strength, 3)}

    return draw


def _hold(name: str) -> Inject:
    async def inject(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
        await target.stop(name)

    return inject


def _hold_everywhere(service: str) -> Inject:
    names = _processes_of(service)

    async def inject(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
        await asyncio.gather(*(target.stop(name) for name in names(parameters, facets)))

    return inject


async def _nothing(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
    pass


async def _lock(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
    await target.lock()


async def _kill(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
    await target.kill(parameters["service"])


async def _kill_again(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
    while True:
        await asyncio.sleep(CRASH_INTERVAL)
        await target.kill(parameters["service"])


def _draw_service(chance: random.Random, facets: Facets, strength: float) -> Parameters:
    return {"service": chance.choice((ROLLER, DIE_SERVICE))}


def _draw_weights(chance: random.Random, facets: Facets, strength: float) -> Parameters:
    die, faces = chance.choice((("fair", range(1, 7)), ("risky", range(2, 8))))
    return {"die": die, "face": chance.choice(list(faces)), "share": round(0.4 + 0.4 * strength, 2)}


def _draw_worker(chance: random.Random, facets: Facets, strength: float) -> Parameters:
    return {"process": chance.choice(facets.roller_processes), "seconds": round(3 * strength, 2)}


def _draw_hop(chance: random.Random, facets: Facets, strength: float) -> Parameters:
    caller, server = chance.choice(((FRONTEND, ROLLER), (ROLLER, DIE_SERVICE)))
    return {"caller": caller, "server": server}


async def _lose_context(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
    names = _processes_of(parameters["caller"])(parameters, facets)
    await target.switch({name: {"no_context": True} for name in names})


async def _full_disk(target: RunDirTarget, parameters: Parameters, facets: Facets) -> None:
    await target.switch({parameters["service"]: {"full_disk": True}})


SITUATIONS: dict[str, Situation] = {
    one.name: one
    for one in (
        Situation(
            "database-down",
            POSTGRES,
            "down",
            EVERYONE,
            "PostgreSQL was stopped and kept down.",
            _hold(POSTGRES),
            stage=5,
            postgres=True,
        ),
        Situation(
            "database-slow",
            DIE_SERVICE_POSTGRES,
            "slow-network",
            EVERYONE,
            "Every answer of the database reached the die-service {seconds:g} s later.",
            _slow(POSTGRES),
            _delay(0.5, 0.9),
            stage=5,
            postgres=True,
        ),
        Situation(
            "table-locked",
            POSTGRES,
            "lock",
            EVERYONE,
            "A lock was held on the table of dice: queries waited, were cancelled, and filled the pool meanwhile.",
            _lock,
            stage=5,
            postgres=True,
        ),
        Situation(
            "pool-too-small",
            DIE_SERVICE,
            "pool-too-small",
            EVERYONE,
            "The die-service's pool had room for one connection instead of ten.",
            _switched_in(_processes_of(DIE_SERVICE), {"pool_size": 1}),
            stage=5,
            postgres=True,
            one_process=True,
        ),
        Situation(
            "connection-leak",
            DIE_SERVICE,
            "connection-leak",
            EVERYONE,
            "The die-service did not return one in {every} of its connections to the pool, until none was left.",
            _switched_in(_processes_of(DIE_SERVICE), {"leak": lambda parameters: parameters["every"]}),
            lambda chance, facets, strength: {"every": chance.randint(4, 8)},
            stage=5,
            postgres=True,
            one_process=True,
        ),
        Situation(
            "die-service-down",
            DIE_SERVICE,
            "down",
            EVERYONE,
            "The die-service was stopped and kept down.",
            _hold_everywhere(DIE_SERVICE),
        ),
        Situation(
            "die-service-slow",
            ROLLER_DIE_SERVICE,
            "slow-network",
            EVERYONE,
            "Every answer of the die-service reached the dice-roller {seconds:g} s later.",
            _slow(DIE_SERVICE),
            _delay(0.6, 1.2),
        ),
        Situation(
            "roller-slow",
            FRONTEND_ROLLER,
            "slow-network",
            EVERYONE,
            "Every answer of the dice-roller reached the frontend {seconds:g} s later.",
            _slow(ROLLER),
            _delay(0.6, 1.2),
        ),
        Situation(
            "crashing",
            "{service}",
            "crashing",
            SOME,
            f"The {{service}} was killed every {CRASH_INTERVAL:g} s; the supervisor started it again.",
            _kill,
            _draw_service,
            keep=_kill_again,
            one_process=True,
        ),
        Situation(
            "blocked-loop",
            ROLLER,
            "blocked-loop",
            EVERYONE,
            "The wait of each roll blocked the dice-roller's event loop, as time.sleep() does.",
            _switched(blocking=True),
        ),
        Situation(
            "slow-worker",
            ROLLER,
            "slow-worker",
            SOME,
            "One of the dice-roller's processes, {process}, took {seconds:g} s longer for each roll.",
            _switched_in(
                lambda parameters, facets: (parameters["process"],),
                {"slow": lambda parameters: parameters["seconds"]},
            ),
            _draw_worker,
            workers=2,
        ),
        Situation(
            "retry-storm",
            ROLLER,
            "retry-storm",
            SOME,
            "The dice-roller gave up many requests to the die-service after 10 ms and repeated them at once, up to five"
            " times.",
            _switched(retry_storm=lambda parameters: {"share": parameters["share"], "seconds": 0.01, "attempts": 5}),
            lambda chance, facets, strength: {"share": round(0.7 + 0.15 * strength, 2)},
        ),
        Situation(
            "wrong-weights",
            ROLLER,
            "wrong-weights",
            SOME,
            "The die {die} was loaded: {share:.0%} of its rolls showed {face}, whatever the others did.",
            _switched(weights=dict),
            _draw_weights,
        ),
        Situation(
            "context-lost",
            "{caller}->{server}",
            "context-lost",
            NOBODY,
            "The {caller} no longer passed the trace context on to the {server}, whose spans began new traces.",
            _lose_context,
            _draw_hop,
            telemetry_only=True,
        ),
        Situation(
            "sampling",
            FRONTEND,
            "sampling",
            NOBODY,
            "The frontend let one trace in a hundred be recorded.",
            _switched_in(_processes_of(FRONTEND), {"sampled": 0.01}),
            telemetry_only=True,
        ),
        Situation(
            "spans-not-written",
            "{service}",
            "export-failure",
            NOBODY,
            "The {service} could not write its spans, as if the disk were full. They came later.",
            _full_disk,
            _draw_service,
            telemetry_only=True,
            without=("tempo",),
            one_process=True,
        ),
        Situation(
            "collector-down",
            "otel-collector",
            "down",
            NOBODY,
            "The OpenTelemetry Collector was stopped; the services kept their spans and sent them later.",
            _hold("otel-collector"),
            telemetry_only=True,
            engines=("otel-collector", "tempo"),
        ),
        Situation(
            "loki-down",
            "loki",
            "down",
            NOBODY,
            "Loki was stopped; Alloy kept the lines and sent them later.",
            _hold("loki"),
            telemetry_only=True,
            engines=("loki", "alloy"),
            unseen=True,
        ),
        Situation(
            "prometheus-down",
            "prometheus",
            "down",
            NOBODY,
            "Prometheus was stopped: nobody scraped the services, and nobody would have been alerted.",
            _hold("prometheus"),
            telemetry_only=True,
            engines=("prometheus",),
            unseen=True,
        ),
        Situation(
            NOTHING,
            NOTHING,
            NOTHING,
            NOBODY,
            "Nothing was wrong.",
            _nothing,
            telemetry_only=True,
            unseen=True,
        ),
    )
}
# Two at once: faults at different places, neither of which hides the other.
PAIRS: tuple[tuple[str, str], ...] = (
    ("die-service-slow", "wrong-weights"),
    ("database-slow", "roller-slow"),
    ("pool-too-small", "wrong-weights"),
    ("roller-slow", "retry-storm"),
    ("database-slow", "context-lost"),
    ("database-slow", "wrong-weights"),
)


@dataclass(frozen=True)
class Fault:
    """A situation with its parameters."""

    situation: Situation
    parameters: Parameters = field(default_factory=dict)

    @property
    def component(self) -> str:
        return self.situation.where(self.parameters)

    @property
    def mechanism(self) -> str:
        return self.situation.mechanism

    @property
    def story(self) -> str:
        return self.situation.story.format_map(self.parameters)
