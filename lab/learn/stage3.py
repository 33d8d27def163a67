"""Stage 3: traces across three services, bottlenecks, service-to-service metrics, LogQL that computes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import datetime
from typing import Any

from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.learn import loki, promql, tempo
from lab.learn.exercise import Answered, Exercise, Facts, Mistake
from lab.learn.forms import Fields, Number, Text, Word
from lab.learn.lesson import TIMEOUT, Lesson, Outcome
from lab.learn.stage1 import FAIR, RISKY, dice
from lab.prometheus import Series
from lab.signals import Line, format_time
from lab.supervise.stages import POSTGRES
from lab.waiting import within

EXTREME = "extreme"

# --- 3.1 ---


async def rolls_of_unknown_dice(lesson: Lesson) -> Facts:
    worlds: list[dict[str, Any]] = []
    for name in ("these requests", "other requests"):
        lesson.prefix = f"{lesson.chance.getrandbits(32) | 2**31:08x}"
        start = time.time()
        ghosts = [f"ghost-{lesson.chance.randint(1, 99)}" for _ in range(lesson.chance.randint(3, 6))]
        outcomes = await lesson.roll(ghosts)
        others = await lesson.roll([FAIR] * 4 + [RISKY] * 4)
        # The frontend's own 404 and 400, which never reach the die-service.
        others += [await lesson.ask(path, trace_id=lesson.trace_id()) for path in ("/no-such-page", "/roll", "/rolls")]
        await lesson.traces([one.trace_id for one in outcomes])
        worlds.append(
            {
                "name": name,
                "prefix": lesson.prefix,
                "expected": [one.trace_id for one in outcomes if one.status == 404],
                "start": start,
                "end": time.time(),
                "others": len(others),
            }
        )
    facts = lesson.facts(worlds=worlds, prefix=worlds[0]["prefix"], count=len(worlds[0]["expected"]))
    async for _ in within(TIMEOUT, 0.3):  # until Tempo's search finds them too
        found = [await tempo.search(lesson.lab, NOT_FOUND, world) for world in worlds]
        everything = [await tempo.search(lesson.lab, "{}", world) for world in worlds]
        if all(
            set(world["expected"]) == ids and len(every) == len(ids) + world["others"]
            for world, ids, every in zip(worlds, found, everything, strict=True)
        ):
            break
    return facts


NOT_FOUND = '{ resource.service.name = "die-service" && span.http.response.status_code = 404 }'

MULTI_SERVICE = Exercise(
    number="3.1",
    title="Multi-service traces: where was it not found?",
    by="TraceQL",
    question="""\
Since {since} users have asked for dice that do not exist, for pages that do not exist, and for ordinary rolls. The
trace ids of these requests begin with {prefix}.

Write a TraceQL query that finds the traces in which the die-service returned 404, and no others. It is checked on these
requests and on others that you do not see.""",
    form=Text("a TraceQL query; put it in quotes, or in a file given by --file"),
    prepare=rolls_of_unknown_dice,
    reference=Answered(lambda facts: NOT_FOUND),
    mistakes=(
        Mistake(
            lambda facts: "{ span.http.response.status_code = 404 }",
            name="any service",
            hint="The query also finds requests that the frontend itself returned 404 for. Both conditions have to"
            " hold"
            ' for the same span: add resource.service.name = "die-service" inside the same braces.',
        ),
        Mistake(
            lambda facts: '{ resource.service.name = "die-service" }',
            name="any status",
            hint="The query finds every trace that reached the die-service. Ask for the status code of its span too:"
            " span.http.response.status_code = 404.",
        ),
        Mistake(
            lambda facts: '{ resource.service.name = "die-service" && status = error }',
            name="the status of the span instead of the code of the response",
            hint="The query asks for spans that failed. A 404 is the client's mistake, so the server's span does not"
            " have the status error. Ask for the attribute span.http.response.status_code.",
        ),
    ),
    hint="One pair of braces describes one span: which service it is of (resource.service.name), and which status it"
    " returned (span.http.response.status_code).",
    solution="""\
    """
    + NOT_FOUND.replace("{", "{{").replace("}", "}}")
    + """

Conditions inside one pair of braces hold for one span; {{ a }} && {{ b }} holds for two spans of a trace. Here the same
span has to be the die-service's and a 404. The frontend and the dice-roller pass that 404 on, so a condition without
the service also finds it, and those of the frontend's own besides.""",
    running=("tempo",),
    judge=tempo.judge,
)

# --- 3.2 ---


async def a_slow_link(lesson: Lesson) -> Facts:
    ends = {ROLLER: FRONTEND, DIE_SERVICE: ROLLER}
    if lesson.lab.state.get("postgres", {}).get("pid"):
        ends[POSTGRES] = DIE_SERVICE
    slow = lesson.chance.choice(sorted(ends))
    milliseconds = lesson.chance.randint(90, 400)
    async with lesson.faults() as target:
        for name in ends:  # every link gets a proxy, so that an address does not reveal the slow one
            await target.slow(name, 0)
        await lesson.ready()
        await lesson.roll([FAIR] * 2)  # opens the connections
        await target.slow(slow, milliseconds / 1000)
        outcomes = await lesson.roll([FAIR] * 8)
    await lesson.traces([one.trace_id for one in outcomes])
    links = {name: f"{user}->{name}" for name, user in ends.items()}
    return lesson.facts(
        link=links[slow],
        milliseconds=milliseconds,
        other=next(link for name, link in links.items() if name != slow),
        links=", ".join(links.values()),
        rolls=len(outcomes),
        trace=outcomes[0].trace_id,
    )


LINKS = (f"{FRONTEND}->{ROLLER}", f"{ROLLER}->{DIE_SERVICE}", f"{DIE_SERVICE}->{POSTGRES}")

BOTTLENECK = Exercise(
    number="3.2",
    title="Bottlenecks: which link is slow?",
    by="the page, jq, SQL, Tempo",
    question="""\
For {rolls} rolls one link of the lab was slow: each response on it took longer by the same time. (It is fast again.)
One of the rolls is trace {trace}; the others were made in the same moment.

Which link was it, and by how many milliseconds did it delay a response? The links are: {links}""",
    form=Fields(
        link=Word("the link", LINKS),
        milliseconds=Number("the delay in milliseconds (within 20 %)", relative=0.2, units="ms"),
    ),
    prepare=a_slow_link,
    reference=Answered(lambda facts: f"{facts['link']} {facts['milliseconds']}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['other']} {facts['milliseconds']}",
            name="another link",
            hint="A client span lasts as long as everything below it, so each link above a slow one looks slow as well."
            " Compare each client span with the server span right below it: the difference is the time on the link.",
        ),
        Mistake(
            lambda facts: f"{facts['link']} {facts['milliseconds'] / 1000}",
            name="seconds",
            hint="Those are seconds; the question asks for milliseconds.",
        ),
    ),
    hint=(
        "The time on a link is the duration of the client span less that of the server span below it. A database has no"
        " server span here: its SELECT span holds the link and the query."
    ),
    solution="""\
Go down the waterfall from the root. At each hop subtract the server span from the client span above it:

    frontend GET - dice-roller GET /roll        time between frontend and dice-roller
    dice-roller GET - die-service GET /dice     time between dice-roller and die-service
    die-service SELECT (from stage 5 on)        time to the database and in it

    dicelab sql "SELECT client.service AS caller, server.service AS callee,
        avg(client.duration_ms - server.duration_ms) AS link_ms
      FROM spans client JOIN spans server ON server.parent_id = client.span_id
      WHERE client.kind = 'client' AND server.kind = 'server' AND client.start >= '{since}' GROUP BY ALL"

All but one are a few milliseconds; {link} has about {milliseconds}. Most of the rest of a roll is the wait of the
die.""",
)

# --- 3.3 ---

NETWORK_TIME = """\
sum(rate(die_service_request_duration_seconds_sum{job="dice-roller"}[10m]))
  / sum(rate(die_service_request_duration_seconds_count{job="dice-roller"}[10m]))
- sum(rate(http_request_duration_seconds_sum{job="die-service",handler="/dice"}[10m]))
  / sum(rate(http_request_duration_seconds_count{job="die-service",handler="/dice"}[10m]))"""
CLIENT_MEAN = NETWORK_TIME.partition("\n-")[0]


async def a_slow_network(lesson: Lesson) -> Facts:
    seconds = lesson.chance.randint(250, 600) / 1000  # far above what a busy machine adds
    recording = promql.Recording()
    async with lesson.faults() as target:
        await target.slow(DIE_SERVICE, 0)
        await lesson.ready()
        await lesson.roll([FAIR] * 4)  # creates every series, and opens the connections
        await target.slow(DIE_SERVICE, seconds)
        async with recording.of(lesson):
            outcomes = await lesson.roll([FAIR] * 30)
    at = recording.end
    other = Series()
    client, server = lesson.chance.uniform(0.4, 0.6), lesson.chance.uniform(0.2, 0.3)
    end = at - promql.APART
    for index in range(61):
        moment = end - (60 - index) * 5.0
        # The die-service serves twice as many requests as the dice-roller makes, and is asked for /docs as well.
        for name, labels, count, mean in (
            ("die_service_request_duration_seconds", {"job": ROLLER}, 10 * index, client),
            ("http_request_duration_seconds", {"job": DIE_SERVICE, "handler": "/dice"}, 20 * index, server),
            ("http_request_duration_seconds", {"job": DIE_SERVICE, "handler": "/docs"}, 30 * index, 3.0),
            ("http_request_duration_seconds", {"job": ROLLER, "handler": "/roll"}, 10 * index, 1.0),
        ):
            more = {**labels, "instance": "127.0.0.1:1"}
            other.add(f"{name}_count", more, 1000 + count, moment)
            other.add(f"{name}_sum", more, 400 + count * mean, moment)
    return lesson.facts(
        samples=promql.save(lesson, "3.3", recording.text() + other.text()),
        rolls=len(outcomes),
        seconds=seconds,
        worlds=[
            {"name": "this run", "at": at, "expected": {"": seconds}, "tolerance": 0.01, "relative": 0.2},
            {"name": "the other run", "at": end, "expected": {"": client - server}, "tolerance": 0.01},
        ],
    )


SERVICE_TO_SERVICE = Exercise(
    number="3.3",
    title="Service-to-service metrics: time on the network",
    by="PromQL",
    question="""\
While the last {rolls} rolls were made, the network between the dice-roller and the die-service was slow. (It is fast
again.) The client measures die_service_request_duration_seconds; the server measures http_request_duration_seconds with
the handler "/dice".

Write a PromQL query for the mean time in seconds that a request from the dice-roller to the die-service spent on the
network over the last 10 minutes: one number. It is checked on this run, sampled twice a second (within 20 %), and on
one that you do not see (within 0.01 s), where the die-service is slow itself and serves others as well.""",
    form=Text("a PromQL query; put it in quotes, or in a file given by --file"),
    prepare=a_slow_network,
    reference=Answered(lambda facts: NETWORK_TIME),
    mistakes=(
        Mistake(
            lambda facts: CLIENT_MEAN,
            name="the client's time alone",
            hint="That is the whole time as the client sees it. It includes what the die-service needs to respond:"
            " subtract the server's mean time.",
        ),
        Mistake(
            lambda facts: NETWORK_TIME.replace(',handler="/dice"', ""),
            name="all handlers",
            hint='The server\'s mean includes requests for other paths. Select handler="/dice".',
        ),
        Mistake(
            lambda facts: (
                'sum(rate(die_service_request_duration_seconds_sum{job="dice-roller"}[10m]))'
                ' - sum(rate(http_request_duration_seconds_sum{job="die-service",handler="/dice"}[10m]))'
            ),
            name="sums instead of means",
            hint="That subtracts seconds of waiting per second of time. The mean duration is the rate of _sum divided"
            " by the rate of _count; take it on each side first, because the two sides do not count the same requests.",
        ),
    ),
    hint=(
        "Mean duration = rate of _sum divided by rate of _count. Take it at the client and at the server, and subtract."
    ),
    solution="""\
    """
    + NETWORK_TIME.replace("{", "{{").replace("}", "}}").replace("\n", "\n    ")
    + """

The client's duration includes the network both ways, connecting and queueing; the server's starts when the request has
arrived. Their difference is what neither service can see alone. In this run it was {seconds} s.""",
    engines=("prometheus",),
    judge=promql.by_label(""),
)

# --- 3.4 ---

ERROR_RATIO = """\
sum by (die_type) (count_over_time({service_name="dice-roller"} | json | message="Roll failed" [10m]))
  / sum by (die_type) (count_over_time({service_name="dice-roller"} | json
      | message="Roll failed" or message="Roll completed" [10m]))"""


async def lines_of_rolls(lesson: Lesson) -> Facts:
    outcomes: list[Outcome] = []
    names = dice(lesson)
    for _ in range(8):
        outcomes += await lesson.roll([name for name in names for _ in range(8)])
        if {one.die for one in outcomes if one.status == 500} >= set(names) - {FAIR}:
            break
    await asyncio.sleep(0.2)
    own: list[loki.Entry] = [
        ({"service_name": service, "level": line.level}, loki.nanoseconds(_at(line)), json.dumps(dict(line.fields)), {})
        for service in lesson.lab.services
        for line in await lesson.lines(service, lesson.began)
    ]
    at = time.time() + 1
    tenants = [f"learn-{lesson.prefix}-{name}" for name in ("this", "other")]
    await loki.push(lesson.lab, tenants[0], own)
    other, expected = _other_lines(lesson, at)
    await loki.push(lesson.lab, tenants[1], other)
    failed = Counter(one.die for one in outcomes if one.status == 500)
    rolled = Counter(one.die for one in outcomes)
    return lesson.facts(
        rolls=len(outcomes),
        worlds=[
            {
                "name": "this run",
                "tenant": tenants[0],
                "at": at,
                "expected": {die: failed[die] / rolled[die] for die in failed},
                "tolerance": 0.001,
            },
            {"name": "the other run", "tenant": tenants[1], "at": at, "expected": expected, "tolerance": 0.001},
        ],
    )


def _at(line: Line) -> float:
    return datetime.fromisoformat(line.timestamp).timestamp()


def _other_lines(lesson: Lesson, at: float) -> tuple[list[loki.Entry], dict[str, float]]:
    """Lines of a synthetic run: other dice, another service with the same events, lines that only look like rolls."""
    chance = lesson.chance
    entries: list[loki.Entry] = []
    failed: Counter[str] = Counter()
    rolled: Counter[str] = Counter()

    def add(service: str, level: str, message: str, die: str) -> None:
        moment = loki.nanoseconds(at - chance.uniform(2, 300))
        fields = {"timestamp": format_time(moment / 1e9), "level": level, "message": message, "logger": service}
        text = json.dumps({**fields, "die_type": die, "number": len(entries)})
        entries.append(({"service_name": service, "level": level}, moment, text, {}))

    for die, rate in (("loaded", 0.3), ("bent", 0.6), ("round", 0.1)):
        for number in range(40):
            rolled[die] += 1
            add(ROLLER, "INFO", "Roll requested", die)
            if number == 0 or chance.random() < rate:
                failed[die] += 1
                add(ROLLER, "ERROR", "Roll failed", die)
            else:
                add(ROLLER, "INFO", "Roll completed", die)
            add("dice-roller-canary", "ERROR", "Roll failed" if number % 4 else "Roll completed", die)
            if number % 3 == 0:
                add(ROLLER, "ERROR", "Batch failed", die)
                add(ROLLER, "INFO", "Roll requested again after: Roll failed", die)
    return entries, {die: failed[die] / rolled[die] for die in failed}


COMPLEX_LOGQL = Exercise(
    number="3.4",
    title="Complex LogQL: the error ratio from lines alone",
    by="LogQL",
    question="""\
{rolls} rolls have just been made. A roll of the dice-roller ends with one line, "Roll completed" or "Roll failed",
which has the field die_type.

Write a LogQL query that computes the share of failed rolls by die (label die_type), over the last 10 minutes, from log
lines alone. A die without failures may be missing. Streams have the labels service_name and level. The query is
checked on the lines of this run and on others that you do not see, with other dice and another service.
Tolerance: 0.001.""",
    form=Text("a LogQL query; put it in quotes, or in a file given by --file"),
    prepare=lines_of_rolls,
    reference=Answered(lambda facts: ERROR_RATIO),
    mistakes=(
        Mistake(
            lambda facts: ERROR_RATIO.replace('service_name="dice-roller"', 'service_name=~".+"'),
            name="any service",
            hint='The query counts lines of every service. Select the stream of one: {service_name="dice-roller"}.',
        ),
        Mistake(
            lambda facts: (
                'sum by (die_type) (count_over_time({service_name="dice-roller"} | json'
                ' | message="Roll failed" [10m]))'
                ' / sum by (die_type) (count_over_time({service_name="dice-roller"} | json | die_type!="" [10m]))'
            ),
            name="all lines of a die below the line",
            hint="The denominator counts every line with a die_type, but a roll leaves several. Count one line for each"
            ' roll, the one that ends it: message=~"Roll failed|Roll completed".',
        ),
        Mistake(
            lambda facts: ERROR_RATIO.replace('| message="Roll failed"', '| level="ERROR"'),
            name="all errors above the line",
            hint="The numerator counts every line at level ERROR, not only rolls that failed. Filter on the message of"
            " the event.",
        ),
        Mistake(
            lambda facts: ERROR_RATIO.replace(
                'message="Roll failed" or message="Roll completed"', 'message=~"Roll failed|Roll completed"'
            ),
            name="a regular expression that matches more than it says",
            hint="Loki 3.7 finds an expression such as Roll failed|Roll completed anywhere in the field, also in a"
            ' message that only mentions those words. Compare the whole field: message="Roll failed" or'
            ' message="Roll completed".',
        ),
    ),
    hint="Parse with | json, filter on the field message, count_over_time(… [10m]), sum by (die_type), and divide.",
    solution="""\
    """
    + ERROR_RATIO.replace("{", "{{").replace("}", "}}").replace("\n", "\n    ")
    + """

| json turns the fields of a line into labels, so that they can be compared exactly and summed by. A line filter such as
|= "Roll failed" would also match lines that merely mention those words, and so does =~ in Loki 3.7.""",
    running=("loki",),
    judge=loki.by_label("die_type"),
)

EXERCISES = (MULTI_SERVICE, BOTTLENECK, SERVICE_TO_SERVICE, COMPLEX_LOGQL)
