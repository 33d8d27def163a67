"""Stage 6: routing lines, operational and business data, usage analytics, destinations that fail."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lab import LabError
from lab.client import FRONTEND, ROLLER
from lab.learn import loki
from lab.learn.exercise import Answered, Exercise, Facts, Mistake, Verdict
from lab.learn.forms import Fields, Items, Number, Text
from lab.learn.lesson import TIMEOUT, Lesson
from lab.learn.stage1 import FAIR
from lab.paths import ALLOY, COMPOSE
from lab.queries import refused
from lab.signals import format_time
from lab.supervise.processes import Process, free_port
from lab.supervise.readiness import wait_until_ready
from lab.waiting import within

# --- 6.1 ---

OPERATIONS, WARNINGS = "operations", "warnings"
ARRIVAL = 10.0  # seconds for the lines to arrive
QUIET = 1.0  # seconds without a new line, after which all have arrived

TO_ALL = (ALLOY / "route-all.alloy").read_text()
ROUTE = """\
import.file "dicelab" {
	filename = file.path_join(module_path, "pipeline.alloy")
}

declare "route" {
	export "receivers" {
		value = [loki.process.warnings.receiver, loki.process.others.receiver]
	}

	loki.process "warnings" {
		forward_to = [dicelab.tenant.warnings.receiver]

		stage.match {
			selector = "{level!=\\"WARNING\\"}"
			action   = "drop"
		}
	}

	loki.process "others" {
		forward_to = [dicelab.tenant.operations.receiver]

		stage.match {
			selector = "{level=\\"WARNING\\"}"
			action   = "drop"
		}
	}

	dicelab.tenant "warnings" {
		name = "warnings"
	}

	dicelab.tenant "operations" {
		name = "operations"
	}
}
"""


async def numbered_lines(lesson: Lesson) -> Facts:
    """Two files of lines with numbers; the second has lines that only look like warnings."""
    chance = lesson.chance
    files: dict[str, list[str]] = {}
    expected: dict[str, list[int]] = {WARNINGS: [], OPERATIONS: []}
    number = chance.randint(1000, 9000)
    for service, messages in (
        (ROLLER, ("Roll completed", "Unknown die", "Roll failed")),
        ("die-service", ("WARNING: not one of ours", "Dice list requested", '"level": "WARNING"')),
    ):
        lines = files[service] = []
        levels = [*("INFO",) * 8, *("WARNING",) * 5, *("ERROR",) * 4, "DEBUG"]
        chance.shuffle(levels)
        for index, level in enumerate(levels):
            number += 1
            at = time.time() - 60 + index / 100
            line = {"timestamp": format_time(at), "level": level, "message": chance.choice(messages), "logger": service}
            lines.append(json.dumps({**line, "number": number}))
            expected[WARNINGS if level == "WARNING" else OPERATIONS].append(number)
    return lesson.facts(files=files, expected=expected, lines=sum(map(len, files.values())), alloy=str(ALLOY))


@dataclass
class _Pipeline:
    """A separate Loki and Alloy, which run the route that is checked."""

    session: aiohttp.ClientSession
    loki_url: str

    async def numbers(self, tenant: str) -> Counter[int]:
        """How often each number has arrived in a tenant."""
        parameters = {"query": '{service_name=~".+"}', "limit": "5000", "start": str(int(time.time() - 3600))}
        url = f"{self.loki_url}/loki/api/v1/query_range"
        async with self.session.get(url, params=parameters, headers={"X-Scope-OrgID": tenant}) as response:
            streams = (await response.json())["data"]["result"] if response.status == 200 else []
        return Counter(int(json.loads(value[1])["number"]) for stream in streams for value in stream["values"])


@asynccontextmanager
async def _pipeline(route: str, files: Mapping[str, list[str]]) -> AsyncIterator[_Pipeline]:
    """Run Loki and Alloy with a route while the block runs.

    Raises:
        InputError: when Alloy refuses the route, with its own message.
        LabError: when one of them does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="dicelab-learn-"))
    processes: list[Process] = []

    async def start(name: str, arguments: list[str], variables: Mapping[str, str]) -> Process:
        binary = shutil.which(name)
        if binary is None:
            raise LabError(f"this exercise needs {name} on PATH")
        log = directory / f"{name}.log"
        process = await Process.start(
            name, [binary, *arguments], {"HOME": str(directory), **variables}, log, log, lambda service, lines: None
        )
        processes.append(process)
        return process

    try:
        (directory / "logs").mkdir()
        for service, lines in files.items():
            (directory / "logs" / f"{service}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        shutil.copytree(ALLOY, directory / "alloy")
        (directory / "alloy" / "route-learn.alloy").write_text(route)
        loki_port, grpc_port, alloy_port = free_port(), free_port(), free_port()
        url = f"http://127.0.0.1:{loki_port}"
        variables = {
            "LOKI_HOST": "127.0.0.1",
            "LOKI_PORT": str(loki_port),
            "LOKI_GRPC_PORT": str(grpc_port),
            "LOKI_DATA": str(directory / "loki"),
            "LOKI_CONFIG": str(COMPOSE / "loki"),
            "LOKI_URL": url,
            "ALLOY_CONFIG": str(directory / "alloy"),
            "LOGS_DIR": str(directory / "logs"),
            "LOG_ROUTE": "learn",
        }
        config = COMPOSE / "loki" / "loki.yaml"
        store = await start("loki", ["-target=all", f"-config.file={config}", "-config.expand-env=true"], variables)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            await wait_until_ready(session, f"{url}/ready", store)
            arguments = [
                *("run", f"--server.http.listen-addr=127.0.0.1:{alloy_port}", f"--storage.path={directory / 'data'}"),
                *("--disable-reporting", str(directory / "alloy" / "files.alloy")),
            ]
            alloy = await start("alloy", arguments, variables)
            try:
                await wait_until_ready(session, f"http://127.0.0.1:{alloy_port}/-/ready", alloy)
            except LabError:
                said = " ".join(line for line in alloy.last_lines() if "rror" in line)
                if said and not alloy.running:
                    raise refused("Alloy", said.replace(f"{directory}/alloy/", "")) from None
                raise
            yield _Pipeline(session, url)
    finally:
        for process in processes:
            process.kill()
            await process.ended()
        shutil.rmtree(directory, ignore_errors=True)


async def _judge_route(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
    everywhere, twice, by_text = exercise.mistakes
    expected = {tenant: set(numbers) for tenant, numbers in facts["expected"].items()}
    found: dict[str, Counter[int]] = {}
    quiet_since, seen = time.monotonic(), -1
    async with _pipeline(answer, facts["files"]) as pipeline:
        async for _ in within(ARRIVAL, 0.2):
            found = {tenant: await pipeline.numbers(tenant) for tenant in expected}
            now = sum(sum(counts.values()) for counts in found.values())
            if now != seen:
                quiet_since, seen = time.monotonic(), now
            if seen and time.monotonic() - quiet_since > QUIET:
                break
    warnings, others = found[WARNINGS], found[OPERATIONS]
    count = len(expected[WARNINGS])
    if foreign := set(warnings) - expected[WARNINGS]:
        text = f"{len(foreign)} lines in the tenant warnings do not have the level WARNING."
        return Verdict(False, f"Not right: {text} {by_text.hint}")
    if missing := expected[WARNINGS] - set(warnings):
        text = f"{len(missing)} of {count} WARNING lines are not in the tenant warnings."
        return Verdict(False, f"Not right: {text} {everywhere.hint}")
    if both := expected[WARNINGS] & set(others):
        text = f"{len(both)} of {count} WARNING lines are in the tenant operations as well."
        return Verdict(False, f"Not right: {text} {twice.hint}")
    if lost := expected[OPERATIONS] - set(others):
        return Verdict(False, f"Not right: {len(lost)} lines of other levels are in neither tenant. {exercise.hint}")
    if max((warnings + others).values()) > 1:
        return Verdict(False, f"Not right: some lines have arrived twice. {exercise.hint}")
    return Verdict(True, f"Right: each of {facts['lines']} lines has arrived once, the {count} warnings apart.")


def _template(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


ROUTING = Exercise(
    number="6.1",
    title="Routing: a tenant for warnings",
    by="a file for Alloy",
    question="""\
The files {alloy}/route-all.alloy and route-usage.alloy are two routes that lines can take. Write a third:
lines with the level WARNING go to the tenant "warnings" of Loki and only there, all other lines to the tenant
"operations" and only there.

The file declares the component "route", as the other two do; pipeline.alloy beside it declares "tenant". It is checked
by an Alloy and a Loki of their own, with {lines} numbered lines, some of which only mention the word. Your lab is not
touched.""",
    form=Text("the content of the file: --file route-warnings.alloy"),
    prepare=numbered_lines,
    reference=Answered(lambda facts: ROUTE),
    mistakes=(
        Mistake(
            lambda facts: TO_ALL,
            name="no route for warnings",
            hint='A receiver has to lead to a tenant with name = "warnings", and export "receivers" has to contain it.',
        ),
        Mistake(
            lambda facts: ROUTE.replace('selector = "{level=\\"WARNING\\"}"', 'selector = "{level=\\"NONE\\"}"'),
            name="copied instead of moved",
            hint="Every receiver of the list gets every line. The way to operations has to drop the lines that go to"
            " warnings.",
        ),
        Mistake(
            lambda facts: ROUTE.replace(
                'selector = "{level!=\\"WARNING\\"}"', 'selector = "{level=~\\".+\\"} != \\"WARNING\\""'
            ).replace('selector = "{level=\\"WARNING\\"}"', 'selector = "{level=~\\".+\\"} |= \\"WARNING\\""'),
            name="the word in the text",
            hint="The selector looks for the word in the text of the line. The pipeline has made the level a label:"
            " match"
            ' on {level="WARNING"}.',
        ),
    ),
    hint="Two loki.process blocks with a stage.match each: one drops what is no warning, the other drops the warnings."
    " Export both receivers.",
    solution=_template(ROUTE)
    + """
Every receiver of the export gets every line, so each of the two has to drop what is the other's. The selectors exclude
each other and cover everything: no line is lost, and none arrives twice.""",
    engines=("loki", "alloy"),
    judge=_judge_route,
)

# --- 6.2 ---

BUSINESS_METRICS = ("dice_rolls_total", "dice_roll_value", "streamlit_button_clicks_total", "async_rolls_total")
OPERATIONAL_METRICS = (
    "http_request_duration_seconds",
    "event_loop_lag_seconds",
    "database_connection_pool_available",
    "database_query_duration_seconds",
    "process_cpu_seconds_total",
    "telemetry_dropped_total",
    "http_requests_in_flight",
)


async def _signed_in(lesson: Lesson, name: str) -> str:
    """Sign in; returns the ``Cookie`` header of the session."""
    url = f"{lesson.lab.front}/sign-in"
    async with lesson.lab.session.post(url, data={"name": name}, allow_redirects=False) as response:
        if response.status != 303:
            raise LabError(f"{url} answers {response.status}")
        return response.headers["Set-Cookie"].partition(";")[0]


async def _sign_out(lesson: Lesson, cookie: str) -> None:
    url = f"{lesson.lab.front}/sign-out"
    async with lesson.lab.session.post(url, headers={"Cookie": cookie}, allow_redirects=False):
        pass


async def lines_and_metrics(lesson: Lesson) -> Facts:
    chance = lesson.chance
    cookie = await _signed_in(lesson, f"user-{chance.randint(10, 99)}")
    for _ in range(2):
        await lesson.ask("/roll", {"die": FAIR}, headers={"Cookie": cookie})
    await _sign_out(lesson, cookie)
    usage: list[dict[str, Any]] = []
    async for _ in within(TIMEOUT, 0.1):
        lines = [line for service in lesson.lab.services for line in await lesson.lines(service, lesson.began)]
        usage = [dict(line.fields) for line in lines if line.fields.get("usage") is True]
        if len(usage) == 4:  # sign_in, two rolls, sign_out
            break
    other = [dict(line.fields) for line in lines if line.fields.get("usage") is not True]
    chance.shuffle(other)
    other.sort(key=lambda fields: fields["message"] != "Roll requested")  # one of these is always among them
    of_usage = chance.randint(2, 4)
    business = chance.randint(1, 3)
    entries = [
        *((True, _shown(fields)) for fields in chance.sample(usage, of_usage)),
        *((False, _shown(fields)) for fields in (other[0], *chance.sample(other[1:], 5 - of_usage))),
        *((True, f"metric {name}") for name in chance.sample(BUSINESS_METRICS, business)),
        *((False, f"metric {name}") for name in chance.sample(OPERATIONAL_METRICS, 6 - business)),
    ]
    chance.shuffle(entries)
    found = [number for number, (is_business, _) in enumerate(entries, start=1) if is_business]
    rolls = [number for number, (_, text) in enumerate(entries, start=1) if "roll" in text.lower()]
    return lesson.facts(
        entries="\n".join(f"{number:4}  {text}" for number, (_, text) in enumerate(entries, start=1)),
        business=found,
        operational=sorted(set(range(1, len(entries) + 1)) - set(found)),
        mentions=rolls,
        usage_only=[number for number in found if not entries[number - 1][1].startswith("metric")],
    )


def _shown(fields: dict[str, Any]) -> str:
    """A log line without the field ``usage``, which would reveal the answer, and without irrelevant fields."""
    hidden = {"timestamp", "trace_id", "span_id", "usage", "duration_ms", "backend_url"}
    return "line   " + json.dumps({name: value for name, value in fields.items() if name not in hidden})


def _numbers(numbers: list[int]) -> str:
    return ",".join(map(str, numbers)) or "none"


SEPARATING = Exercise(
    number="6.2",
    title="Separating: operational or business?",
    by="the page, docs/telemetry.md",
    question="""\
Sort these twelve entries. Business data tells what users do with the product and what they get from it; the owner of
the product needs it. Operational data tells how the system does its work; the people who run it need that. For log
lines this lab has a rule: the lines that Alloy sends to the tenant "usage" are business data, all others are
operational. (The field that decides is left out here.)

{entries}

Which of them are business data? Give their numbers.""",
    form=Items("numbers separated by commas, or none", r"\d{1,2}"),
    prepare=lines_and_metrics,
    reference=Answered(lambda facts: _numbers(facts["business"])),
    mistakes=(
        Mistake(
            lambda facts: _numbers(facts["operational"]),
            name="the other way round",
            hint="It is the other way round: those are the operational ones.",
        ),
        Mistake(
            lambda facts: _numbers(facts["usage_only"]),
            name="only log lines",
            hint="You have found the log lines. Metrics can be business data too: those that count what users rolled"
            " and clicked.",
        ),
        Mistake(
            lambda facts: _numbers(facts["mentions"]),
            name="everything about rolls",
            hint='Not everything that mentions rolls is business data. "Roll requested" and an access line say how a'
            " service"
            " did its work; the usage event roll says that a user, with a session, rolled.",
        ),
    ),
    hint=(
        "A usage event has an event_type, a session_id and a username. For a metric, ask what it counts: something that"
        " a user did or got, or something that a machine did."
    ),
    solution="""\
Business: {business}. A usage event has event_type, session_id and username; the metrics count rolls, faces and clicks.
They are kept apart because they have other readers and another retention (here 30 days instead of 3), and contain
personal data. The same click leaves both kinds: a usage event, and lines and metrics on how it was served.""",
)

# --- 6.3 ---

NAMES = ("ada", "alan", "barbara", "edsger", "grace", "john", "katherine", "leslie", "margaret", "niklaus", "tony")


async def visits(lesson: Lesson) -> Facts:
    chance = lesson.chance
    names = [f"{name}{chance.randint(10, 99)}" for name in chance.sample(NAMES, 7)]
    idle, busy, both = names[: chance.randint(2, 3)], names[3:6], names[6]
    plans = [*((name, 0) for name in idle), *((name, chance.randint(1, 3)) for name in busy), (both, 0), (both, 2)]
    chance.shuffle(plans)
    signed_out = []
    for name, rolls in plans:
        cookie = await _signed_in(lesson, name)
        for _ in range(rolls):
            await lesson.ask("/roll", {"die": FAIR}, headers={"Cookie": cookie})
        if chance.random() < 0.5:
            await _sign_out(lesson, cookie)
            signed_out.append(name)
    await lesson.roll([FAIR] * 3)  # without a user
    await lesson.lines(FRONTEND, lesson.began)
    return lesson.facts(
        sessions=len(plans),
        until=format_time(time.time()),
        names=sorted({*idle, both}),
        count=len(idle) + 1,
        by_name=sorted(idle),
        never_left=sorted({*names} - {*signed_out}) or ["none"],
        busy=sorted({*busy, both}),
    )


def _sessions(count: int, names: list[str]) -> str:
    return f"{count} {','.join(names)}"


USAGE_ANALYTICS = Exercise(
    number="6.3",
    title="Usage analytics: who came and never rolled?",
    by="jq, SQL, LogQL",
    question="""\
Between {since} and {until} there were {sessions} sessions of signed-in users. Each left usage events in
{run_dir}/logs/frontend.jsonl and, with engines, in the tenant "usage" of Loki.

How many of these sessions signed in and never rolled, and whose were they?""",
    form=Fields(
        sessions=Number("the number of sessions", whole=True),
        users=Items("the user names, each once, separated by commas"),
    ),
    prepare=visits,
    reference=Answered(lambda facts: _sessions(facts["count"], facts["names"])),
    mistakes=(
        Mistake(
            lambda facts: _sessions(len(facts["by_name"]), facts["by_name"]),
            name="users instead of sessions",
            hint="You have compared by username. A user can have several sessions, and may have rolled in one and not"
            " in another: group by session_id.",
        ),
        Mistake(
            lambda facts: _sessions(len(facts["busy"]), facts["busy"]),
            name="those who rolled",
            hint="Those are the users who did roll. Take the sessions with the event sign_in, and leave out those that"
            " also have the event roll.",
        ),
    ),
    hint="Group the usage events by session_id. Keep the sessions that have sign_in and no roll.",
    solution="""\
    dicelab sql "SELECT session_id, any_value(username) AS username FROM lines
      WHERE usage AND timestamp >= '{since}'
      GROUP BY session_id HAVING count(*) FILTER (event_type = 'roll') = 0"

A question about the absence of an event needs the set of all who could have had it: first the sessions that signed in,
then those among them without a roll. Rolls without a session, by people who are not signed in, do not matter here. In
LogQL: {{service_name="frontend"}} | json, sum by (session_id) of both kinds, joined by unless.""",
)

# --- 6.4 ---


def _once(facts: Facts) -> str:
    lines = (
        '{service_name="dice-roller"} | json | message="Roll completed" | trace_id=~"'
        + str(facts["prefix"])
        + '.*" [15m]'
    )
    return f"count(sum by (trace_id) (count_over_time({lines})) == 1)"


async def an_outage(lesson: Lesson) -> Facts:
    lab = lesson.lab
    began = time.time()
    outcomes = []
    async with lesson.faults() as target:
        outcomes += await lesson.roll([FAIR] * 5)
        await target.stop("loki")
        until = time.monotonic() + lesson.outage
        while time.monotonic() < until:
            outcomes += await lesson.roll([FAIR])
            await asyncio.sleep(min(1.0, lesson.outage / 10))
        await target.start("loki")
    outcomes += await lesson.roll([FAIR] * 5)
    numbers = sorted(one.trace_id for one in outcomes if one.status == 200)
    facts = lesson.facts(
        prefix=lesson.prefix,
        count=len(numbers),
        outage=round(lesson.outage),
        began_at=format_time(began),
        until=format_time(time.time()),
    )
    other, once = _lost_and_doubled(lesson, numbers)
    tenant = f"learn-{lesson.prefix}-other"
    async for _ in within(2 * TIMEOUT, 0.5):
        try:
            at = time.time()
            found = await loki.rows(lab, OPERATIONS, _once(facts), at)
            if found.get("") == len(numbers):
                break
        except LabError:  # Loki has only just been started
            continue
    else:
        raise LabError(f"Loki has not caught up after {2 * TIMEOUT:g} s; ask again")
    await loki.push(lab, tenant, other)
    return facts | {
        "worlds": [
            {"name": "this run", "tenant": OPERATIONS, "at": at, "expected": {"": len(numbers)}, "tolerance": 0},
            {"name": "the other run", "tenant": tenant, "at": at, "expected": {"": once}, "tolerance": 0},
        ]
    }


def _lost_and_doubled(lesson: Lesson, numbers: list[str]) -> tuple[list[loki.Entry], int]:
    """The lines as if some were lost and as many doubled, and the number of rolls whose line is there exactly once."""
    chance = lesson.chance
    damaged = chance.randint(1, 3)
    chosen = chance.sample(numbers, 2 * damaged)
    lost, doubled = set(chosen[:damaged]), set(chosen[damaged:])
    entries: list[loki.Entry] = []
    labels = {"service_name": ROLLER, "level": "INFO"}
    now = loki.nanoseconds() - 10**9 * 5
    for index, number in enumerate(numbers):
        for message in ("Roll requested", "Roll completed"):
            if number in lost and message == "Roll completed":
                continue
            fields = {"timestamp": format_time(now / 1e9), "level": "INFO", "message": message, "logger": ROLLER}
            text = json.dumps({**fields, "trace_id": number, "die_type": FAIR})
            for copy in range(2 if number in doubled and message == "Roll completed" else 1):
                entries.append((labels, now + index * 1000 + copy, text, {"trace_id": number}))
    return entries, len(numbers) - 2 * damaged


DESTINATIONS = Exercise(
    number="6.4",
    title="Destinations: was anything lost or doubled?",
    by="LogQL",
    question="""\
Between {began_at} and {until} Loki was down for {outage} s, while users continued to roll. {count} rolls completed;
each has a trace id of its own that begins with {prefix}, and should have exactly one line "Roll completed" in Loki.

Write a LogQL query whose value is the number of rolls (trace ids beginning with {prefix}) that have exactly one such
line from the service dice-roller, over the last 15 minutes. For this run it has to be {count}. It is also checked on a
run that you do not see, with the same rolls, in which lines were lost and others doubled.""",
    form=Text("a LogQL query; put it in quotes, or in a file given by --file"),
    prepare=an_outage,
    reference=Answered(_once),
    mistakes=(
        Mistake(
            lambda facts: _once(facts).replace("count(sum by (trace_id) (", "sum(").replace(") == 1)", ")"),
            name="the number of lines",
            hint="That is the number of lines. One lost and one doubled line leave it as it was: count for each roll"
            " first, then see which have exactly one.",
        ),
        Mistake(
            lambda facts: _once(facts).replace(" == 1)", ")"),
            name="rolls with at least one line",
            hint="That is the number of rolls that have at least one line; a roll whose line arrived twice is counted"
            " as well. Compare the count of each roll with 1.",
        ),
    ),
    hint=(
        "Count the lines by trace_id (sum by (trace_id) (count_over_time(…))), keep those equal to 1, and count what is"
        " left."
    ),
    solution="""\
For each roll how many lines, then only those with one, then how many of these:

    count(sum by (trace_id) (count_over_time({{service_name="dice-roller"}} | json
      | message="Roll completed" | trace_id=~"{prefix}.*" [15m])) == 1)

A total can hide a loss behind a duplicate, so a proof needs something that identifies each line. Nothing was lost,
because Alloy retries a line until Loki accepts it, and in the meantime stops reading the file, which is the buffer.
Nothing was doubled, because Loki drops a line with the same time and text.""",
    running=("loki", "alloy"),
    judge=loki.by_label(""),
)

EXERCISES = (ROUTING, SEPARATING, USAGE_ANALYTICS, DESTINATIONS)
