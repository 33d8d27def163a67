"""The experiments of ``dicelab chaos``: what each one breaks, and what it expects to see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lab.chaos import expectations as expect
from lab.chaos.expectations import Expectation
from lab.chaos.targets import Target
from lab.client import DIE_SERVICE, FRONTEND, ROLLER

# Seconds. With the second that a request waits for a connection this stays below the roller's time-out of 4, so that
# requests fail only because there are too many of them.
DIE_SERVICE_DELAY = 2.5
DATABASE_DELAY = 0.5  # seconds; below the time-outs of a query, so that only the number of connections limits
# Seconds within which an alert fires: one that names the cause, and one that names a symptom.
CAUSE_WITHIN = 30.0
SYMPTOM_WITHIN = 45.0
# Seconds: how long Tempo keeps spans in memory, a second for which a service collects spans, and some time on the way.
TEMPO_MEMORY = 4.0
# The share of lines that Alloy may read again after a kill.
READ_AGAIN = 0.05

Step = Callable[[Target], Awaitable[None]]


@dataclass(frozen=True)
class Experiment:
    """One way to break a lab.

    Attributes:
        hypothesis: what is expected, in a sentence.
        stage: the first stage that has what is broken.
        inject, restore: put the fault in, take it out; ``None`` if the supervisor restarts what was killed.
        expectations: in the order in which they are printed.
        first_alert: the alerts of which one fires first; empty: none fires.
        alert_within: seconds after the injection; the fault has to last as long, unless it restarts by itself.
        needs: the engines that it breaks or reads.
        prepare: what must be in place before the steady state.
    """

    hypothesis: str
    stage: int
    inject: Step
    restore: Step | None
    expectations: tuple[Expectation, ...]
    first_alert: tuple[str, ...]
    alert_within: float = CAUSE_WITHIN
    needs: tuple[str, ...] = ()
    prepare: Step | None = None

    @property
    def expected_alert(self) -> Expectation:
        return expect.first_alert(*self.first_alert, within=self.alert_within, during=self.restore is not None)


EXPERIMENTS: dict[str, Experiment] = {
    "database-down": Experiment(
        "The database is down: rolls are refused at once with 503, nothing hangs or restarts, and rolls succeed again"
        " as soon as it is back.",
        5,
        lambda target: target.stop("postgres"),
        lambda target: target.start("postgres"),
        (
            expect.only("200", "503"),
            expect.mostly("503", 0.95),
            expect.refused_promptly(),
            expect.none_hangs(5),
            expect.back_within(2),
            expect.not_ready(DIE_SERVICE, FRONTEND),
            expect.grows(DIE_SERVICE, "database_queries_total", result="error"),
            expect.is_seen(DIE_SERVICE, "database_connection_pool_size", 0),
            expect.grows(ROLLER, "die_service_requests_total", status="503"),
            expect.logged(DIE_SERVICE, "ERROR", "Database connection failed"),
            expect.logged(DIE_SERVICE, "INFO", "Database connected"),
            expect.span_failed(DIE_SERVICE, "GET /dice"),
            expect.alert("HighErrorRatio"),
            expect.pool_is_right_again(),
            expect.same_processes("postgres"),
            expect.memory_is_back(DIE_SERVICE, ROLLER, FRONTEND),
        ),
        ("DatabaseDown",),
    ),
    "database-slow": Experiment(
        "Every answer of the database takes half a second longer: ten connections serve twenty queries a second, and"
        " queries beyond that are refused after they have waited a second.",
        5,
        lambda target: target.slow("postgres", DATABASE_DELAY),
        lambda target: target.slow("postgres", 0),
        (
            expect.only("200", "503"),
            expect.none_hangs(5),
            expect.back_within(2),
            expect.mean_at_least(DIE_SERVICE, "database_query_duration_seconds", DATABASE_DELAY),
            expect.is_seen(DIE_SERVICE, "database_connection_pool_available", 0),
            expect.grows(DIE_SERVICE, "database_queries_total", result="error"),
            expect.logged(DIE_SERVICE, "WARNING", "Connection pool exhausted"),
            expect.span_lasts(DIE_SERVICE, "SELECT", DATABASE_DELAY),
            expect.span_failed(DIE_SERVICE, "GET /dice"),
            expect.alert("HighErrorRatio"),
            expect.alert("DatabasePoolExhausted", 45),
            expect.pool_is_right_again(),
            expect.same_processes(),
            expect.memory_is_back(DIE_SERVICE, ROLLER, FRONTEND),
        ),
        ("DatabasePoolExhausted", "HighErrorRatio"),
        alert_within=SYMPTOM_WITHIN,
        prepare=lambda target: target.slow("postgres", 0),
    ),
    "die-service-down": Experiment(
        "The die-service is down: the roller refuses every roll at once with 503, and rolls again when it is back.",
        3,
        lambda target: target.stop(DIE_SERVICE),
        lambda target: target.start(DIE_SERVICE),
        (
            expect.only("200", "503"),
            expect.mostly("503", 0.95),
            expect.refused_promptly(),
            expect.none_hangs(5),
            expect.back_within(10),
            expect.not_ready(ROLLER, FRONTEND),
            expect.grows(ROLLER, "die_service_requests_total", status="connection_error"),
            expect.grows(FRONTEND, "streamlit_requests_total", status_code="503"),
            expect.logged(ROLLER, "WARNING", "Die service error", die_service_status="connection_error"),
            expect.logged(FRONTEND, "ERROR", "Backend failed"),
            expect.span_failed(ROLLER, "GET"),
            expect.alert("HighErrorRatio"),
            expect.same_processes(DIE_SERVICE),
            expect.memory_is_back(ROLLER, FRONTEND),
        ),
        ("ServiceDown",),
    ),
    "die-service-slow": Experiment(
        "Every answer of the die-service takes 2.5 seconds longer: the roller's hundred connections serve 40 rolls a"
        " second, and once all are in use it refuses further rolls at once.",
        3,
        lambda target: target.slow(DIE_SERVICE, DIE_SERVICE_DELAY),
        lambda target: target.slow(DIE_SERVICE, 0),
        (
            expect.only("200", "503"),
            expect.sheds(0.9),
            expect.none_hangs(7),
            expect.back_within(2),
            expect.mean_at_least(ROLLER, "die_service_request_duration_seconds", 0.8),
            expect.logged(ROLLER, "WARNING", "Die service error", die_service_status="connection_error"),
            expect.span_lasts(ROLLER, "GET", DIE_SERVICE_DELAY),
            expect.span_failed(ROLLER, "GET /roll"),
            expect.alert("HighLatency"),
            expect.same_processes(),
            expect.memory_is_back(ROLLER, FRONTEND),
        ),
        ("HighLatency", "HighErrorRatio"),
        alert_within=SYMPTOM_WITHIN,
        prepare=lambda target: target.slow(DIE_SERVICE, 0),
    ),
    "collector-down": Experiment(
        "The OpenTelemetry Collector is down: rolls are not affected; spans wait in the services and arrive later.",
        1,
        lambda target: target.stop("otel-collector"),
        lambda target: target.start("otel-collector"),
        (
            expect.only("200"),
            expect.unaffected(),
            expect.trace_arrives(),
            expect.none_dropped(),
            expect.same_processes("otel-collector"),
        ),
        ("ServiceDown",),
        needs=("otel-collector", "tempo"),
    ),
    "pool-exhausted": Experiment(
        "A lock is held on the table of dice: queries wait, are cancelled after two seconds, and meanwhile occupy"
        " every connection; requests that get no connection are refused after a second.",
        5,
        lambda target: target.lock(),
        lambda target: target.unlock(),
        (
            expect.only("200", "503", "504"),
            expect.none_hangs(6),
            expect.back_within(3),
            expect.is_seen(DIE_SERVICE, "database_connection_pool_available", 0),
            expect.grows(DIE_SERVICE, "database_queries_total", result="error"),
            expect.logged(DIE_SERVICE, "WARNING", "Connection pool exhausted"),
            expect.logged(DIE_SERVICE, "ERROR", "Query failed"),
            expect.span_failed(DIE_SERVICE, "SELECT", "504"),
            expect.span_failed(DIE_SERVICE, "GET /dice", "503"),
            expect.alert("HighErrorRatio"),
            expect.alert("DatabasePoolExhausted", 45),
            expect.pool_is_right_again(),
            expect.same_processes(),
            expect.memory_is_back(DIE_SERVICE, ROLLER, FRONTEND),
        ),
        ("DatabasePoolExhausted", "HighErrorRatio"),
        alert_within=SYMPTOM_WITHIN,
    ),
    "roller-killed": Experiment(
        "The roller is killed: requests in flight and new ones are refused at once until the supervisor has restarted"
        " it, which is too soon for an alert.",
        2,
        lambda target: target.kill(ROLLER),
        None,
        (
            expect.only("200", "503"),
            expect.refused_promptly(),
            expect.none_hangs(5),
            expect.back_within(2),
            expect.grows(FRONTEND, "streamlit_requests_total", status_code="503"),
            expect.logged(FRONTEND, "ERROR", "Backend failed"),
            expect.logged(ROLLER, "INFO", "Dice roller started"),
            expect.span_failed(FRONTEND, "GET"),
            expect.same_processes(ROLLER),
            expect.memory_is_back(FRONTEND),
        ),
        (),
    ),
    "tempo-killed": Experiment(
        "Tempo is killed: rolls are not affected; spans that it held in memory, of the last seconds, are lost and"
        " counted nowhere, which is why an alert tells of its restart.",
        1,
        lambda target: target.kill("tempo"),
        None,
        (
            expect.only("200"),
            expect.unaffected(),
            expect.traces_lost(TEMPO_MEMORY),
            expect.none_dropped(),
            expect.same_processes("tempo"),
        ),
        ("TempoRestarted",),
        needs=("tempo",),
    ),
    "loki-down": Experiment(
        "Loki is down: rolls are not affected; log lines wait in the files and arrive later, each once.",
        1,
        lambda target: target.stop("loki"),
        lambda target: target.start("loki"),
        (
            expect.only("200"),
            expect.unaffected(),
            expect.lines_arrive(),
            expect.none_dropped(),
            expect.same_processes("loki"),
        ),
        ("ServiceDown",),
        needs=("loki", "alloy"),
    ),
    "alloy-killed": Experiment(
        "Alloy is killed: rolls are not affected; it reads on where it had stopped, and no log line is lost. Lines that"
        " it reads again are there twice only where Loki has stored them meanwhile.",
        1,
        lambda target: target.kill("alloy"),
        None,
        (
            expect.only("200"),
            expect.unaffected(),
            expect.lines_arrive(doubled=READ_AGAIN),
            expect.none_dropped(),
            expect.same_processes("alloy"),
        ),
        (),
        needs=("loki", "alloy"),
    ),
    "prometheus-down": Experiment(
        "Prometheus is down: rolls are not affected, and nobody is alerted meanwhile; its counters lack no roll"
        " afterwards, and the gap raises no alert.",
        2,
        lambda target: target.stop("prometheus"),
        lambda target: target.start("prometheus"),
        (
            expect.only("200"),
            expect.unaffected(),
            expect.counters_catch_up(FRONTEND, "roll_requests_total", outcome="success"),
            expect.none_dropped(),
            expect.same_processes("prometheus"),
        ),
        (),
        needs=("prometheus",),
    ),
}
