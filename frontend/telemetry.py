"""Everything observable of the frontend: its metrics, spans and log lines.

Spans: ``HTTP GET``, the root of a user's roll, with ``button click`` (``die.type``) and the call of the
dice-roller (``GET``, by the client instrumentation) below it.

The metrics have the names that existing dashboards for this lab use, although the page does not use Streamlit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from otel import logs, metrics, traces
from otel.http import CLIENT_CLOSED_REQUEST, DURATION_BUCKETS
from web.outcomes import RollOutcomes

SERVICE = "frontend"
ROOT_SPAN = "HTTP GET"
UNKNOWN = "unknown"
EXACT_BATCH_SIZES = 20
BATCH_RANGES = (50, 100, 1000)

_line = logs.events(SERVICE)


def started(port: int) -> None:
    _line(logging.INFO, "Frontend started", port=port)


def batch_size_label(times: int) -> str:
    """The number itself up to 20, then its range, such as ``21-50``."""
    if times <= EXACT_BATCH_SIZES:
        return str(times)
    low = EXACT_BATCH_SIZES
    for high in BATCH_RANGES:
        if times <= high:
            return f"{low + 1}-{high}"
        low = high
    return f">{low}"


class FrontendTelemetry:
    """Clicks, the dice-roller's responses to them, and the list of dice."""

    def __init__(self, registry: CollectorRegistry, dice: Sequence[str], max_batch: int | None) -> None:
        """``max_batch`` is the maximum number of rolls in a batch; ``None`` if there are no batches."""
        self.outcomes = RollOutcomes(registry)
        self._clicks = metrics.Counter(
            "streamlit_button_clicks_total",
            "Rolls requested, in the page or by its JSON API, by die ('unknown': no such die).",
            ["die_type"],
            registry=registry,
        )
        self._requests = metrics.Counter(
            "streamlit_requests_total",
            "Requests to the dice-roller, by die and by the status the user got.",
            ["die_type", "status_code"],
            registry=registry,
        )
        self._duration = metrics.Histogram(
            "streamlit_request_duration_seconds",
            "Seconds from a click to the dice-roller's response, by die.",
            ["die_type"],
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self._async_requests: metrics.Counter | None = None
        if max_batch is not None:
            self._async_requests = metrics.Counter(
                "async_roll_requests_total",
                "Batches of rolls requested, by their size (exact to 20, then a range).",
                ["batch_size"],
                registry=registry,
            )
            for times in range(1, max_batch + 1):
                self._async_requests.labels(batch_size_label(times))
        # Only names that the die-service or the dice-roller has confirmed become label values.
        self._known: set[str] = set()
        self._clicks.labels(UNKNOWN)
        self.known_dice(dice)

    def known_dice(self, dice: Sequence[str]) -> None:
        for die in dice:
            if die not in self._known:
                self._known.add(die)
                self._clicks.labels(die)
                self._requests.labels(die, "200")
                self._duration.labels(die)

    def clicked(self, die: str, times: int | None) -> None:
        """Record that the user requested a roll, or a batch of ``times`` rolls."""
        with traces.span("button click", {"die.type": die}):
            _line(logging.INFO, "Button clicked", die_type=die)
            if times is not None:
                if self._async_requests is not None:
                    self._async_requests.labels(batch_size_label(times)).inc()
                _line(logging.INFO, "Async roll requested", die_type=die, async_batch_size=times)

    def got_response(self, die: str, status: int, url: str, seconds: float) -> None:
        self._count(die, status, seconds)
        _line(
            logging.ERROR if status >= 500 else logging.INFO,
            "Backend failed" if status >= 500 else "Backend answered",
            die_type=die,
            backend_status=status,
            backend_url=url,
        )

    def got_no_response(self, die: str, status: int, url: str, seconds: float, error: BaseException) -> None:
        """Record that the dice-roller did not respond; the user got ``status``."""
        self._count(die, status, seconds)
        _line(
            logging.ERROR,
            "Backend failed",
            die_type=die,
            backend_status=status,
            backend_url=url,
            error=str(error) or type(error).__name__,
        )

    def abandoned(self, die: str, url: str, seconds: float) -> None:
        """Record that the user disconnected before the dice-roller had responded."""
        self._count(die, CLIENT_CLOSED_REQUEST, seconds)
        _line(logging.INFO, "Roll abandoned", die_type=die, backend_url=url)

    def _count(self, die: str, status: int, seconds: float) -> None:
        label = die if die in self._known else UNKNOWN
        self._clicks.labels(label).inc()
        self._requests.labels(label, str(status)).inc()
        self._duration.labels(label).observe(seconds, metrics.exemplar())

    def dice_fetched(self, dice: Sequence[str], url: str) -> None:
        self.known_dice(dice)
        _line(logging.INFO, f"Die list fetched: {len(dice)} dice", backend_status=200, backend_url=url)

    def dice_failed(self, url: str, reason: str) -> None:
        _line(logging.ERROR, "Die list failed", backend_url=url, error=reason)


def usage_event(event_type: str, session_id: str, username: str, **fields: Any) -> None:
    """An action of a signed-in user: a line for the usage log, which the field ``usage`` marks."""
    _line(
        logging.INFO,
        f"Usage: {event_type}",
        usage=True,
        event_type=event_type,
        session_id=session_id,
        username=username,
        **fields,
    )
