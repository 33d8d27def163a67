"""Recent traces, filtered by service, die, status and duration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frontend.explorer.context import Context
from frontend.explorer.grafana import explore_link
from frontend.explorer.model import TraceQuery, TraceSummary

FOLLOW = 2.0  # seconds between two fetches
STATUSES = {"": None, "ok": False, "failed": True}
MAX_MILLISECONDS = 1e9


class RecentView:
    """Lists the traces that match its controls."""

    name, title = "recent", "Recent traces"
    regions = ("recent-controls", "recent-head", "traces")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._service = self._die = self._status = ""
        self._least = ""  # milliseconds, as typed
        self._found: list[TraceSummary] = []
        on = context.bridge.on
        on("recent.service", lambda value: self._set(service=value))
        on("recent.die", lambda value: self._set(die=value))
        on("recent.status", lambda value: self._set(status=value))
        on("recent.least", lambda value: self._set(least=value))

    def show(self, service: str) -> None:
        """List the traces of a service."""
        self._take(service=service, die="", status="", least="")

    def read(self, query: Mapping[str, str]) -> None:
        self._take(**{name: query.get(name, "") for name in ("service", "die", "status", "least")})

    def query(self) -> dict[str, str]:
        found = {"service": self._service, "die": self._die, "status": self._status, "least": self._least}
        return {name: value for name, value in found.items() if value}

    def _take(self, **values: Any) -> None:
        """Apply the browser's values; an invalid one becomes empty."""
        allowed = {"service": self._context.telemetry.services, "die": self._context.dice, "status": STATUSES}
        for name, value in values.items():
            text = str(value or "")
            valid = _milliseconds(text) is not None if name == "least" else text in allowed[name]
            setattr(self, f"_{name}", text if valid else "")
        self.draw_controls()

    def _set(self, **values: Any) -> None:
        self._take(**values)
        self._context.changed(False)

    def _query(self) -> TraceQuery:
        since, until = self._context.range.bounds()
        return TraceQuery(
            service=self._service,
            die=self._die,
            failed=STATUSES[self._status],
            min_duration_ms=_milliseconds(self._least) or 0.0,
            since=since,
            until=until,
        )

    def draw(self) -> None:
        self.draw_controls()
        self._context.show("recent-head", "logs/loading.html")

    def show_failure(self, message: str) -> None:
        self._context.show("recent-head", "failure.html", message=message)

    async def refresh(self) -> float | None:
        source, query, asked = self._context.telemetry.traces, self._query(), self.query()
        if source is None:
            return None
        found = await source.traces(query)
        if asked != self.query():
            return 0.0  # the user has changed the query meanwhile
        self._found = found
        self._context.show(
            "recent-head",
            "recent/head.html",
            count=len(found),
            more=len(found) == query.limit,
            range=self._context.range.name(self._context.clock),
            link=explore_link(self._context, "tempo", [{"queryType": "traceql", "query": query.traceql()}]),
        )
        self._context.show("traces", "recent/traces.html", traces=found)
        return FOLLOW

    def draw_controls(self) -> None:
        self._context.show(
            "recent-controls",
            "recent/controls.html",
            services=self._context.telemetry.services,
            dice=self._context.dice,
            service=self._service,
            die=self._die,
            status=self._status,
            least=self._least,
        )


def _milliseconds(text: str) -> float | None:
    """A duration as typed; 0 for an empty field, ``None`` for an invalid one."""
    try:
        value = float(text or 0)
    except ValueError:
        return None
    return value if 0 <= value < MAX_MILLISECONDS else None
