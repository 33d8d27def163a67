"""Checks LogQL queries with the lab's Loki. Each world (see :mod:`lab.learn.queries`) is a tenant of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from lab import LabError, error_text
from lab.client import Lab
from lab.learn.exercise import Exercise, Facts, Judge, Verdict
from lab.learn.lesson import Lesson
from lab.learn.queries import alike, compare, with_hint
from lab.queries import Rows, refused, rows_of

# A log line: the labels of its stream, its time in nanoseconds since 1970, its text, its structured metadata.
Entry = tuple[Mapping[str, str], int, str, Mapping[str, str]]


async def push(lab: Lab, tenant: str, entries: Iterable[Entry]) -> None:
    """Send lines to a tenant.

    Raises:
        LabError: when Loki does not accept them.
    """
    streams: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for labels, at, text, metadata in sorted(entries, key=lambda entry: entry[1]):
        streams.setdefault(tuple(sorted(labels.items())), []).append([str(at), text, dict(metadata)])
    document = {"streams": [{"stream": dict(labels), "values": values} for labels, values in streams.items()]}
    url = f"{lab.engine('loki')}/loki/api/v1/push"
    async with lab.session.post(url, json=document, headers={"X-Scope-OrgID": tenant}) as response:
        if response.status >= 300:
            raise LabError(f"Loki does not accept the lines of this exercise: {(await response.text())[:200]}")


async def rows(lab: Lab, tenant: str, query: str, at: float, label: str = "") -> Rows:
    """The result of a metric query by the values of a label; values of 0 and NaN are left out.

    Raises:
        InputError: when Loki refuses the query, with its own message.
        LabError: when it does not respond.
    """
    parameters = {"query": query, "time": str(int(at * 1e9)), "limit": "5000"}
    try:
        url = f"{lab.engine('loki')}/loki/api/v1/query"
        async with lab.session.get(url, params=parameters, headers={"X-Scope-OrgID": tenant}) as response:
            text = await response.text()
            if response.status != 200:
                raise refused("Loki", text)
            data: dict[str, Any] = (await response.json())["data"]
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        raise LabError(f"loki went away: {error_text(error)}") from None
    return {key: value for key, value in rows_of(data, label).items() if value}


def by_label(label: str) -> Judge:
    """A judge that compares the result of a query, by a label, with the expected one in each world.

    The facts hold ``worlds``, each with ``name``, ``tenant``, ``at``, ``expected`` and ``tolerance``.
    """

    async def judge(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
        async def results(query: str) -> list[Rows]:
            return [await rows(lesson.lab, world["tenant"], query, world["at"], label) for world in facts["worlds"]]

        found = await results(answer)
        verdict = compare(found, facts["worlds"])
        return await with_hint(verdict, exercise, facts, results, lambda other: alike(found, other))

    return judge


def nanoseconds(seconds: float | None = None) -> int:
    """A time in seconds since 1970, by default now, in nanoseconds."""
    return int((time.time() if seconds is None else seconds) * 1e9)
