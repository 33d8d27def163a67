"""Stage 1: metric types, JSON logs, reading a trace, basic PromQL."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from lab.client import ROLLER
from lab.learn import promql
from lab.learn.exercise import Answered, Exercise, Facts, Mistake
from lab.learn.forms import Fields, Hexadecimal, Items, Number, Text, Word
from lab.learn.lesson import Lesson, Outcome
from lab.prometheus import Series
from lab.signals import Sample, total

FAIR, RISKY, EXTREME = "fair", "risky", "extreme"


def dice(lesson: Lesson) -> list[str]:
    """The dice that this lab rolls."""
    return [FAIR, RISKY] if lesson.lab.stage < 3 else [FAIR, RISKY, EXTREME]


# --- 1.1 ---


async def across_a_restart(lesson: Lesson) -> Facts:
    earlier = lesson.chance.choices((FAIR, RISKY), k=lesson.chance.randint(5, 12))
    await lesson.roll(earlier)
    readings = [_reading(await lesson.lab.fetch_samples(ROLLER))]
    before: list[Outcome] = []
    for _ in range(30):
        before += await lesson.roll(lesson.chance.choices((FAIR, RISKY), k=lesson.chance.randint(14, 20)))
        if any(one.status == 500 for one in before):
            break
    readings.append(_reading(await lesson.lab.fetch_samples(ROLLER)))
    async with lesson.faults() as target:
        await target.restart({ROLLER: {}})
        await lesson.ready()
    after = await lesson.roll(lesson.chance.choices((FAIR, RISKY), k=lesson.chance.randint(5, 12)))
    return lesson.facts(
        first=readings[0][0],
        second=readings[1][0],
        first_total=readings[0][1],
        second_total=readings[1][1],
        before=len(before),
        after=len(after),
        succeeded=sum(one.status == 200 for one in (*before, *after)),
    )


def _reading(samples: list[Sample]) -> tuple[str, int]:
    lines = []
    for sample in samples:
        if sample.name == "dice_rolls_total":
            labels = ",".join(f'{name}="{sample.labels[name]}"' for name in ("die_type", "result"))
            lines.append(f"    dice_rolls_total{{{labels}}} {sample.value:g}")
    return "\n".join(lines), int(total(samples, "dice_rolls_total"))


METRIC_TYPES = Exercise(
    number="1.1",
    title="Metric types: a counter across a restart",
    by="curl, PromQL",
    question="""\
A scraper has read the counter dice_rolls_total of the dice-roller twice. At {since}:

{first}

Some time later, just before the dice-roller was restarted:

{second}

After the restart users continued to roll. The third reading is yours: {dice-roller}/metrics

How many rolls were made between the first reading and yours, successful or not?
(Do not roll any dice yourself before you have read the counter.)""",
    form=Number("a whole number", whole=True),
    prepare=across_a_restart,
    reference=Answered(lambda facts: str(facts["before"] + facts["after"])),
    mistakes=(
        Mistake(
            lambda facts: str(facts["after"]),
            name="the counter after the restart",
            hint="That is what the counter shows now. A counter lives in the memory of its process and begins at 0"
            " again when the process is restarted; what was counted before is only in the earlier readings.",
        ),
        Mistake(
            lambda facts: str(facts["after"] - facts["first_total"]),
            name="the last reading minus the first",
            hint="That is the last reading minus the first. A counter only goes up within one life of its process. A"
            " reading lower than the one before it means a reset: from there on count from 0, as PromQL's increase()"
            " does.",
        ),
        Mistake(
            lambda facts: str(facts["succeeded"]),
            name="only the rolls that succeeded",
            hint="That leaves out the rolls that failed. A counter with labels is a family of series, one for each"
            " combination of label values; add all of them.",
        ),
    ),
    hint=(
        "Add up how much each series grew between the first and the second reading, and what each shows after the"
        " reset."
    ),
    solution="""\
Growth before the restart: {second_total} - {first_total} = {before}.
The restart set the counter to 0, so everything it shows now was counted after it: {after}.

    curl -s {dice-roller}/metrics | grep ^dice_rolls_total

In PromQL increase(dice_rolls_total[5m]) adds up in the same way: a value lower than the one before is a reset, and
counting goes on from 0. Prometheus only knows what it has scraped: rolls between the last scrape before the restart
and the restart itself are lost to it. dice_roll_value, a histogram, consists of counters too (_bucket, _sum and
_count), so the same holds for it. A gauge, such as http_requests_in_flight, has no resets: it may go down at any
time.""",
)

# --- 1.2 ---


async def rolls_with_failures(lesson: Lesson) -> Facts:
    outcomes: list[Outcome] = []
    for _ in range(12):
        names = [RISKY] * 13 + [FAIR] * 8  # an odd number: as many failures as successes are impossible
        lesson.chance.shuffle(names)
        outcomes += await lesson.roll(names, traced=False)
        failed = [one for one in outcomes if one.status == 500]
        ones = [one for one in outcomes if one.die == FAIR and one.document.get("roll") == 1]
        if failed and ones:
            break
    risky = [one for one in outcomes if one.die == RISKY]
    return lesson.facts(
        rolls=len(outcomes),
        risky=len(risky),
        failed=sum(one.status == 500 for one in risky),
        values=_values(risky),
        all_values=_values(outcomes),
    )


def _values(outcomes: list[Outcome]) -> list[int]:
    return sorted({int(one.document["roll"]) for one in outcomes if one.status == 200})


def _joined(values: list[int]) -> str:
    return ",".join(map(str, values))


JSON_LOGS = Exercise(
    number="1.2",
    title="JSON logs: count what failed",
    by="jq, SQL, LogQL",
    question="""\
Since {since} users have made {rolls} rolls, some with the die "fair", some with the die "risky".
Each left its lines, one JSON object a line, in {run_dir}/logs/dice-roller.jsonl

How many rolls of the die "risky" failed, and which values did the successful ones have?""",
    form=Fields(
        failed=Number("the number of failed rolls", whole=True),
        values=Items("the values of the successful rolls, each once, separated by commas", r"-?\d+"),
    ),
    prepare=rolls_with_failures,
    reference=Answered(lambda facts: f"{facts['failed']} {_joined(facts['values'])}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['failed']} {_joined(facts['all_values'])}",
            name="the values of all dice",
            hint='The values are those of all dice: the die "risky" has no face 1. Select by the field die_type.',
        ),
        Mistake(
            lambda facts: f"{2 * facts['failed']} {_joined(facts['values'])}",
            name="each failed roll counted twice",
            hint="You have counted each failed roll twice: a failed request also leaves an access line with http_status"
            ' 500. Count the lines of one event, those whose message is exactly "Roll failed".',
        ),
        Mistake(
            lambda facts: f"{facts['risky']} {_joined(facts['values'])}",
            name="all rolls of the die counted as failed",
            hint='That is the number of all rolls of the die. Those that failed have the message "Roll failed" and the'
            " level ERROR.",
        ),
    ),
    hint='Select the lines by timestamp and die_type. The message names the event: "Roll failed" or "Roll completed";'
    " the value is in roll_value.",
    solution="""\
Each event has a message of its own and typed fields, so no text has to be parsed:

    jq -r 'select(.timestamp >= "{since}" and .die_type == "risky") | .message' \\
      {run_dir}/logs/dice-roller.jsonl | sort | uniq -c

    jq 'select(.timestamp >= "{since}" and .die_type == "risky") | .roll_value // empty' \\
      {run_dir}/logs/dice-roller.jsonl | sort -un

{failed} rolls failed. A face of the die that did not come up is not in the log.""",
)

# --- 1.3 ---


async def forty_rolls(lesson: Lesson) -> Facts:
    names = [lesson.chance.choice(dice(lesson)) for _ in range(40)]
    outcomes = await lesson.roll(names)
    spans = await lesson.traces([one.trace_id for one in outcomes])
    took = {
        trace_id: next(
            (span.end - span.start) / 1e6 for span in trace if (span.service, span.name) == (ROLLER, "GET /roll")
        )
        for trace_id, trace in spans.items()
    }
    # By the client's latency. Rolls within one per cent of the slowest are accepted too.
    slowest = max(one.seconds for one in outcomes)
    best = [one for one in outcomes if one.seconds >= 0.99 * slowest - 0.001]
    best.sort(key=lambda one: -one.seconds)
    return lesson.facts(
        slowest=[[one.trace_id, one.die, round(took[one.trace_id], 1)] for one in best],
        fastest=_entry(min(outcomes, key=lambda one: one.seconds), took),
        last=_entry(max(outcomes, key=lambda one: one.at + one.seconds), took),
        first_trace=min(outcomes, key=lambda one: one.at).trace_id,
    )


def _entry(outcome: Outcome, took: dict[str, float]) -> list[Any]:
    return [outcome.trace_id, outcome.die, round(took[outcome.trace_id], 1)]


def _words(entry: list[Any]) -> str:
    trace_id, die, milliseconds = entry
    return f"{trace_id} {die} {milliseconds}"


READING_TRACES = Exercise(
    number="1.3",
    title="Reading traces: the slowest roll",
    by="the page (from stage 2 on), jq, SQL, Tempo",
    question="""\
Since {since} users have rolled 40 times. (Each of the 40 has a trace of its own. From stage 2 on the page lists them;
the spans are in {run_dir}/traces, or in Tempo where it runs.)

Which roll took longest? Give its trace id, its die, and the milliseconds that the dice-roller spent on it.""",
    form=Fields(
        trace_id=Hexadecimal("a trace id", 32),
        die=Word("the die", (FAIR, RISKY, EXTREME)),
        milliseconds=Number(
            "the milliseconds in the dice-roller (within 3 %)", absolute=2.0, relative=0.03, units="ms"
        ),
    ),
    prepare=forty_rolls,
    reference=Answered(lambda facts: _words(facts["slowest"][0])),
    mistakes=(
        Mistake(
            lambda facts: "{} {} {}".format(*facts["slowest"][0][:2], facts["slowest"][0][2] / 1000),
            name="seconds instead of milliseconds",
            hint="The duration is given in seconds; the question asks for milliseconds. In OTLP the start and the end"
            " of a span are nanoseconds: divide their difference by a million.",
        ),
        Mistake(
            lambda facts: _words(facts["fastest"]),
            name="the fastest roll",
            hint="That is the fastest of them. Sort by duration, longest first.",
        ),
        Mistake(
            lambda facts: "{} {} {}".format(*facts["slowest"][0][:2], facts["slowest"][0][2] * 1000),
            name="microseconds instead of milliseconds",
            hint="The duration is given in microseconds; the question asks for milliseconds.",
        ),
    ),
    hint=(
        "The span of the dice-roller is GET /roll; its duration is endTimeUnixNano - startTimeUnixNano, in nanoseconds,"
        " and its attribute die.type names the die. Take only spans of this attempt."
    ),
    solution="""\
A trace is a tree of spans. The one of the dice-roller is GET /roll, with the attribute die.type. Its duration is the
difference of two times in nanoseconds:

    dicelab sql "SELECT duration_ms, trace_id, attributes['die.type'] AS die FROM spans
      WHERE service = 'dice-roller' AND name = 'GET /roll' AND start >= '{since}' ORDER BY 1 DESC LIMIT 1"

From stage 2 on it is quicker in the page: the list of recent rolls is sorted by duration with a click, and the
waterfall shows how much of the time each service took.""",
    accepted=lambda facts: [_words(entry) for entry in facts["slowest"][1:]],
)

# --- 1.4 ---

SUCCESS_RATIO = """\
sum by (die_type) (increase(dice_rolls_total{job="dice-roller",result="success"}[10m]))
  / sum by (die_type) (increase(dice_rolls_total{job="dice-roller"}[10m]))"""


async def recorded_rolls(lesson: Lesson) -> Facts:
    recording = promql.Recording()
    async with recording.of(lesson):
        names = [RISKY] * 24 + [FAIR] * 12
        lesson.chance.shuffle(names)
        outcomes = await lesson.roll(names)
        await asyncio.sleep(4 * promql.INTERVAL)  # with several samples increase() extrapolates little
    at = recording.end
    ratios: dict[str, float] = {}
    for die in (FAIR, RISKY):
        rolls = [one for one in outcomes if one.die == die]
        ratios[die] = sum(one.status == 200 for one in rolls) / len(rolls)
    other = _other_world(lesson.chance, at - promql.APART)
    file = promql.save(lesson, "1.4", recording.text() + other.text())
    return lesson.facts(
        samples=file,
        worlds=[
            {"name": "this run", "at": at, "expected": ratios, "tolerance": 0.05},
            {"name": "the other run", "at": at - promql.APART, "expected": other.ratios, "tolerance": 0.02},
        ],
        rolls=len(outcomes),
    )


class _OtherWorld(Series):
    """A synthetic run: three dice, a counter reset, a second instance, and another job with the same metric."""

    def __init__(self) -> None:
        super().__init__()
        self.ratios: dict[str, float] = {}


def _other_world(chance: random.Random, end: float) -> _OtherWorld:
    world = _OtherWorld()
    step, steps = 5.0, 60
    for die, error_rate in ((FAIR, 0.0), (RISKY, 0.2), (EXTREME, 0.55)):
        counted = {"success": 0, "error": 0}
        for instance in ("127.0.0.1:8000", "127.0.0.1:9000"):
            values = {"success": chance.randint(100, 900), "error": 0 if die == FAIR else chance.randint(300, 900)}
            reset = chance.randint(20, 40) if instance.endswith("8000") else -1
            for index in range(steps + 1):
                if index == reset:
                    values = {"success": 0, "error": 0}
                for result in values:
                    # The first and the last samples do not change, so that increase() has nothing to extrapolate.
                    if 2 <= index <= steps - 2 and (chance.random() < error_rate) == (result == "error"):
                        grown = chance.randint(4, 6)
                        values[result] += grown
                        counted[result] += grown
                    labels = {"job": ROLLER, "instance": instance, "die_type": die, "result": result}
                    world.add("dice_rolls_total", labels, values[result], end - (steps - index) * step)
                    other = {**labels, "job": "dice-roller-canary"}
                    world.add(
                        "dice_rolls_total", other, index * (9 if result == "error" else 1), end - (steps - index) * step
                    )
        world.ratios[die] = counted["success"] / sum(counted.values())
    return world


BASIC_PROMQL = Exercise(
    number="1.4",
    title="Basic PromQL: the success ratio by die",
    by="PromQL",
    question="""\
Write a PromQL query: the share of rolls that succeeded, from 0 to 1, for each die (label die_type), over the last
10 minutes. Use dice_rolls_total of the job "dice-roller"; its label result is "success" or "error".

The query is checked on two runs: the {rolls} rolls that have just been made, sampled twice a second, and one that you
do not see. The second has other dice, two instances, a restart, and another job with a metric of the same name.
Tolerance: 0.05 on this run, 0.02 on the other.""",
    form=Text("a PromQL query; put it in quotes, or in a file given by --file"),
    prepare=recorded_rolls,
    reference=Answered(lambda facts: SUCCESS_RATIO),
    mistakes=(
        Mistake(
            lambda facts: (
                'sum by (die_type) (dice_rolls_total{job="dice-roller",result="success"})'
                ' / sum by (die_type) (dice_rolls_total{job="dice-roller"})'
            ),
            name="counters without increase",
            hint="The query divides the counters themselves: that is the ratio since each process was started, not over"
            " the last 10 minutes, and without the rolls before a restart. Take increase(…[10m]) of each counter"
            " first, then add up.",
        ),
        Mistake(
            lambda facts: (
                'sum by (die_type) (increase(dice_rolls_total{result="success"}[10m]))'
                " / sum by (die_type) (increase(dice_rolls_total[10m]))"
            ),
            name="another job is counted too",
            hint="The query adds up the series of every job that has a metric of this name. Select the job:"
            ' dice_rolls_total{job="dice-roller"}.',
        ),
        Mistake(
            lambda facts: (
                'increase(sum by (die_type) (dice_rolls_total{job="dice-roller",result="success"})[10m:5s])'
                ' / increase(sum by (die_type) (dice_rolls_total{job="dice-roller"})[10m:5s])'
            ),
            name="the sum before the increase",
            hint="The query adds the counters up before it takes the increase. A reset of one of them then looks like a"
            " reset of the sum. Take the increase of each series first, then add up.",
        ),
        Mistake(
            lambda facts: (
                'sum by (die_type) (increase(dice_rolls_total{job="dice-roller",result="error"}[10m]))'
                ' / sum by (die_type) (increase(dice_rolls_total{job="dice-roller"}[10m]))'
            ),
            name="the error ratio",
            hint="That is the share of the rolls that failed. The question asks for those that succeeded.",
        ),
    ),
    hint="Take the increase of each counter over 10 minutes, add up by die_type, and divide the successes by all.",
    solution="""\
Increase first, then add up, then divide:

    """
    + SUCCESS_RATIO.replace("{", "{{").replace("}", "}}")
    + """

increase() handles resets series by series, so it has to come before sum(). The division joins the two sides by the
label that both keep, die_type.""",
    engines=("prometheus",),
    judge=promql.by_label("die_type"),
)

EXERCISES = (METRIC_TYPES, JSON_LOGS, READING_TRACES, BASIC_PROMQL)
