"""Stage 4: parents and children, overlapping spans, a fair comparison, a blocked event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from lab import LabError
from lab.client import ROLLER
from lab.learn.exercise import Answered, Exercise, Facts, Mistake
from lab.learn.forms import Fields, Hexadecimal, Number, Word
from lab.learn.lesson import Lesson
from lab.learn.stage1 import FAIR
from lab.load.statistics import expected_speedup, ratio_of_means
from lab.signals import Span

ROUNDS = 16  # of our own comparison, with which the learner's is compared
RUNS = ("a", "b")


async def _batch(lesson: Lesson, times: int) -> tuple[str, list[Span]]:
    """Roll a batch; returns its trace id and its spans."""
    trace_id = lesson.trace_id()
    outcome = await lesson.ask("/roll-async", {"die": FAIR, "times": str(times)}, trace_id=trace_id)
    if outcome.status != 200:
        raise LabError(f"the batch of this exercise returned {outcome.status}; ask again")
    return trace_id, (await lesson.traces([trace_id]))[trace_id]


def _parts(trace: Sequence[Span]) -> tuple[Span, list[Span]]:
    """The span of the batch, and those of its rolls."""
    batch = next(span for span in trace if span.name == "async roll batch")
    return batch, [span for span in trace if span.parent_id == batch.span_id]


def _index(roll: Span) -> int:
    return int(roll.attributes["async.roll_index"])


# --- 4.1 ---


async def a_batch(lesson: Lesson) -> Facts:
    trace_id, trace = await _batch(lesson, lesson.chance.randint(8, 16))
    batch, rolls = _parts(trace)
    request = next(span for span in trace if span.name == "GET /roll-async")
    return lesson.facts(
        trace=trace_id, below=len(rolls), total=len(trace), parent=batch.span_id, request=request.span_id
    )


PARENT_CHILD = Exercise(
    number="4.1",
    title="Parents and children: the tree of a batch",
    by="the page, jq, SQL, Tempo",
    question="""\
Look at trace {trace}, a batch of rolls.

How many spans are below the span "async roll batch", and what is the span id of the parent of the span "roll 7"?""",
    form=Fields(
        spans=Number("the number of spans", whole=True),
        parent=Hexadecimal("a span id", 16),
    ),
    prepare=a_batch,
    reference=Answered(lambda facts: f"{facts['below']} {facts['parent']}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['total']} {facts['parent']}",
            name="all spans of the trace",
            hint='That is how many spans the whole trace has. Count those below the span "async roll batch" only.',
        ),
        Mistake(
            lambda facts: f"{facts['below']} {facts['request']}",
            name="the request as the parent",
            hint='That span id is the one of GET /roll-async, two levels above "roll 7". The parent is the span that'
            " parentSpanId names, one level above.",
        ),
    ),
    hint='Each span names its parent in parentSpanId. The children of "async roll batch" are the spans that name its'
    " spanId.",
    solution="""\
    dicelab sql "SELECT name, span_id, parent_id FROM spans WHERE trace_id = '{trace}' ORDER BY start"

The tree follows the calls in the code: the server span GET /roll-async, below it "query die service" and "async roll
batch", and below that one span for each roll. The rolls are siblings: roll 7 is not a child of roll 6.""",
)

# --- 4.2 ---


def peak(spans: Sequence[Span]) -> int:
    """The highest number of spans that were open at the same time."""
    changes = sorted([(span.start, 1) for span in spans] + [(span.end, -1) for span in spans])
    open_now = most = 0
    for _, change in changes:
        open_now += change
        most = max(most, open_now)
    return most


async def an_overlapping_batch(lesson: Lesson) -> Facts:
    for _ in range(8):
        trace_id, trace = await _batch(lesson, lesson.chance.randint(7, 14))
        batch, rolls = _parts(trace)
        longest = max(rolls, key=lambda span: span.end)
        if _index(longest) not in (1, len(rolls)):
            break
    mean = sum(span.end - span.start for span in rolls) / (batch.end - batch.start)
    return lesson.facts(
        trace=trace_id,
        peak=peak(rolls),
        deciding=_index(longest),
        last=max(map(_index, rolls)),
        first_to_end=_index(min(rolls, key=lambda span: span.end)),
        mean=round(mean),
    )


OVERLAP = Exercise(
    number="4.2",
    title="Overlap: how many at once, and which one decides?",
    by="the page, jq, SQL, Tempo",
    question="""\
Look at trace {trace}, a batch of rolls.

What is the highest number of rolls that were in progress at the same time, and which roll decides how long the batch
takes? Give its number: the 3 of "roll 3".""",
    form=Fields(
        most_at_once=Number("the highest number at the same time", whole=True),
        deciding_roll=Number("the number of a roll", whole=True),
    ),
    prepare=an_overlapping_batch,
    reference=Answered(lambda facts: f"{facts['peak']} {facts['deciding']}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['mean']} {facts['deciding']}",
            name="the mean instead of the peak",
            hint="That is how many were in progress on average: the sum of the durations divided by that of the batch."
            " For the peak, go through the starts and ends in the order of time: add one at each start, take one off at"
            " each end, and note the highest value.",
        ),
        Mistake(
            lambda facts: f"{facts['peak']} {facts['last']}",
            name="the roll with the highest number",
            hint="That is the roll with the highest number. The numbers are the order in which the rolls start; the"
            " batch waits for the one that ends last.",
        ),
    ),
    hint="Go through starts and ends in the order of time, adding and taking off one. The batch ends when its last roll"
    " ends.",
    solution="""\
    dicelab sql "SELECT name, start_ns, end_ns FROM spans
      WHERE trace_id = '{trace}' AND name LIKE 'roll %' ORDER BY end_ns DESC"

The rolls start within a millisecond of each other and wait at the same time, so for a moment all of them are open: the
peak is {peak}. Roll {deciding} ends last, and the batch can only end after it. Such a span is called the critical path:
making any other roll faster would not make the batch faster. Durations of overlapping spans must not be added up; their
union counts.""",
)

# --- 4.3 ---


async def a_comparison(lesson: Lesson) -> Facts:
    delay = float(lesson.lab.state.get("roll_delay", 1.0))
    if not delay:
        raise LabError(
            "the dice of this lab do not wait, so there is nothing to compare: start it without --roll-delay 0"
        )
    times = lesson.chance.randint(6, 10)

    async def one() -> tuple[float, float]:
        began = time.monotonic()
        for _ in range(times):
            await lesson.ask("/roll", {"die": FAIR})
        between = time.monotonic()
        await lesson.ask("/roll-async", {"die": FAIR, "times": str(times)})
        return between - began, time.monotonic() - between

    rounds = await asyncio.gather(*(one() for _ in range(ROUNDS)))
    ratio = ratio_of_means([pair[0] for pair in rounds], [pair[1] for pair in rounds])
    return lesson.facts(
        times=times, delay=delay, predicted=expected_speedup(times), measured=round(ratio.value, 2), half=times / 2
    )


# Three standard errors of the ratio of ten rounds of 6 rolls against ROUNDS of ours. A wait is uniform: the sum of n
# has the relative variance 1/(3n), the longest of n has 1/(n(n+2)).
COMPARISON_TOLERANCE = round(3 * math.sqrt((1 / 18 + 1 / 48) * (1 / 10 + 1 / ROUNDS)), 2)

COMPARISON = Exercise(
    number="4.3",
    title="Comparing fairly: predict, then measure",
    by="dicelab compare",
    question=f"""\
Each roll waits a random time between 0 and {{delay:g}} seconds, every time equally likely. One can roll {{times}}
times, one roll after the other, or ask for a batch of {{times}}, which wait at the same time.

By which factor is the batch faster, on average? First predict it from the two mean times. Then measure it, with ten
rounds or more:

    dicelab compare --die fair --times {{times}}

Give both numbers. The measured one may differ from a measurement of ours by {COMPARISON_TOLERANCE:.0%}, which is three
standard errors.""",
    form=Fields(
        prediction=Number("the predicted factor", absolute=0.05, units="x"),
        measurement=Number("the measured factor", relative=COMPARISON_TOLERANCE, units="x"),
    ),
    prepare=a_comparison,
    reference=Answered(lambda facts: f"{facts['predicted']} {facts['measured']}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['times']} {facts['measured']}",
            name="as many times as there are rolls",
            hint="The batch would be that much faster if it took as long as one average roll. But it takes as long as"
            " its longest roll, and the more rolls there are, the longer the longest of them waits.",
        ),
        Mistake(
            lambda facts: f"{facts['half']} {facts['measured']}",
            name="the longest wait taken for the whole batch",
            hint="You have compared with a batch that always takes the longest possible time. On average the longest"
            " of n uniform waits of up to d is d n/(n+1).",
        ),
    ),
    hint="One after the other the mean waits add up: n d/2. The longest of n uniform waits is d n/(n+1) on average.",
    solution="""\
One after the other: n d/2. At once: the longest of n waits, d n/(n+1) on average. The factor is
(n d/2) / (d n/(n+1)) = (n+1)/2 = {predicted:g}.

dicelab compare alternates the two in random order, so that a slow moment of the machine hits both, and gives a 95 %
confidence interval. One round of each proves nothing: two waits differ by more than what is to be measured. Our own
measurement gave {measured}.""",
)

# --- 4.4 ---


async def a_blocked_loop(lesson: Lesson) -> Facts:
    blocked = lesson.chance.choice(RUNS)
    times = lesson.chance.randint(5, 7)
    found: dict[str, tuple[str, list[Span]]] = {}
    async with lesson.faults() as target:
        for run in RUNS:
            await target.restart({ROLLER: {"BLOCKING_WAIT": str(run == blocked).lower()}})
            await lesson.ready()
            batch, _ = await asyncio.gather(_batch(lesson, times), lesson.roll([FAIR] * 3))
            found[run] = batch
    batch_span, rolls = _parts(found[blocked][1])
    longest = max(span.end - span.start for span in rolls) / 1e6
    return lesson.facts(
        run=blocked,
        other=next(run for run in RUNS if run != blocked),
        longest=round(longest, 1),
        whole=round((batch_span.end - batch_span.start) / 1e6, 1),
        trace_a=found["a"][0],
        trace_b=found["b"][0],
    )


ASYNC_PATTERNS = Exercise(
    number="4.4",
    title="Async patterns: which run blocks its event loop?",
    by="the page, jq, SQL, Tempo",
    question="""\
The dice-roller has been run twice. In one of the two runs its code had a mistake: the wait of a roll blocked the event
loop, as time.sleep() does where await asyncio.sleep() belongs. (The mistake has been removed since.) In each run users
requested a batch and single rolls at the same time. The batches are

    run A: trace {trace_a}
    run B: trace {trace_b}

Which run was it, and for how many milliseconds did the longest single wait of its batch block the loop?""",
    form=Fields(
        run=Word("the run, a or b", RUNS),
        milliseconds=Number("the milliseconds (within 5 %)", absolute=2.0, relative=0.05, units="ms"),
    ),
    prepare=a_blocked_loop,
    reference=Answered(lambda facts: f"{facts['run']} {facts['longest']}"),
    mistakes=(
        Mistake(
            lambda facts: f"{facts['other']} {facts['longest']}",
            name="the other run",
            hint="In that run the rolls of the batch overlap: each gives the loop back while it waits. Where the loop"
            " is blocked, one roll can start only after the one before it has ended.",
        ),
        Mistake(
            lambda facts: f"{facts['run']} {facts['whole']}",
            name="the whole batch",
            hint="That is how long the whole batch took. Between two rolls the loop is free for a moment; one block"
            " lasts as long as one roll.",
        ),
    ),
    hint=(
        "Compare the waterfalls of the two batches: do the rolls overlap, or does each start where the one before it"
        " ends?"
    ),
    solution="""\
In run {run} the rolls are a staircase: each starts where the one before it ends, although the code starts all of them
at once. The batch takes the sum of the waits instead of the longest, and every other request of the process waits as
well, /metrics and /healthz included. The metric that shows it is event_loop_lag_seconds: how much later than planned
the loop ran a callback. CPU profilers show nothing, because a blocked loop uses no CPU.""",
    final=True,
)

EXERCISES = (PARENT_CHILD, OVERLAP, COMPARISON, ASYNC_PATTERNS)
