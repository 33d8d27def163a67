"""Stage 5: spans of SQL, the connection pool, slow queries, a hypothesis about a fault."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lab import LabError
from lab.client import DIE_SERVICE, FRONTEND
from lab.learn import promql
from lab.learn.exercise import Answered, Exercise, Facts, Mistake, Verdict
from lab.learn.forms import Fields, Items, Moment, Number, Text, Word
from lab.learn.lesson import TIMEOUT, Lesson, Outcome
from lab.learn.stage1 import EXTREME, FAIR
from lab.signals import format_time, total
from lab.supervise.stages import POSTGRES
from lab.waiting import within


def _own_database(lesson: Lesson) -> None:
    if not lesson.lab.state.get("postgres", {}).get("pid"):
        raise LabError("this exercise needs a database that the lab has started; this one uses another (DATABASE_URL)")


# --- 5.1 ---


async def a_visit(lesson: Lesson) -> Facts:
    trace_id = lesson.trace_id()
    singles, times = lesson.chance.randint(2, 6), lesson.chance.randint(8, 20)
    before = total(await lesson.lab.fetch_samples(DIE_SERVICE), "database_queries_total")
    for _ in range(singles):
        await lesson.ask("/roll", {"die": FAIR}, trace_id=trace_id)
    await lesson.ask("/roll-async", {"die": FAIR, "times": str(times)}, trace_id=trace_id)
    queries = int(total(await lesson.lab.fetch_samples(DIE_SERVICE), "database_queries_total") - before)
    async for _ in within(TIMEOUT, 0.3):
        spans = (await lesson.arrived([trace_id])).get(trace_id, [])
        if sum(span.name == "SELECT" for span in spans) >= queries:
            break
    return lesson.facts(trace=trace_id, singles=singles, times=times, queries=queries, each=singles + times)


SQL_SPANS = Exercise(
    number="5.1",
    title="SQL spans: how often, and with what in them?",
    by="the page, jq, SQL, Tempo",
    question="""\
Trace {trace} is the whole visit of one user: {singles} single rolls of the die "fair", and a batch of {times}.

How many times was the database queried, and does the statement in the span (db.query.text) contain the name of the die?
Answer with the number, and yes or no.""",
    form=Fields(
        queries=Number("the number of SELECTs", whole=True),
        contains=Word("yes or no", ("yes", "no")),
    ),
    prepare=a_visit,
    reference=Answered(lambda facts: f"{facts['queries']} no"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['each']} no",
            name="one query for each roll",
            hint="That would be one query for each roll. A batch asks for its die once and rolls it many times: count"
            " the SELECT spans.",
        ),
        Mistake(
            lambda facts: f"{facts['queries']} yes",
            name="the parameter is taken for part of the statement",
            hint="Look at db.query.text again: the value is a placeholder, %s. The instrumentation records the"
            " statement as the program wrote it, and the driver sends the values beside it.",
        ),
    ),
    hint="Count the spans named SELECT of the die-service in this trace, and read their attribute db.query.text.",
    solution="""\
    dicelab sql "SELECT attributes['db.query.text'] AS statement, count(*) AS times FROM spans
      WHERE trace_id = '{trace}' AND name = 'SELECT' GROUP BY ALL"

{queries} statements, each with the placeholder %s. The counter database_queries_total grew by as much. Parameters are
left out of spans on purpose: they may be passwords or names, and one text for all values can be grouped by. What this
automatic instrumentation does not show either: the time a query waited for a connection, before it was sent.""",
)

# --- 5.2 ---

POOL_TIMEOUT = 0.2  # seconds
LOAD_SECONDS = 3.5


@asynccontextmanager
async def _slow_database(lesson: Lesson, size: int, seconds: float) -> AsyncIterator[None]:
    """A die-service with a pool of this size, and a database whose responses take ``seconds`` longer."""
    async with lesson.faults() as target:
        await target.slow(POSTGRES, 0)
        await target.restart({DIE_SERVICE: {"DB_POOL_SIZE": str(size), "DB_POOL_TIMEOUT": str(POOL_TIMEOUT)}})
        await lesson.ready()
        await target.slow(POSTGRES, seconds)
        yield


async def _get(lesson: Lesson) -> Outcome:
    return await lesson.ask("/dice", {"identifier": FAIR}, url=lesson.lab.url(DIE_SERVICE))


async def a_slow_database(lesson: Lesson) -> Facts:
    _own_database(lesson)
    seconds = lesson.chance.randint(200, 300) / 1000
    size = lesson.chance.randint(3, 5)
    began = time.time()
    async with _slow_database(lesson, 10, seconds):
        await asyncio.gather(*(_get(lesson) for _ in range(8)))
    # A rate between the limits of two pool sizes, far from both.
    rate = round((size - 0.5) / seconds, 1)
    return lesson.facts(began=format_time(began), rate=rate, size=size, seconds=seconds, requests=8, below=size - 1)


async def _exhausted(lesson: Lesson, size: int, facts: Facts) -> tuple[int, int]:
    """How many requests found no connection in a pool of this size, and how many there were."""
    async with _slow_database(lesson, size, facts["seconds"]):
        tasks = []
        for _ in range(round(facts["rate"] * LOAD_SECONDS)):
            tasks.append(asyncio.ensure_future(_get(lesson)))
            await asyncio.sleep(1 / facts["rate"])
        outcomes = await asyncio.gather(*tasks)
    return sum(one.status != 200 for one in outcomes), len(outcomes)


async def _judge_pool(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
    _own_database(lesson)
    size = int(exercise.form.parse(answer))
    too_small, too_large = exercise.mistakes
    if not 1 <= size <= 1000:
        raise LabError(f"{size} is not from 1 to 1000 connections")
    if size > 1:
        refused, requests = await _exhausted(lesson, size - 1, facts)
        if not refused:
            return Verdict(False, f"A pool of {size - 1} was enough for {requests} requests as well. {too_large.hint}")
    refused, requests = await _exhausted(lesson, size, facts)
    if refused:
        return Verdict(False, f"A pool of {size} refused {refused} of {requests} requests. {too_small.hint}")
    return Verdict(True, f"Right: a pool of {size} served all {requests} requests, and one of {size - 1} did not.")


POOL = Exercise(
    number="5.2",
    title="The connection pool: how small can it be?",
    by="the page, jq, SQL, PromQL, then a check by load",
    question="""\
The network to the database was slow for a moment, and {requests} requests to the die-service were made at {began}.
Their queries show how long a connection was in use for each: in the log lines "Query executed" of the die-service
(db_query_duration_ms), in its SELECT spans, in database_query_duration_seconds.

Suppose that the network stays so slow, and that {rate:g} requests a second arrive at equal intervals. What is the
smallest DB_POOL_SIZE with which none of them has to wait for more than 0.2 s for a connection?
(Your answer is tried out with real load; that takes up to a quarter of a minute.)""",
    form=Number("a whole number of connections", whole=True),
    prepare=a_slow_database,
    reference=Answered(lambda facts: str(facts["size"])),
    mistakes=(
        Mistake(
            lambda facts: str(facts["below"]),
            name="rounded down",
            hint="Too small. Little's law: the connections in use on average are the rate times the time for which"
            " each is used. A pool smaller than that is overloaded, and the queue grows without end: round up.",
        ),
        Mistake(
            lambda facts: str(round(facts["rate"])),
            name="a connection for each request in a second",
            hint="Too large. A connection is free again after each query, so it serves several requests a second:"
            " multiply the rate by the time for which a query uses it.",
        ),
    ),
    hint="Multiply the rate by the duration of one query, and round up.",
    solution="""\
Little's law: connections in use = rate x time in use = {rate:g} x about {seconds} = about {below}.5, so {size}.

    dicelab sql "SELECT db_query_duration_ms FROM lines
      WHERE timestamp >= '{began}' AND message = 'Query executed'"

The law holds whatever the order of arrivals. Real arrivals are irregular and need some more; and the sum over all
services must stay below the max_connections of the database.""",
    judge=_judge_pool,
)

# --- 5.3 ---

LOCKED = 3.2  # seconds: longer than the query timeout of 2 s
RATE = 8.0


@asynccontextmanager
async def _traffic(lesson: Lesson, dice: tuple[str, ...], outcomes: list[Outcome]) -> AsyncIterator[None]:
    """Rolls at :data:`RATE` while the block runs; their outcomes are complete after it."""
    tasks: set[asyncio.Task[Outcome]] = set()

    async def keep_rolling() -> None:
        while True:
            die = lesson.chance.choice(dice)
            tasks.add(asyncio.ensure_future(lesson.ask("/roll", {"die": die}, trace_id=lesson.trace_id())))
            await asyncio.sleep(1 / RATE)

    rolling = asyncio.ensure_future(keep_rolling())
    try:
        yield
    finally:
        rolling.cancel()
        await asyncio.gather(rolling, return_exceptions=True)
        outcomes += await asyncio.gather(*tasks)


async def a_locked_table(lesson: Lesson) -> Facts:
    _own_database(lesson)
    outcomes: list[Outcome] = []
    async with lesson.faults() as target, _traffic(lesson, (FAIR,), outcomes):
        await asyncio.sleep(lesson.chance.uniform(1.0, 2.5))
        await target.lock()
        locked = time.time()
        await asyncio.sleep(LOCKED)
        unlocked = time.time()
        await target.unlock()
        await asyncio.sleep(1.0)
    failed = [one for one in outcomes if one.status in (503, 504)]
    if len(failed) < 3:
        raise LabError("the lock has hit too few rolls; ask again")
    certain = {one.trace_id for one in failed}
    # Rolls that had to wait for the lock count even if they succeeded; one sent just before it may be among them.
    possible = certain | {one.trace_id for one in outcomes if locked - 0.1 <= one.at <= unlocked}
    unharmed = [one.trace_id for one in outcomes if one.at + one.seconds < locked - 0.1]
    return lesson.facts(
        locked=locked,
        victims=sorted(possible),
        certain=sorted(certain),
        unharmed=unharmed,
        first_error=min(one.at + one.seconds for one in failed),
        until=format_time(time.time()),
        rate=RATE,
        locked_at=format_time(locked),
    )


def _at(seconds: float, trace_ids: list[str]) -> str:
    return f"{format_time(seconds)} {','.join(trace_ids[:3])}"


async def _judge_lock(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
    given = exercise.form.parse(answer)
    first_error, unharmed = exercise.mistakes
    moment = Moment("", 1.0)
    if not moment.same(given["time"], facts["locked"]):
        known = moment.same(given["time"], facts["first_error"])
        return Verdict(False, f"Not right: the time. {first_error.hint if known else exercise.hint}")
    if len(given["victims"]) < 3:
        return Verdict(False, "Not right: name three victims.")
    if wrong := sorted(given["victims"] - set(facts["victims"])):
        return Verdict(False, f"Not right: {wrong[0][:8]}… is no victim. {unharmed.hint}")
    return Verdict(True, f"Right: the table was locked from {facts['locked_at']} on, for {LOCKED:g} s.")


SLOW_QUERIES = Exercise(
    number="5.3",
    title="Slow queries: when was the table locked?",
    by="the page, jq, SQL, LogQL",
    question="""\
Between {since} and {until} users rolled the die "fair" about {rate:g} times a second. For some seconds of that time
another transaction held a lock on the table of dice.

When was the table locked (the time in UTC, within 1 s)? And name three victims: trace ids of rolls that had to wait for
the lock.""",
    form=Fields(
        time=Moment("a time in UTC such as 12:34:56", 1.0),
        victims=Items("three trace ids, separated by commas", r"[0-9a-f]{32}"),
    ),
    prepare=a_locked_table,
    reference=Answered(lambda facts: _at(facts["locked"], facts["certain"])),
    mistakes=(
        Mistake(
            lambda facts: _at(facts["first_error"], facts["certain"]),
            name="the time of the first error",
            hint="That is when the first roll failed. A query waits for two seconds before it is cancelled, so the"
            " lock is older than the first error: look at the start of the longest SELECT spans.",
        ),
        Mistake(
            lambda facts: _at(facts["locked"], facts["unharmed"]),
            name="rolls that were served before the lock",
            hint="That roll was served before the lock was taken. A victim has a long SELECT span, or none and a"
            " pool that was exhausted, and starts while the lock is held.",
        ),
    ),
    hint="Find the SELECT spans that lasted two seconds, and look at when the earliest of them began.",
    solution="""\
    dicelab sql "SELECT start, duration_ms, trace_id FROM spans
      WHERE name = 'SELECT' AND duration_ms > 300 AND start >= '{since}' ORDER BY start LIMIT 5"

The first long SELECT starts when the lock was taken, at {locked_at}. The lines "Query failed" (db_query_duration_ms
about 2000) come two seconds later, when the first queries are cancelled; "Connection pool exhausted" comes when the
waiting queries hold every connection. Errors tell when users noticed, spans tell when it began.""",
    judge=_judge_lock,
)

# --- 5.4 ---

BEFORE, DURING, AFTER = 8.0, 5.0, 9.0  # seconds
GRACE = 5.0  # seconds after the fault in which the query may still have a result
HYPOTHESIS = 'sum(increase(http_requests_total{job="frontend",status=~"503|504"}[3s])) > 0'


async def a_hidden_fault(lesson: Lesson) -> Facts:
    _own_database(lesson)
    outcomes: list[Outcome] = []
    recording = promql.Recording()
    fault = lesson.chance.choice(("locked table", "die-service down"))
    async with (
        lesson.faults() as target,
        recording.of(lesson),
        _traffic(lesson, (FAIR, EXTREME), outcomes),
    ):
        await asyncio.sleep(BEFORE)
        samples = await lesson.lab.fetch_samples(FRONTEND)
        began = time.time()
        await (target.lock() if fault == "locked table" else target.stop(DIE_SERVICE))
        await asyncio.sleep(DURING)
        await (target.unlock() if fault == "locked table" else target.start(DIE_SERVICE))
        await lesson.ready()
        ended = time.time()
        await asyncio.sleep(AFTER)
    errors = sum(total(samples, "http_requests_total", {"status": status}) for status in ("503", "504"))
    other = recording.moved(-promql.APART, lesson.chance)
    start = recording.start
    return lesson.facts(
        samples=promql.save(lesson, "5.4", recording.text() + other),
        statuses=dict(Counter(str(one.status) for one in outcomes)),
        fault=fault,
        errors=errors,
        worlds=[
            {
                "name": name,
                "start": start + shift,
                "fault": began + shift,
                "restored": ended + shift,
                "end": recording.end + shift,
            }
            for name, shift in (("this run", 0.0), ("the other run", -promql.APART))
        ],
        fault_at=format_time(began),
        restored_at=format_time(ended),
        until=format_time(recording.end),
    )


async def _judge_hypothesis(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
    too_early, never_ends, never = exercise.mistakes
    async with promql.prometheus_on(lesson, facts) as engine:
        for world in facts["worlds"]:
            step = 0.5
            true = await engine.times(answer, world["start"] + 1, world["end"], step)
            moments = sorted(world["start"] + 1 + index * step for index in true)
            text = f"Not right on {world['name']}:"
            if any(at < world["fault"] for at in moments):
                return Verdict(False, f"{text} the query has a result before the fault. {too_early.hint}")
            if not any(world["fault"] <= at <= world["restored"] + 1 for at in moments):
                return Verdict(False, f"{text} the query has no result during the fault. {never.hint}")
            if any(at > world["restored"] + GRACE for at in moments):
                return Verdict(
                    False, f"{text} the query has a result {GRACE:g} s after the end of the fault. {never_ends.hint}"
                )
    return Verdict(
        True, f"Right on both runs: false before, true during, false after. The fault was: {facts['fault']}."
    )


RESILIENCE = Exercise(
    number="5.4",
    title="Resilience: a hypothesis as a query",
    by="PromQL",
    question="""\
Users have rolled the dice "fair" and "extreme" (half of the rolls of "extreme" fail by themselves). From {fault_at} to
{restored_at} the lab had a fault.

Write a PromQL query that distinguishes the fault from normal operation: it has no result before the fault, a result at
some time during it, and no result from 5 s after its end on. The services were sampled twice a second, so windows such
as [3s] work. The query is checked on this run and on one that you do not see: the same faults, but counters with other
values, and another job that always fails.""",
    form=Text("a PromQL query; put it in quotes, or in a file given by --file"),
    prepare=a_hidden_fault,
    reference=Answered(lambda facts: HYPOTHESIS),
    mistakes=(
        Mistake(
            lambda facts: 'sum(increase(http_requests_total{job="frontend",status=~"5.."}[3s])) > 0',
            name="errors that belong to normal operation",
            hint="It does not distinguish the fault from normal operation: dice fail by themselves (500), other jobs"
            " have errors of their own, and the value of a counter depends on how long the process has run. What is"
            " different during the fault?",
        ),
        Mistake(
            lambda facts: 'sum(http_requests_total{job="frontend",status=~"503|504"}) > ' + f"{facts['errors']:g}",
            name="a counter without a window",
            hint="A counter never goes down again, so the condition stays true for good. Ask how much it has grown in"
            " the last seconds: increase(…[3s]).",
        ),
        Mistake(
            lambda facts: 'sum(increase(http_requests_total{job="frontend",status=~"503|504"}[3s])) > 10000',
            name="a threshold that is never reached",
            hint="Nothing in the run matches. Look at which statuses users got during the fault, and at how many"
            " requests there are in a window.",
        ),
    ),
    hint=(
        "Compare the responses of the frontend by status before and during the fault; use increase() over a few"
        " seconds."
    ),
    solution="""\
    """
    + HYPOTHESIS.replace("{", "{{").replace("}", "}}")
    + """

The responses that users got, by status: {statuses}. A 500 is a die that failed by design; 503 and 504 say that a
dependency is unavailable or too slow. That is a symptom: it finds the fault whatever its cause. A query on the cause
(database_connection_pool_available == 0, or up == 0) tells more and finds less.""",
    engines=("prometheus",),
    judge=_judge_hypothesis,
)

EXERCISES = (SQL_SPANS, POOL, SLOW_QUERIES, RESILIENCE)
