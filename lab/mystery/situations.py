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
    "slow-network": "every response on a link takes longer",
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


@dataclass(frozen=True, kw_only=True)
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
            name="database-down",
            component=POSTGRES,
            mechanism="down",
            impact=EVERYONE,
            story="PostgreSQL was stopped and kept down.",
            inject=_hold(POSTGRES),
            stage=5,
            postgres=True,
        ),
        Situation(
            name="database-slow",
            component=DIE_SERVICE_POSTGRES,
            mechanism="slow-network",
            impact=EVERYONE,
            story="Every response of the database reached the die-service {seconds:g} s later.",
            inject=_slow(POSTGRES),
            draw=_delay(0.5, 0.9),
            stage=5,
            postgres=True,
        ),
        Situation(
            name="table-locked",
            component=POSTGRES,
            mechanism="lock",
            impact=EVERYONE,
            story=(
                "A lock was held on the table of dice: queries waited, were cancelled, and filled the pool meanwhile."
            ),
            inject=_lock,
            stage=5,
            postgres=True,
        ),
        Situation(
            name="pool-too-small",
            component=DIE_SERVICE,
            mechanism="pool-too-small",
            impact=EVERYONE,
            story="The die-service's pool had room for one connection instead of ten.",
            inject=_switched_in(_processes_of(DIE_SERVICE), {"pool_size": 1}),
            stage=5,
            postgres=True,
            one_process=True,
        ),
        Situation(
            name="connection-leak",
            component=DIE_SERVICE,
            mechanism="connection-leak",
            impact=EVERYONE,
            story="The die-service did not return one in {every} of its connections to the pool, until none was left.",
            inject=_switched_in(_processes_of(DIE_SERVICE), {"leak": lambda parameters: parameters["every"]}),
            draw=lambda chance, facets, strength: {"every": chance.randint(4, 8)},
            stage=5,
            postgres=True,
            one_process=True,
        ),
        Situation(
            name="die-service-down",
            component=DIE_SERVICE,
            mechanism="down",
            impact=EVERYONE,
            story="The die-service was stopped and kept down.",
            inject=_hold_everywhere(DIE_SERVICE),
        ),
        Situation(
            name="die-service-slow",
            component=ROLLER_DIE_SERVICE,
            mechanism="slow-network",
            impact=EVERYONE,
            story="Every response of the die-service reached the dice-roller {seconds:g} s later.",
            inject=_slow(DIE_SERVICE),
            draw=_delay(0.6, 1.2),
        ),
        Situation(
            name="roller-slow",
            component=FRONTEND_ROLLER,
            mechanism="slow-network",
            impact=EVERYONE,
            story="Every response of the dice-roller reached the frontend {seconds:g} s later.",
            inject=_slow(ROLLER),
            draw=_delay(0.6, 1.2),
        ),
        Situation(
            name="crashing",
            component="{service}",
            mechanism="crashing",
            impact=SOME,
            story=f"The {{service}} was killed every {CRASH_INTERVAL:g} s; the supervisor started it again.",
            inject=_kill,
            draw=_draw_service,
            keep=_kill_again,
            one_process=True,
        ),
        Situation(
            name="blocked-loop",
            component=ROLLER,
            mechanism="blocked-loop",
            impact=EVERYONE,
            story="The wait of each roll blocked the dice-roller's event loop, as time.sleep() does.",
            inject=_switched(blocking=True),
        ),
        Situation(
            name="slow-worker",
            component=ROLLER,
            mechanism="slow-worker",
            impact=SOME,
            story="One of the dice-roller's processes, {process}, took {seconds:g} s longer for each roll.",
            inject=_switched_in(
                lambda parameters, facets: (parameters["process"],),
                {"slow": lambda parameters: parameters["seconds"]},
            ),
            draw=_draw_worker,
            workers=2,
        ),
        Situation(
            name="retry-storm",
            component=ROLLER,
            mechanism="retry-storm",
            impact=SOME,
            story=(
                "The dice-roller gave up many requests to the die-service after 10 ms and repeated them at once, up to"
                " five times."
            ),
            inject=_switched(
                retry_storm=lambda parameters: {"share": parameters["share"], "seconds": 0.01, "attempts": 5}
            ),
            draw=lambda chance, facets, strength: {"share": round(0.7 + 0.15 * strength, 2)},
        ),
        Situation(
            name="wrong-weights",
            component=ROLLER,
            mechanism="wrong-weights",
            impact=SOME,
            story="The die {die} was loaded: {share:.0%} of its rolls showed {face}, whatever the others did.",
            inject=_switched(weights=dict),
            draw=_draw_weights,
        ),
        Situation(
            name="context-lost",
            component="{caller}->{server}",
            mechanism="context-lost",
            impact=NOBODY,
            story="The {caller} no longer passed the trace context on to the {server}, whose spans began new traces.",
            inject=_lose_context,
            draw=_draw_hop,
            telemetry_only=True,
        ),
        Situation(
            name="sampling",
            component=FRONTEND,
            mechanism="sampling",
            impact=NOBODY,
            story="The frontend let one trace in a hundred be recorded.",
            inject=_switched_in(_processes_of(FRONTEND), {"sampled": 0.01}),
            telemetry_only=True,
        ),
        Situation(
            name="spans-not-written",
            component="{service}",
            mechanism="export-failure",
            impact=NOBODY,
            story="The {service} could not write its spans, as if the disk were full. They came later.",
            inject=_full_disk,
            draw=_draw_service,
            telemetry_only=True,
            without=("tempo",),
            one_process=True,
        ),
        Situation(
            name="collector-down",
            component="otel-collector",
            mechanism="down",
            impact=NOBODY,
            story="The OpenTelemetry Collector was stopped; the services kept their spans and sent them later.",
            inject=_hold("otel-collector"),
            telemetry_only=True,
            engines=("otel-collector", "tempo"),
        ),
        Situation(
            name="loki-down",
            component="loki",
            mechanism="down",
            impact=NOBODY,
            story="Loki was stopped; Alloy kept the lines and sent them later.",
            inject=_hold("loki"),
            telemetry_only=True,
            engines=("loki", "alloy"),
            unseen=True,
        ),
        Situation(
            name="prometheus-down",
            component="prometheus",
            mechanism="down",
            impact=NOBODY,
            story="Prometheus was stopped: nobody scraped the services, and nobody would have been alerted.",
            inject=_hold("prometheus"),
            telemetry_only=True,
            engines=("prometheus",),
            unseen=True,
        ),
        Situation(
            name=NOTHING,
            component=NOTHING,
            mechanism=NOTHING,
            impact=NOBODY,
            story="Nothing was wrong.",
            inject=_nothing,
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
