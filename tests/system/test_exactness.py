"""Telemetry is exact: after mixed load every signal agrees with every request."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import aiohttp

from tests.support.labs import Lab, Span, wait_for
from tests.support.matrix import spans_of

REQUESTS = 400
CONCURRENCY = 40


def plan(seed: int) -> list[tuple[str, str, int]]:
    """(path, die, number of rolls) of every request."""
    chance = random.Random(seed)
    requests = []
    for _ in range(REQUESTS):
        die = chance.choice(["fair", "fair", "risky", "extreme", "nosuch"])
        if chance.random() < 0.4:
            times = chance.choice([1, 2, 7, 20, 33])
            requests.append((f"/roll-async?die={die}&times={times}", die, times))
        else:
            requests.append((f"/roll?die={die}", die, 1))
    return requests


async def send(front: str, requests: list[tuple[str, str, int]]) -> list[tuple[int, str, list[int | None]]]:
    """Status, trace id and faces of every request's response."""
    responses: list[tuple[int, str, list[int | None]]] = []
    places = asyncio.Semaphore(CONCURRENCY)

    async def one(session: aiohttp.ClientSession, path: str) -> None:
        async with places, session.get(front + path) as response:
            body = await response.json(content_type=None)
            faces = body.get("rolls", [body["roll"]] if "roll" in body else [None] if response.status == 500 else [])
            responses.append((response.status, response.headers["X-Trace-Id"], faces))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(session, path) for path, _, _ in requests))
    return responses


async def test_counters_lines_and_spans_agree_with_the_requests(own_lab: Callable[..., Lab], telemetry: str) -> None:
    lab = own_lab(6, roll_delay=0.02, TELEMETRY=telemetry)
    requests = plan(seed=6)
    responses = await send(lab.front, requests)
    statuses = Counter(status for status, _, _ in responses)
    faces = [face for _, _, rolls in responses for face in rolls]
    batches = [path for path, _, _ in requests if "async" in path]
    known = sum(1 for _, die, _ in requests if die != "nosuch")
    rolls = sum(times for _, die, times in requests if die != "nosuch")
    batch_rolls = sum(times for path, die, times in requests if die != "nosuch" and "async" in path)
    assert set(statuses) == {200, 404, 500}
    assert len(faces) == rolls

    # Counters.
    for service, handlers in (("frontend", ("/roll", "/roll-async")), ("dice-roller", ("/roll", "/roll-async"))):
        counted: Counter[int] = Counter()
        for sample in lab.samples(service):
            if sample.name == "http_requests_total" and sample.labels["handler"] in handlers:
                counted[int(sample.labels["status"])] += int(sample.value)
        assert +counted == statuses
        assert (
            sum(lab.value(service, "http_request_duration_seconds_count", handler=path) for path in handlers)
            == REQUESTS
        )
        outcomes = {200: "success", 404: "refused", 500: "die_failed"}
        for status, outcome in outcomes.items():
            assert lab.value(service, "roll_requests_total", outcome=outcome) == statuses[status]
        assert lab.value(service, "roll_requests_total") == REQUESTS
    assert lab.value("frontend", "streamlit_button_clicks_total") == REQUESTS
    assert lab.value("frontend", "streamlit_button_clicks_total", die_type="unknown") == REQUESTS - known
    assert lab.value("frontend", "streamlit_request_duration_seconds_count") == REQUESTS
    assert lab.value("frontend", "async_roll_requests_total") == len(batches)
    for status, count in statuses.items():
        assert lab.value("frontend", "streamlit_requests_total", status_code=str(status)) == count
    good = sum(1 for face in faces if face is not None)
    assert lab.value("dice-roller", "dice_rolls_total", result="success") == good
    assert lab.value("dice-roller", "dice_roll_value_count") == good
    assert lab.value("dice-roller", "dice_roll_value_sum") == sum(face or 0 for face in faces)
    assert lab.value("dice-roller", "dice_rolls_total", result="error") == (rolls - good) + (REQUESTS - known)
    assert lab.value("dice-roller", "async_rolls_total") == batch_rolls
    assert lab.value("dice-roller", "async_roll_batch_size_sum") == batch_rolls
    assert lab.value("dice-roller", "async_rolls_in_progress") == 0
    assert lab.value("dice-roller", "die_service_requests_total", status="200") == known
    assert lab.value("dice-roller", "die_service_requests_total", status="404") == REQUESTS - known
    assert lab.value("dice-roller", "die_service_request_duration_seconds_count") == REQUESTS
    assert lab.value("die-service", "http_requests_total", handler="/dice") == REQUESTS
    assert lab.value("die-service", "die_specifications_requested_total") == REQUESTS
    assert lab.value("die-service", "database_queries_total", query_type="get", result="success") == REQUESTS
    assert lab.value("die-service", "database_query_duration_seconds_count", query_type="get") == REQUESTS
    size = lab.value("die-service", "database_connection_pool_size")
    assert size == lab.value("die-service", "database_connection_pool_available") == 10

    # Log lines.
    lab.settle()
    lines = lab.logs()
    said = Counter((line["logger"], line["message"]) for line in lines)
    assert said["frontend", "Button clicked"] == REQUESTS
    assert said["frontend", "Backend answered"] + said["frontend", "Backend failed"] == REQUESTS
    assert said["dice-roller", "Roll requested"] == REQUESTS
    assert said["dice-roller", "Querying die service"] == REQUESTS
    assert said["dice-roller", "Roll completed"] + said["dice-roller", "Roll of a batch completed"] == good
    assert said["dice-roller", "Roll failed"] + said["dice-roller", "Roll of a batch failed"] == rolls - good
    assert said["dice-roller", "Unknown die"] == said["die-service", "Unknown die"] == REQUESTS - known
    assert said["die-service", "Die requested"] == known
    assert said["die-service", "Query executed"] == REQUESTS
    access = Counter(line["logger"] for line in lines if line.get("http_target", "").startswith(("/roll", "/dice")))
    assert access == {"frontend": REQUESTS, "dice-roller": REQUESTS, "die-service": REQUESTS}

    # Traces.
    expected = sum(
        spans_of(6, times if "async" in path else None, die_is_known=die != "nosuch") for path, die, times in requests
    )
    ids = {trace_id for _, trace_id, _ in responses}
    assert len(ids) == REQUESTS

    def spans_of_rolls() -> list[Span] | None:
        spans = [span for span in lab.spans() if span.trace_id in ids]
        return spans if len(spans) >= expected else None

    spans = wait_for(spans_of_rolls, say=f"{expected} spans")
    assert len(spans) == expected
    assert len({span.span_id for span in spans}) == expected
    present = {(span.trace_id, span.span_id) for span in spans}
    assert all(not span.parent_id or (span.trace_id, span.parent_id) in present for span in spans)
    roots = Counter(span.trace_id for span in spans if not span.parent_id)
    assert roots == Counter(ids)
    assert {line["trace_id"] for line in lines if "trace_id" in line} >= ids
    where = {(span.trace_id, span.span_id) for span in lab.spans()}
    assert all((line["trace_id"], line["span_id"]) in where for line in lines if line.get("trace_id") in ids)
