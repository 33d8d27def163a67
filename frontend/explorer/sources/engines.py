"""Tempo and Loki as sources, over their HTTP APIs."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from yarl import URL

from frontend.explorer.model import (
    ERROR,
    Cell,
    Edge,
    LogLine,
    LogQuery,
    SourceError,
    Span,
    TraceQuery,
    TraceSummary,
    Volume,
    log_line,
    otlp_attributes,
    otlp_events,
)
from frontend.explorer.sources.calls import cells, edges

TIMEOUT = ClientTimeout(total=10.0)  # seconds
SECOND = 1_000_000_000  # nanoseconds
LOOK_BACK = 24 * 3600  # seconds that a search covers
TRACES = 40  # the newest traces, from which the heat map and the service map are computed
KEPT = 4.0  # seconds for which these traces are cached
TENANTS = {"X-Scope-OrgID": "operations|usage"}  # of Loki: operational lines, and usage events
KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")


class Engine:
    """One engine's HTTP API. Its responses are JSON; these requests are neither traced nor counted."""

    name = ""

    def __init__(self, session: Callable[[], ClientSession], url: URL) -> None:
        self._session = session
        self._url = url

    async def get(
        self, path: str, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """The response to a GET, or ``None`` for 404.

        Raises:
            SourceError: when the engine does not respond, or with another status.
        """
        try:
            with suppress_http_instrumentation():
                async with self._session().get(
                    self._url / path,
                    params=query,
                    headers={"Accept-Encoding": "identity", **(headers or {})},
                    timeout=TIMEOUT,
                ) as response:
                    body = await response.read()
            if response.status == 404:
                return None
            if response.status != 200:
                text = body.decode(errors="replace").strip()[:200]
                raise SourceError(f"{self.name} answered {response.status}: {text}")
            return orjson.loads(body)
        except (ClientError, asyncio.TimeoutError) as error:
            raise SourceError(f"{self.name} at {self._url} does not answer.") from error
        except ValueError as error:
            raise SourceError(f"{self.name} did not answer with JSON.") from error


class Tempo(Engine):
    """Traces from Tempo."""

    name = "Tempo"
    _kept: tuple[tuple[int, int], float, list[Span]] | None = None

    async def trace(self, trace_id: str) -> list[Span]:
        response = await self.get(f"api/v2/traces/{trace_id}", headers={"Accept": "application/json"})
        trace = (response or {}).get("trace") or {}
        return [
            _span(trace_id, str(otlp_attributes(resource["resource"].get("attributes")).get("service.name")), span)
            for resource in trace.get("resourceSpans") or trace.get("batches") or ()
            for scope in resource.get("scopeSpans") or ()
            for span in scope.get("spans") or ()
        ]

    async def traces(self, query: TraceQuery) -> list[TraceSummary]:
        now = int(time.time())
        response = await self.get(
            "api/search",
            {
                "q": query.traceql() + " | select(span.die.type)",
                "limit": str(query.limit),
                "start": str(query.since // SECOND or now - LOOK_BACK),
                "end": str(query.until // SECOND or now + 60),
            },
        )
        found = [_summary(trace) for trace in (response or {}).get("traces") or ()]
        if query.failed is False:
            found = [trace for trace in found if not trace.failed]
        return sorted(found, key=lambda trace: trace.start, reverse=True)

    async def heat(self, since: int, until: int, step: int) -> list[Cell]:
        return cells(await self._newest(since, until), step)

    async def edges(self, since: int, until: int) -> list[Edge]:
        return edges(await self._newest(since, until))

    async def _newest(self, since: int, until: int) -> list[Span]:
        """The spans of the newest traces; Tempo returns one trace a request, so these are few."""
        now = time.monotonic()
        asked = (since // (60 * SECOND), until)
        if self._kept and self._kept[0] == asked and now - self._kept[1] < KEPT:
            return self._kept[2]
        found = await self.traces(TraceQuery(limit=TRACES, since=since, until=until))
        traces = await asyncio.gather(*(self.trace(trace.trace_id) for trace in found))
        spans = [span for trace in traces for span in trace]
        self._kept = (asked, now, spans)
        return spans


class Loki(Engine):
    """Log lines from Loki."""

    name = "Loki"

    async def lines(self, query: LogQuery) -> list[LogLine]:
        response = await self.get(
            "loki/api/v1/query_range",
            {"query": query.logql(), "limit": str(query.limit), "direction": "backward", **_between(query)},
            TENANTS,
        )
        streams = ((response or {}).get("data") or {}).get("result") or ()
        found = [
            (int(value[0]), log_line(value[1], labels.get("service_name", ""), labels.get("level", "unknown")))
            for stream in streams
            for labels in [stream.get("stream") or {}]
            for value in stream.get("values") or ()
        ]
        return [line for _, line in sorted(found, key=lambda item: item[0], reverse=True)][: query.limit]

    async def volume(self, query: LogQuery, step: int) -> list[Volume]:
        seconds = max(1, step // SECOND)
        response = await self.get(
            "loki/api/v1/query_range",
            {
                "query": f"sum by (level) (count_over_time({query.logql()} [{seconds}s]))",
                "step": str(seconds),
                **_between(query),
            },
            TENANTS,
        )
        return [
            # Loki counts back from each point.
            Volume(
                int(float(at) - seconds) * SECOND // step * step, series["metric"].get("level", "unknown"), int(count)
            )
            for series in ((response or {}).get("data") or {}).get("result") or ()
            for at, count in series.get("values") or ()
        ]


def _between(query: LogQuery) -> dict[str, str]:
    now = time.time_ns()
    return {"start": str(query.since or now - LOOK_BACK * SECOND), "end": str(query.until or now + 60 * SECOND)}


def _hex(text: str) -> str:
    """An id as hex digits; Tempo's JSON has them in base64."""
    if not text or re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{32}", text):
        return text
    return base64.b64decode(text).hex()


def _number(value: Any, prefix: str, names: Iterable[str]) -> int:
    """The number of an enumeration's value, which is given as a number or by name."""
    return int(value) if isinstance(value, int) else [prefix + name for name in names].index(value)


def _span(trace_id: str, service: str, span: Mapping[str, Any]) -> Span:
    status = span.get("status") or {}
    return Span(
        trace_id=trace_id,
        span_id=_hex(span["spanId"]),
        parent_id=_hex(span.get("parentSpanId", "")),
        service=service,
        name=span.get("name", ""),
        kind=_number(span.get("kind", 0), "SPAN_KIND_", KINDS),
        start=int(span["startTimeUnixNano"]),
        finish=int(span.get("endTimeUnixNano", span["startTimeUnixNano"])),
        failed=_number(status.get("code", 0), "STATUS_CODE_", ("UNSET", "OK", "ERROR")) == ERROR,
        message=status.get("message", ""),
        attributes=otlp_attributes(span.get("attributes")),
        events=otlp_events(span.get("events")),
    )


def _summary(trace: Mapping[str, Any]) -> TraceSummary:
    statistics = trace.get("serviceStats") or {}
    found = (
        otlp_attributes(span.get("attributes")).get("die.type", "")
        for group in trace.get("spanSets") or ()
        for span in group.get("spans") or ()
    )
    return TraceSummary(
        trace_id=str(trace["traceID"]).rjust(32, "0"),
        start=int(trace.get("startTimeUnixNano", 0)),
        duration=int(trace.get("durationMs", 0)) * 1_000_000,
        name=str(trace.get("rootTraceName", "")),
        die=str(next((die for die in found if die), "")),
        failed=any(entry.get("errorCount") for entry in statistics.values()),
        services=tuple(sorted(statistics)),
        spans=sum(entry.get("spanCount", 0) for entry in statistics.values()) or None,
    )
