"""The context that every view of the explorer gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from frontend.browser.bridge import Bridge
from frontend.browser.clock import Clock, TimeRange
from frontend.browser.render import render
from frontend.explorer.sources import Telemetry


@dataclass
class Context:
    """One browser session's explorer.

    Attributes:
        changed: a view calls it when the user has changed what it shows; fetches the content and writes the address, as
            a new entry of the browser's history if the argument is true.
        open_trace: shows a trace, with a span of it selected.
        show_lines: shows the log lines of a trace, or of one of its spans.
        show_metrics: shows the figures of a service.
        show_traces: lists the traces of a service.
    """

    telemetry: Telemetry
    bridge: Bridge
    clock: Clock
    dice: list[str]
    range: TimeRange = field(default_factory=TimeRange)
    changed: Callable[[bool], None] = lambda push: None
    open_trace: Callable[..., None] = lambda trace_id, span_id="": None
    show_lines: Callable[..., None] = lambda trace_id, span_id="": None
    show_metrics: Callable[[str], None] = lambda service: None
    show_traces: Callable[[str], None] = lambda service: None

    def show(self, region: str, template: str, **values: Any) -> None:
        """Fill a template of the explorer into a region of the page."""
        self.bridge.show(region, render(f"explorer/{template}", clock=self.clock, telemetry=self.telemetry, **values))


class View(Protocol):
    """One tab. :meth:`refresh` fetches its content, but only while the tab is open."""

    @property
    def name(self) -> str:
        """Its name in the address."""

    @property
    def title(self) -> str:
        """The label of its tab."""

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions of the page that it fills, from top to bottom."""

    def draw(self) -> None:
        """Fill the regions with the content before the first fetch."""

    def read(self, query: Mapping[str, str]) -> None:
        """Apply the parameters of the address; missing ones have defaults."""

    def query(self) -> dict[str, str]:
        """The parameters of this view for the address; defaults are left out."""

    async def refresh(self) -> float | None:
        """Fetch and show; returns the seconds after which to do so again, ``None`` for never."""

    def show_failure(self, message: str) -> None:
        """Show that a source does not respond, or that its response is invalid."""
