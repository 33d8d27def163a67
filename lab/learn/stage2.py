"""Stage 2: the W3C format, propagation, waterfalls, the service graph."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.learn.exercise import Answered, Exercise, Facts, Mistake, Verdict
from lab.learn.forms import Edges, Fields, Hexadecimal, Number, Word
from lab.learn.lesson import TIMEOUT, Lesson
from lab.learn.stage1 import FAIR, dice
from lab.signals import Span, covered
from lab.waiting import within

DEFAULT = "tracecontext,baggage"  # propagators of OpenTelemetry
SERVICES = (FRONTEND, ROLLER, DIE_SERVICE)

SETTLE = 1.0  # seconds: longer than a service waits between two batches of spans

# --- 2.1 ---


async def two_trace_ids(lesson: Lesson) -> Facts:
    return lesson.facts(
        sampled=lesson.trace_id(),
        unsampled=lesson.trace_id(),
        parent=f"{lesson.chance.getrandbits(64) | 1:016x}",
    )


async def _judge_headers(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
    """Check in raw lines and spans that both services logged both trace ids, and have spans of the sampled one only."""
    both = {FRONTEND, ROLLER}
    logged: dict[str, set[str]] = {}
    async for _ in within(1.0, 0.2):
        for name in ("sampled", "unsampled"):
            logged[name] = {one for one in both for line in lesson.lab.lines(one) if line.trace_id == facts[name]}
        if all(services == both for services in logged.values()):
            break
    wrong_header, straight_to_the_roller, both_sampled = exercise.mistakes
    for name, services in logged.items():
        what = f"The trace id for the {name} request, {facts[name][:8]}…, is in the log lines of"
        if not services:
            return Verdict(False, f"{what} no service. {wrong_header.hint}")
        if services != both:
            return Verdict(False, f"{what} the {services.pop()} only. {straight_to_the_roller.hint}")
    found: dict[str, list[Span]] = {}
    async for _ in within(TIMEOUT, 0.3):
        found = await lesson.arrived([facts["sampled"], facts["unsampled"]])
        if both <= {span.service for span in found.get(facts["sampled"], [])} or facts["unsampled"] in found:
            break
    await asyncio.sleep(SETTLE)  # spans of the other request would arrive a moment later
    found |= await lesson.arrived([facts["unsampled"]])
    if facts["unsampled"] in found:
        return Verdict(False, f"Trace {facts['unsampled'][:8]}… has spans. {both_sampled.hint}")
    if facts["sampled"] not in found:
        return Verdict(False, f"Trace {facts['sampled'][:8]}… has no spans: its flags must say sampled, 01.")
    return Verdict(True, "Right: one request left spans in both services, the other left log lines only.")


async def _send(lesson: Lesson, facts: Facts, name: str, flags: str, url: str = "", header: str = "") -> None:
    value = f"00-{facts[name]}-{facts['parent']}-{flags}"
    await lesson.ask("/roll", {"die": FAIR}, url=url, headers={header or "traceparent": value})


async def _as_asked(lesson: Lesson, facts: Facts) -> None:
    await _send(lesson, facts, "sampled", "01")
    await _send(lesson, facts, "unsampled", "00")


async def _in_the_wrong_header(lesson: Lesson, facts: Facts) -> None:
    await _send(lesson, facts, "sampled", "01", header="X-Trace-Id")
    await _send(lesson, facts, "unsampled", "00")


async def _past_the_frontend(lesson: Lesson, facts: Facts) -> None:
    await _send(lesson, facts, "sampled", "01", url=lesson.lab.url(ROLLER))
    await _send(lesson, facts, "unsampled", "00")


async def _both_sampled(lesson: Lesson, facts: Facts) -> None:
    await _send(lesson, facts, "sampled", "01")
    await _send(lesson, facts, "unsampled", "01")


W3C_FORMAT = Exercise(
    number="2.1",
    title="W3C Trace Context: write the header yourself",
    by="curl",
    question="""\
Send two rolls of the die "fair" through the frontend, {front}/roll?die=fair, with curl:

  1. one that is sampled and belongs to trace {sampled},
  2. one that is not sampled and belongs to trace {unsampled}.

As the span id of the caller use {parent} in both. When you have sent them, answer: done""",
    form=Word("the word done", ("done",)),
    prepare=two_trace_ids,
    reference=Answered(lambda facts: "done", _as_asked),
    mistakes=(
        Mistake(
            lambda facts: "done",
            _in_the_wrong_header,
            name="another header",
            hint="The context travels in the request header traceparent, and a header that is malformed is ignored:"
            " four fields of lower-case hexadecimal digits, joined by hyphens: version 00, trace id (32 digits), the"
            " caller's span id (16), flags (2).",
        ),
        Mistake(
            lambda facts: "done",
            _past_the_frontend,
            name="sent to one service",
            hint="The request has to enter at the frontend, which passes the context on to the dice-roller.",
        ),
        Mistake(
            lambda facts: "done",
            _both_sampled,
            name="both sampled",
            hint="The last field of traceparent holds the flags: 01 says sampled, 00 not sampled. A service with a"
            " parent-based sampler follows its caller, so 00 keeps the whole trace from being recorded.",
        ),
    ),
    hint=(
        "A request header named traceparent with four fields: 00-<trace id>-<span id of the caller>-<flags>. The flags"
        " are 01 for sampled and 00 for not."
    ),
    solution="""\
    curl -H 'traceparent: 00-{sampled}-{parent}-01' '{front}/roll?die=fair'
    curl -H 'traceparent: 00-{unsampled}-{parent}-00' '{front}/roll?die=fair'

Both services continue the trace of their caller: the trace id stays, and each span gets a new span id whose parent is
the span id that the header carried. The second request has no spans, because its caller decided not to sample it. Its
log lines still carry the trace id: the context is passed on, only the recording is switched off.""",
    judge=_judge_headers,
)

# --- 2.2 ---


async def one_service_without_propagation(lesson: Lesson) -> Facts:
    names = [name for name in SERVICES if name in lesson.lab.services]
    service = lesson.chance.choice(names)
    async with lesson.faults() as target:
        # Every service is restarted, so that a restart does not reveal the right one.
        await target.restart({name: {"OTEL_PROPAGATORS": "none" if name == service else DEFAULT} for name in names})
        await lesson.ready()
        outcomes = await lesson.roll([FAIR] * 6)
        sent = {one.trace_id for one in outcomes}
        begun = [await _begun(lesson, name, upstream) for name, upstream in zip(names, [None, *names], strict=False)]
        found = begun[names.index(service)]
        async for _ in within(TIMEOUT, 0.3):
            if found and len(await lesson.arrived(found)) == len(found):
                break
    others = [name for name in names if name != service]
    return lesson.facts(
        service=service,
        begun=found,
        other=lesson.chance.choice(others),
        sent=sorted(sent)[0],
        services=", ".join(names),
        rolls=len(outcomes),
        prefix=lesson.prefix,
    )


async def _begun(lesson: Lesson, service: str, upstream: str | None) -> list[str]:
    """The trace ids that a service has logged, without those that the service before it, or the client, has sent."""
    own = {line.trace_id for line in await lesson.lines(service, lesson.began) if FAIR in str(line.fields)}
    before = set()
    if upstream is not None:
        before = {line.trace_id for line in await lesson.lines(upstream, lesson.began)}
    return sorted(one for one in own if one and one not in before and not one.startswith(lesson.prefix))


PROPAGATION = Exercise(
    number="2.2",
    title="Propagation: find the hop that loses the context",
    by="the page, jq, SQL, Tempo",
    question="""\
For the last {rolls} rolls since {since} one of the services ({services}) ran with propagation switched off: it neither
took a trace context from its callers nor passed one on. (Everything has been put back since.)

Each of the {rolls} requests entered the frontend with a traceparent header; its trace id began with {prefix}.
Which service was it? As evidence give the id of a trace that this service began itself although it was sent a
context.""",
    form=Fields(
        service=Word("the name of the service", SERVICES),
        trace_id=Hexadecimal("a trace id", 32),
    ),
    prepare=one_service_without_propagation,
    reference=Answered(lambda facts: f"{facts['service']} {facts['begun'][0]}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['other']} {facts['begun'][0]}",
            name="another service",
            hint="Follow one request hop by hop. Does the first service continue the trace that the client sent? Does"
            " the next one continue that of the first? The hop where the trace id changes although a context was sent"
            " ends at the service. A service that was sent none has to begin a trace, and is not to blame.",
        ),
        Mistake(
            lambda facts: f"{facts['service']} {facts['sent']}",
            name="a trace of the client as evidence",
            hint="That trace id is one that the client sent. A service that ignores the header begins a trace with an"
            " id of its own: look for a trace whose first span is that service's.",
        ),
    ),
    hint=(
        "Compare the trace ids that the client sent with those in the spans and log lines of each service, hop by hop."
    ),
    solution="""\
A service that is sent a context and continues it has spans with the same trace id. One without propagation has a root
span of its own for each request, with a new trace id:

    dicelab sql "SELECT service, trace_id, count(*) AS lines FROM lines
      WHERE timestamp >= '{since}' AND trace_id IS NOT NULL GROUP BY ALL ORDER BY ALL"

If the frontend ignores the header, the ids with the prefix {prefix} are in no service, and the dice-roller, which is
sent nothing, begins traces too. If it is the dice-roller, the frontend has the ids of the client and the dice-roller
others.""",
    accepted=lambda facts: [f"{facts['service']} {trace_id}" for trace_id in facts["begun"][1:]],
    final=True,
)

# --- 2.3 ---


def own_time(trace: Sequence[Span], service: str) -> int:
    """Nanoseconds in which a span of a service was open and none of another service below it."""
    own = [span for span in trace if span.service == service]
    ids = {span.span_id for span in own}
    inside = [(span.start, span.end) for span in own]
    # The time of client spans, and of spans of other services below, is spent waiting.
    waiting = [(span.start, span.end) for span in own if span.kind == 3]
    below = [(span.start, span.end) for span in trace if span.parent_id in ids and span.service != service]
    return covered(inside) - covered(waiting + below)


async def a_roll_to_divide(lesson: Lesson) -> Facts:
    best: tuple[float, Facts] | None = None
    for _ in range(4):
        outcomes = await lesson.roll([FAIR] * 6)
        for trace_id, trace in (await lesson.traces([one.trace_id for one in outcomes])).items():
            whole = trace[0].end - trace[0].start
            own = own_time(trace, ROLLER)
            share = 100 * own / whole
            facts = lesson.facts(trace=trace_id, share=round(share, 2), own_ms=round(own / 1e6, 2))
            # The right answer and those of the mistakes should differ.
            answers = (share, 100 - share, share / 100, own / 1e6)
            clear = min(abs(one - other) for one, other in combinations(answers, 2))
            if best is None or clear > best[0]:
                best = clear, facts
        if best is not None and best[0] > 5:
            break
    assert best is not None
    return best[1]


WATERFALLS = Exercise(
    number="2.3",
    title="Waterfalls: the roller's own share",
    by="the page, jq, SQL, Tempo",
    question="""\
Look at the waterfall of trace {trace}

Which share of the whole roll, from the start of its first span to that span's end, is the dice-roller's own time: time
in which one of its spans was open and it was not waiting for another service? Answer in per cent.""",
    form=Number("a percentage (within 2 points)", absolute=2.0, units="%"),
    prepare=a_roll_to_divide,
    reference=Answered(lambda facts: str(facts["share"])),
    mistakes=(
        Mistake(
            lambda facts: str(100 - facts["share"]),
            name="the others' share",
            hint="That is the share of everything else. The roller's own time is the duration of GET /roll, less what"
            " it spent waiting for a service below it.",
        ),
        Mistake(
            lambda facts: str(facts["share"] / 100),
            name="a fraction",
            hint="That is a fraction; the question asks for per cent.",
        ),
        Mistake(
            lambda facts: str(facts["own_ms"]),
            name="milliseconds",
            hint="Those are milliseconds. Divide by the duration of the first span, and multiply by 100.",
        ),
    ),
    hint=(
        "Divide the duration of the dice-roller's span GET /roll, less the client spans below it, by the duration of"
        " the first span of the trace."
    ),
    solution="""\
The root span HTTP GET lasts from the request to the response. Within it lies the dice-roller's span GET /roll; from
stage 3 on a client span GET below it waits for the die-service, and that time is not the roller's own.

    dicelab sql "SELECT service, name, kind, duration_ms FROM spans WHERE trace_id = '{trace}' ORDER BY start"

    own time = GET /roll - GET (if there is one) = {own_ms} ms
    share = own time / HTTP GET = {share} %

In a waterfall a span without a child below it at some moment is busy itself; one with a child is waiting for it. The
wait of the die itself (up to ROLL_DELAY seconds) makes the roller's share large here.""",
)

# --- 2.4 ---


async def rolls_by_two_ways(lesson: Lesson) -> Facts:
    lab = lesson.lab
    names = [lesson.chance.choice(dice(lesson)) for _ in range(lesson.chance.randint(7, 15))]
    direct = [FAIR] * lesson.chance.randint(3, 6)
    through = await lesson.roll(names)
    past = await lesson.roll(direct, url=lab.url(ROLLER))
    traces = await lesson.traces([one.trace_id for one in through])
    traces |= await lesson.traces([one.trace_id for one in past], [name for name in lab.services if name != FRONTEND])
    edges: Counter[str] = Counter()
    for trace in traces.values():
        by_id = {span.span_id: span for span in trace}
        for span in trace:
            parent = by_id.get(span.parent_id)
            if parent is not None and parent.service != span.service:
                edges[f"{parent.service}->{span.service}"] += 1
    wrong = edges + Counter({f"{FRONTEND}->{ROLLER}": len(past)})
    return lesson.facts(prefix=lesson.prefix, requests=len(traces), edges=dict(edges), with_direct=dict(wrong))


def _edges(counts: dict[str, int], factor: int = 1) -> str:
    return ", ".join(f"{edge} {factor * count}" for edge, count in sorted(counts.items(), reverse=True))


DEPENDENCIES = Exercise(
    number="2.4",
    title="Dependencies: draw the service graph",
    by="the page, jq, SQL, TraceQL",
    question="""\
{requests} requests have just been made; their trace ids begin with {prefix}. Some entered at the frontend, some did
not.

Which service called which, and how often? Give the edges between the services of the lab, each with its count.""",
    form=Edges(),
    prepare=rolls_by_two_ways,
    reference=Answered(lambda facts: _edges(facts["edges"])),
    mistakes=(
        Mistake(
            lambda facts: _edges(facts["with_direct"]),
            name="requests that did not pass the frontend are counted as its calls",
            hint="Not every request entered at the frontend. An edge is a span whose parent is a span of another"
            " service: count parent links, not traces.",
        ),
        Mistake(
            lambda facts: _edges(facts["edges"], 2),
            name="both ends of each call",
            hint="Each call has two spans, that of the client and that of the server below it. Count one of them.",
        ),
    ),
    hint=(
        "An edge is a span whose parent belongs to another service. Count the server spans by the service of their"
        " parent."
    ),
    solution="""\
Join each span with its parent by parentSpanId = spanId; where the services differ there is an edge. This is how Tempo
derives its service graph (traces_service_graph_request_total) from pairs of client and server spans.

    dicelab sql "SELECT parent.service AS caller, child.service AS callee, count(*) AS requests
      FROM spans child JOIN spans parent ON child.parent_id = parent.span_id AND child.trace_id = parent.trace_id
      WHERE child.kind = 'server' AND child.trace_id LIKE '{prefix}%' GROUP BY ALL"

Requests that entered at the dice-roller have a parent in no service of the lab, and so no edge to it.""",
)

EXERCISES = (W3C_FORMAT, PROPAGATION, WATERFALLS, DEPENDENCIES)
