"""Checks TraceQL queries with the lab's Tempo. Each world is a set of traces whose ids begin with its own prefix."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from lab import LabError, error_text
from lab.client import Lab
from lab.learn.exercise import Exercise, Facts, Verdict
from lab.learn.lesson import TIMEOUT, Lesson
from lab.learn.queries import with_hint
from lab.queries import refused
from lab.waiting import within

LIMIT = 1000  # traces
TRIES = 3  # how often a search is tried


async def search(lab: Lab, query: str, world: Mapping[str, Any]) -> set[str]:
    """The ids of the traces of a world that a query finds.

    Raises:
        InputError: when Tempo refuses the query, with its own message.
        LabError: when it does not respond.
    """
    parameters = {"q": query, "start": str(int(world["start"]) - 2), "end": str(int(world["end"]) + 2)}
    url = f"{lab.engine('tempo')}/api/search"
    document: dict[str, Any] = {}
    for left in reversed(range(TRIES)):
        try:
            async with lab.session.get(url, params={**parameters, "limit": str(LIMIT), "spss": "1"}) as response:
                if response.status == 200:
                    document = await response.json()
                    break
                text = await response.text()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise LabError(f"tempo went away: {error_text(error)}") from None
        # Tempo splits the time range into what it has in memory and what is older. While the border between the two is
        # the start or the end of the search, for a second, it refuses the empty part.
        if "start must be before end" not in text or not left:
            raise refused("Tempo", text)
        await asyncio.sleep(1.1)
    # Tempo leaves out leading zeros.
    found = {str(trace["traceID"]).rjust(32, "0") for trace in document.get("traces") or []}
    return {trace_id for trace_id in found if trace_id.startswith(world["prefix"])}


async def judge(exercise: Exercise, lesson: Lesson, facts: Facts, answer: str) -> Verdict:
    """Compare the traces that a query finds with the expected ones, in each of the ``worlds``.

    Raises:
        LabError: when even the reference solution does not find them yet.
    """
    expected = [set(world["expected"]) for world in facts["worlds"]]

    async def results(query: str) -> list[set[str]]:
        return [await search(lesson.lab, query, world) for world in facts["worlds"]]

    async for _ in within(TIMEOUT, 0.3):
        if await results(exercise.reference.text(facts)) == expected:
            break
    else:
        raise LabError("Tempo does not find the traces of this exercise yet; answer again in a moment")
    found = await results(answer)
    for ids, world in zip(found, facts["worlds"], strict=True):
        missing, surplus = set(world["expected"]) - ids, ids - set(world["expected"])
        if missing or surplus:
            text = (
                f"Not right on {world['name']}: of the traces asked for the query misses {len(missing)},"
                f" and it finds {len(surplus)} others."
            )
            break
    else:
        return Verdict(True, f"Right on {' and on '.join(world['name'] for world in facts['worlds'])}.")
    return await with_hint(Verdict(False, text), exercise, facts, results, lambda other: other == found)
