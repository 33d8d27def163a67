"""The experiments of ``dicelab chaos``: what each one breaks, and what it expects to see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from operator import methodcaller

from lab.chaos.expectations import Expectation, alerts, responses, services, telemetry
from lab.chaos.targets import Target
from lab.client import DIE_SERVICE, FRONTEND, ROLLER

# Seconds. With the second that a request waits for a connection, this stays below the roller's time-out of 4 s. So
# requests fail because there are too many of them, not because one takes too long.
DIE_SERVICE_DELAY = 2.5
DATABASE_DELAY = 0.5  # seconds; below the query time-outs, so that only the number of connections limits the rate
# Seconds within which an alert fires: one that names the cause, and one that names a symptom.
CAUSE_WITHIN = 30.0
SYMPTOM_WITHIN = 45.0
# Seconds of spans that a killed Tempo may lose: it keeps spans in memory for 1.5 s, a service collects them for a
# second, and they take some time on the way.
TEMPO_MEMORY = 4.0
# The share of lines that Alloy may read again after a kill.
READ_AGAIN = 0.05

Step = Callable[[Target], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One way to break a lab.

    Attributes:
        hypothesis: what is expected, in a sentence.
        stage: the first stage that has the part that is broken.
        inject: injects the fault.
        restore: removes the fault; ``None`` where the supervisor restarts the part that was killed.
        expectations: in the order in which they are printed.
        first_alert: one of these alerts fires first; empty where no alert may fire.
        alert_within: seconds from the injection to that alert; a fault that is shorter may end before it.
        needs: the engines that the experiment breaks or queries.
        batches: whether every fourth request is a batch, in a lab that has batches.
        prepare: runs before the steady state.
    """

    hypothesis: str
    stage: int
    inject: Step
    restore: Step | None
    expectations: tuple[Expectation, ...]
    first_alert: tuple[str, ...]
    alert_within: float = CAUSE_WITHIN
    needs: tuple[str, ...] = ()
    batches: bool = False
    prepare: Step | None = None

    @property
    def expected_alert(self) -> Expectation:
        return alerts.first(*self.first_alert, within=self.alert_within, during=self.restore is not None)


EXPERIMENTS: dict[str, Experiment] = {
    "database-down": Experiment(
        hypothesis=(
            "The database is down: rolls are refused at once with 503, nothing hangs or restarts, and rolls succeed"
            " again as soon as it is back."
        ),
        stage=5,
        inject=lambda target: target.stop("postgres"),
        restore=lambda target: target.start("postgres"),
        expectations=(
            responses.only("200", "503"),
            responses.mostly("503", 0.95),
            responses.refused_promptly(),
            responses.none_hangs(5),
            responses.back_within(2),
            services.not_ready(DIE_SERVICE, FRONTEND),
            services.grows(DIE_SERVICE, "database_queries_total", result="error"),
            services.is_seen(DIE_SERVICE, "database_connection_pool_size", 0),
            services.grows(ROLLER, "die_service_requests_total", status="503"),
            telemetry.logged(DIE_SERVICE, "ERROR", "Database connection failed"),
            telemetry.logged(DIE_SERVICE, "INFO", "Database connected"),
            telemetry.span_failed(DIE_SERVICE, "GET /dice"),
            alerts.raised("HighErrorRatio"),
            services.pool_is_right_again(),
            services.same_processes("postgres"),
            services.memory_is_back(DIE_SERVICE, ROLLER, FRONTEND),
        ),
        first_alert=("DatabaseDown",),
    ),
    "database-slow": Experiment(
        hypothesis=(
            "Every response of the database takes half a second longer: ten connections serve twenty queries a second,"
            " and queries beyond that are refused after they have waited a second."
        ),
        stage=5,
        inject=lambda target: target.slow("postgres", DATABASE_DELAY),
        restore=lambda target: target.slow("postgres", 0),
        expectations=(
            responses.only("200", "503"),
            responses.none_hangs(5),
            responses.back_within(2),
            services.mean_at_least(DIE_SERVICE, "database_query_duration_seconds", DATABASE_DELAY),
            services.is_seen(DIE_SERVICE, "database_connection_pool_available", 0),
            services.grows(DIE_SERVICE, "database_queries_total", result="error"),
            telemetry.logged(DIE_SERVICE, "WARNING", "Connection pool exhausted"),
            telemetry.span_lasts(DIE_SERVICE, "SELECT", DATABASE_DELAY),
            telemetry.span_failed(DIE_SERVICE, "GET /dice"),
            alerts.raised("HighErrorRatio"),
            alerts.raised("DatabasePoolExhausted", 45),
            services.pool_is_right_again(),
            services.same_processes(),
            services.memory_is_back(DIE_SERVICE, ROLLER, FRONTEND),
        ),
        first_alert=("DatabasePoolExhausted", "HighErrorRatio"),
        alert_within=SYMPTOM_WITHIN,
        prepare=lambda target: target.slow("postgres", 0),
    ),
    "die-service-down": Experiment(
        hypothesis=(
            "The die-service is down: the roller refuses every roll at once with 503, and rolls again when it is back."
        ),
        stage=3,
        inject=lambda target: target.stop(DIE_SERVICE),
        restore=lambda target: target.start(DIE_SERVICE),
        expectations=(
            responses.only("200", "503"),
            responses.mostly("503", 0.95),
            responses.refused_promptly(),
            responses.none_hangs(5),
            responses.back_within(10),
            services.not_ready(ROLLER, FRONTEND),
            services.grows(ROLLER, "die_service_requests_total", status="connection_error"),
            services.grows(FRONTEND, "streamlit_requests_total", status_code="503"),
            telemetry.logged(ROLLER, "WARNING", "Die service error", die_service_status="connection_error"),
            telemetry.logged(FRONTEND, "ERROR", "Backend failed"),
            telemetry.span_failed(ROLLER, "GET"),
            alerts.raised("HighErrorRatio"),
            services.same_processes(DIE_SERVICE),
            services.memory_is_back(ROLLER, FRONTEND),
        ),
        first_alert=("ServiceDown",),
    ),
    "die-service-slow": Experiment(
        hypothesis=(
            "Every response of the die-service takes 2.5 seconds longer: the roller's hundred connections serve 40"
            " rolls a second, and once all are in use it refuses further rolls at once."
        ),
        stage=3,
        inject=lambda target: target.slow(DIE_SERVICE, DIE_SERVICE_DELAY),
        restore=lambda target: target.slow(DIE_SERVICE, 0),
        expectations=(
            responses.only("200", "503"),
            responses.sheds(0.9),
            responses.none_hangs(7),
            responses.back_within(2),
            services.mean_at_least(ROLLER, "die_service_request_duration_seconds", 0.8),
            telemetry.logged(ROLLER, "WARNING", "Die service error", die_service_status="connection_error"),
            telemetry.span_lasts(ROLLER, "GET", DIE_SERVICE_DELAY),
            telemetry.span_failed(ROLLER, "GET /roll"),
            alerts.raised("HighLatency"),
            services.same_processes(),
            services.memory_is_back(ROLLER, FRONTEND),
        ),
        first_alert=("HighLatency", "HighErrorRatio"),
        alert_within=SYMPTOM_WITHIN,
        prepare=lambda target: target.slow(DIE_SERVICE, 0),
    ),
    "pool-exhausted": Experiment(
        hypothesis=(
            "A lock is held on the table of dice: queries wait, are cancelled after two seconds, and meanwhile occupy"
            " every connection; requests that get no connection are refused after a second."
        ),
        stage=5,
        inject=lambda target: target.lock(),
        restore=lambda target: target.unlock(),
        expectations=(
            responses.only("200", "503", "504"),
            responses.none_hangs(6),
            responses.back_within(3),
            services.is_seen(DIE_SERVICE, "database_connection_pool_available", 0),
            services.grows(DIE_SERVICE, "database_queries_total", result="error"),
            telemetry.logged(DIE_SERVICE, "WARNING", "Connection pool exhausted"),
            telemetry.logged(DIE_SERVICE, "ERROR", "Query failed"),
            telemetry.span_failed(DIE_SERVICE, "SELECT", "504"),
            telemetry.span_failed(DIE_SERVICE, "GET /dice", "503"),
            alerts.raised("HighErrorRatio"),
            alerts.raised("DatabasePoolExhausted", 45),
            services.pool_is_right_again(),
            services.same_processes(),
            services.memory_is_back(DIE_SERVICE, ROLLER, FRONTEND),
        ),
        first_alert=("DatabasePoolExhausted", "HighErrorRatio"),
        alert_within=SYMPTOM_WITHIN,
    ),
    "roller-killed": Experiment(
        hypothesis=(
            "The roller is killed: requests in flight and new ones are refused at once until the supervisor has"
            " restarted it, which is too soon for an alert."
        ),
        stage=2,
        inject=lambda target: target.kill(ROLLER),
        restore=None,
        expectations=(
            responses.only("200", "503"),
            responses.refused_promptly(),
            responses.none_hangs(5),
            responses.back_within(2),
            services.grows(FRONTEND, "streamlit_requests_total", status_code="503"),
            telemetry.logged(FRONTEND, "ERROR", "Backend failed"),
            telemetry.logged(ROLLER, "INFO", "Dice roller started"),
            telemetry.span_failed(FRONTEND, "GET"),
            services.same_processes(ROLLER),
            services.memory_is_back(FRONTEND),
        ),
        first_alert=(),
    ),
}


@dataclass(frozen=True, kw_only=True)
class BreakableEngine:
    """An engine that experiments break, while users notice nothing.

    Attributes:
        name: the name of its process.
        stage: the first stage that has the signal it carries.
        needs: the engines that show what happened to the telemetry.
        outcome: what happens to the telemetry, in words.
        expectations: about the telemetry, for every fault without an entry below.
        killed: the expectations for a kill, where that loses the data in memory.
        killed_alert: the alert that a kill raises; empty where the engine restarts too fast for one.
    """

    name: str
    stage: int
    needs: tuple[str, ...]
    outcome: str
    expectations: tuple[Expectation, ...]
    killed: tuple[Expectation, ...] | None = None
    killed_alert: tuple[str, ...] = ()


ENGINES = {
    "collector": BreakableEngine(
        name="otel-collector",
        stage=1,
        needs=("otel-collector", "tempo"),
        outcome="spans wait in the services and arrive later",
        expectations=(telemetry.traces_lost(), telemetry.none_dropped()),
    ),
    "tempo": BreakableEngine(
        name="tempo",
        stage=1,
        needs=("tempo", "otel-collector"),
        outcome="spans wait in the Collector and arrive later",
        expectations=(telemetry.traces_lost(), telemetry.none_dropped()),
        killed=(telemetry.traces_lost(TEMPO_MEMORY), telemetry.none_dropped()),
        killed_alert=("TempoRestarted",),
    ),
    "loki": BreakableEngine(
        name="loki",
        stage=1,
        needs=("loki", "alloy"),
        outcome="log lines wait in the files and arrive later, each once",
        expectations=(telemetry.lines_arrive(), telemetry.none_dropped()),
    ),
    "alloy": BreakableEngine(
        name="alloy",
        stage=1,
        needs=("loki", "alloy"),
        outcome="log lines wait in the files and arrive later",
        expectations=(telemetry.lines_arrive(), telemetry.none_dropped()),
        killed=(telemetry.lines_arrive(doubled=READ_AGAIN), telemetry.none_dropped()),
    ),
    "prometheus": BreakableEngine(
        name="prometheus",
        stage=2,
        needs=("prometheus",),
        outcome="its counters lack no roll afterwards",
        expectations=(
            telemetry.counters_catch_up(FRONTEND, "roll_requests_total", outcome="success"),
            telemetry.none_dropped(),
        ),
    ),
}


# The faults of an engine, each with its description and the methods of Target that inject and remove it. A kill is not
# removed: the supervisor restarts the engine.
WAYS = {
    "down": ("is down", "stop", "start"),
    "killed": ("is killed", "kill", ""),
    "frozen": ("is frozen: its connections stay open and nothing answers", "freeze", "thaw"),
    "disk-full": ("has no space left on its disk", "fill", "empty"),
}


def _of_engine(name: str, how: str) -> Experiment:
    """The experiment that breaks an engine: ``down``, ``killed``, ``frozen`` or ``disk-full``."""
    engine = ENGINES[name]
    expectations = engine.expectations
    # While Prometheus itself does not evaluate its rules, no alert can fire.
    alerts: tuple[str, ...] = () if name == "prometheus" else ("ServiceDown",)
    changed = (engine.name,) if how in ("down", "killed") else ()
    if how == "killed":
        expectations, alerts = engine.killed or expectations, engine.killed_alert
    elif how == "disk-full":
        alerts = ()
    broken, inject, restore = WAYS[how]
    subject = "The Collector" if name == "collector" else name.capitalize()
    return Experiment(
        hypothesis=f"{subject} {broken}. Rolls are not affected; {engine.outcome}.",
        stage=engine.stage,
        inject=methodcaller(inject, engine.name),
        restore=methodcaller(restore, engine.name) if restore else None,
        expectations=(
            responses.only("200"),
            responses.unaffected(),
            *expectations,
            services.same_processes(*changed),
        ),
        first_alert=alerts,
        needs=engine.needs,
        batches=True,
    )


EXPERIMENTS |= {f"{engine}-{how}": _of_engine(engine, how) for engine in ENGINES for how in WAYS}


async def _tempo_with_space_again(target: Target) -> None:
    await target.empty("tempo")
    await target.kill("tempo")  # once a write has failed, Tempo recovers by a restart only


EXPERIMENTS["tempo-disk-full"] = replace(
    EXPERIMENTS["tempo-disk-full"],
    hypothesis="Tempo has no space left on its disk. Rolls are not affected; it goes on receiving spans and loses them,"
    " until it has space again and is restarted.",
    restore=_tempo_with_space_again,
    expectations=(
        responses.only("200"),
        responses.unaffected(),
        telemetry.traces_lost(TEMPO_MEMORY, meanwhile=True),
        telemetry.none_dropped(),
        services.same_processes("tempo"),
    ),
    first_alert=("TracesNotStored", "PipelineLoss", "TempoRestarted"),
    alert_within=300.0,  # TracesNotStored fires after three minutes without a new block
)
