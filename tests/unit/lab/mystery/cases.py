"""Hand-written cases: rolls through three services and a database, each case with one difference."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from lab.client import DIE_SERVICE, FRONTEND, ROLLER
from lab.mystery.case import Case
from lab.mystery.samples import Scrape
from lab.mystery.truth import Truth
from lab.signals import format_time

BEGAN = 1_750_000_000.0
ONSET = BEGAN + 40
ENDED = BEGAN + 76
KINDS = {"internal": 1, "server": 2, "client": 3}

Span = dict[str, Any]


class Roll:
    """One roll as a chain of spans, outermost first; a test changes it before the spans are built."""

    def __init__(self, number: int, at: float, chance: random.Random) -> None:
        self.trace_id = f"{number:032x}"
        self.at = at
        self.wait = chance.uniform(0.0, 0.5)  # of the roll itself
        self.network = {FRONTEND: 0.002, ROLLER: 0.002, DIE_SERVICE: 0.002}  # below each client span
        self.failed = ""  # the service whose client span fails, without a span below it
        self.status = 200
        self.unseen: set[str] = set()  # services whose spans are missing
        self.unlinked = ""  # a service that begins a trace of its own
        self.attempts = 1  # of the dice-roller; all except the last fail
        self.face = chance.randint(1, 6)

    def spans(self) -> list[tuple[str, Span]]:
        """Each with its service."""
        made: list[tuple[str, Span]] = []
        trace_id, parent, at = self.trace_id, "", self.at
        inner = 0.003
        lengths = {}
        for service in (DIE_SERVICE, ROLLER, FRONTEND):
            lengths[service, "client"] = inner + self.network[service]
            inner = lengths[service, "client"] + 0.004 + (self.wait if service == ROLLER else 0.0)
            lengths[service, "server"] = inner
        for service in (FRONTEND, ROLLER, DIE_SERVICE):
            if service == self.unlinked:
                trace_id, parent = f"{int(self.trace_id, 16) + 2**64:032x}", ""
            failed = self.status >= 500
            name = "GET /dice" if service == DIE_SERVICE else "GET /roll"
            server = self._span(trace_id, parent, name, "server", at, lengths[service, "server"], failed)
            server["attributes"].append(_attribute("die.type", "fair"))
            if service == ROLLER:
                server["attributes"].append({"key": "die.result", "value": {"intValue": str(self.face)}})
            made.append((service, server))
            at += 0.001
            attempts = self.attempts if service == ROLLER else 1
            for attempt in range(attempts):
                client = self._span(
                    trace_id,
                    server["spanId"],
                    "SELECT" if service == DIE_SERVICE else "GET",
                    "client",
                    at + attempt * 1e-4,
                    lengths[service, "client"],
                    failed or attempt < attempts - 1,
                )
                if service != DIE_SERVICE:
                    client["attributes"].append(_attribute("http.request.method", "GET"))
                made.append((service, client))
            parent = client["spanId"]
            at += self.network[service] / 2
            if service == self.failed:
                break
        return [(service, span) for service, span in made if service not in self.unseen]

    def _span(
        self, trace_id: str, parent: str, name: str, kind: str, start: float, length: float, failed: bool
    ) -> Span:
        return {
            "traceId": trace_id,
            "spanId": f"{random.getrandbits(64) | 1:016x}",
            "parentSpanId": parent,
            "name": name,
            "kind": KINDS[kind],
            "startTimeUnixNano": str(round(start * 1e9)),
            "endTimeUnixNano": str(round((start + length) * 1e9)),
            "attributes": [{"key": "http.response.status_code", "value": {"intValue": str(self.status)}}],
            "status": {"code": 2} if failed else {},
        }


def _attribute(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def case(change: Callable[[Roll], None] = lambda roll: None, rate: float = 5.0) -> Case:
    """Rolls at a rate; ``change`` is applied to those during the fault."""
    chance = random.Random(1)
    exports, lines = [], []
    for number in range(1, int((ENDED - BEGAN) * rate)):
        roll = Roll(number, BEGAN + number / rate, chance)
        if roll.at >= ONSET:
            change(roll)
        for service, span in roll.spans():
            exports.append(_export(service, span))
        lines.append(
            {
                "timestamp": format_time(roll.at),
                "level": "ERROR" if roll.status >= 500 else "INFO",
                "logger": FRONTEND,
                "message": "Roll",
                "trace_id": roll.trace_id,
            }
        )
    return Case(BEGAN, ENDED, exports, lines)


def _export(service: str, span: Span) -> dict[str, Any]:
    resource = {"attributes": [_attribute("service.name", service)]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}


def truth(component: str, mechanism: str, **more: Any) -> Truth:
    return Truth("made", (component,), (mechanism,), "everyone", more.pop("onset", ONSET), ENDED, **more)


def trace_at(seconds: float, rate: float = 5.0) -> str:
    """The trace id of the roll this many seconds after the onset."""
    return f"{round((ONSET - BEGAN + seconds) * rate):032x}"


PAGE = """\
# TYPE http_requests counter
http_requests_total{{status="200"}} {answered} # {{trace_id="ab"}} 0.5 1.0
http_requests_total{{status="503"}} {failed}
# TYPE free gauge
free{{job="x"}} {free}
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes {answered}
# EOF
"""


def scrapes(down_from: float = ENDED, service: str = ROLLER) -> list[Scrape]:
    """Pages of a service every 2.5 seconds; from a time on all of its requests fail."""
    pages = []
    for number in range(int((ENDED - BEGAN) / 2.5)):
        at = BEGAN + 2.5 * number
        failed = max(0.0, at - down_from) * 10
        free = number % 3 if at < down_from else 9
        pages.append(Scrape(at, service, PAGE.format(answered=1000 + 25 * number - failed, failed=failed, free=free)))
    return pages
