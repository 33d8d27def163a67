"""The service map: calls between services with their rates, errors and latencies, derived from spans alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from frontend.explorer.colours import colour
from frontend.explorer.context import Context
from frontend.explorer.model import Edge

FOLLOW = 3.0  # seconds between two fetches
OUTSIDE = "users"
WIDTH, HEIGHT = 130, 44  # pixels of a node
ACROSS, DOWN = 244, 96  # pixels from a node to the next
LANE = 54  # pixels between lines that pass below nodes


@dataclass(frozen=True)
class Node:
    """A service and its position, in pixels."""

    name: str
    x: int
    y: int
    colour: str


@dataclass(frozen=True)
class Line:
    """An edge and its drawing."""

    edge: Edge
    path: str
    x: float  # of the middle, where its figures are
    y: float
    rate: str  # requests a second, minute or hour; empty if the period is unknown
    straight: bool  # true: its figures are above and below it; false: on it


class MapView:
    """Draws the map of the time range, with the same figures in a table."""

    name, title = "map", "Service map"
    regions = ("map",)

    def __init__(self, context: Context) -> None:
        self._context = context

    def read(self, query: Mapping[str, str]) -> None:
        """This view has no parameters in the address."""

    def query(self) -> dict[str, str]:
        return {}

    def draw(self) -> None:
        self._context.show("map", "logs/loading.html")

    def show_failure(self, message: str) -> None:
        self._context.show("map", "failure.html", message=message)

    async def refresh(self) -> float | None:
        source = self._context.telemetry.traces
        if source is None:
            return None
        since, until = self._context.range.bounds()
        edges = await source.edges(since, until)
        now = time.time_ns()
        seconds = ((until or now) - since) / 1e9 if since else None
        named = [_named(edge) for edge in edges]
        nodes = place_nodes(named)
        lines = draw_edges(sorted(named, key=lambda edge: (edge.caller, edge.service)), nodes, seconds)
        self._context.show(
            "map",
            "map/map.html",
            nodes=list(nodes.values()),
            lines=lines,
            width=max((node.x for node in nodes.values()), default=0) + WIDTH + 20,
            height=max([node.y + HEIGHT for node in nodes.values()] + [round(line.y) for line in lines], default=0)
            + 30,
            node_width=WIDTH,
            node_height=HEIGHT,
            range=self._context.range.name(self._context.clock),
            services=self._context.telemetry.services,
        )
        return FOLLOW


def _named(edge: Edge) -> Edge:
    return edge if edge.caller else Edge(OUTSIDE, *list(vars(edge).values())[1:])


def place_nodes(edges: Sequence[Edge]) -> dict[str, Node]:
    """Place each service to the right of its callers; a cycle is cut at the edge where it is first found."""
    depths: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...]) -> int:
        if name not in depths:
            callers = [edge.caller for edge in edges if edge.service == name and edge.caller not in (name, *above)]
            depths[name] = max((depth(caller, (*above, name)) + 1 for caller in callers), default=0)
        return depths[name]

    names = sorted({name for edge in edges for name in (edge.caller, edge.service)})
    for name in names:
        depth(name, ())
    taken: dict[int, int] = {}
    nodes = {}
    for name in names:
        column = depths[name]
        row = taken[column] = taken.get(column, -1) + 1
        nodes[name] = Node(name, 10 + column * ACROSS, 24 + row * DOWN, colour(name))
    return nodes


def draw_edges(edges: Sequence[Edge], nodes: Mapping[str, Node], seconds: float | None) -> list[Line]:
    """Draw each edge: straight to the next column; below all nodes, in a lane of its own, to a column further right."""
    busiest = max((edge.count for edge in edges), default=0)
    bottom = max((node.y + HEIGHT for node in nodes.values()), default=0)

    def skipped(edge: Edge) -> int:
        return (nodes[edge.service].x - nodes[edge.caller].x) // ACROSS - 1

    lanes = sorted((edge for edge in edges if skipped(edge) > 0), key=skipped)
    lines = []
    for edge in edges:
        start, end = nodes[edge.caller], nodes[edge.service]
        rate = rate_text(edge.count, seconds, busiest)
        if edge in lanes:
            lane = lanes.index(edge)
            low = bottom + LANE * (lane + 0.8)
            x1, x2 = start.x + WIDTH / 2 + 14 * lane, end.x + WIDTH / 2 - 14 * (lane + 1)
            path = f"M{x1} {start.y + HEIGHT} C{x1} {low} {x1} {low} {x1 + 50} {low} H{x2 - 50}"
            path += f" C{x2} {low} {x2} {low} {x2} {end.y + HEIGHT + 8}"
            lines.append(Line(edge, path, (x1 + x2) / 2, low, rate, straight=False))
        else:
            x1, y1, x2, y2 = float(start.x + WIDTH), start.y + HEIGHT / 2, float(end.x - 8), end.y + HEIGHT / 2
            bend = (x2 - x1) / 2
            path = f"M{x1} {y1} C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
            lines.append(Line(edge, path, (x1 + x2) / 2, (y1 + y2) / 2, rate, straight=True))
    return lines


def rate_text(count: int, seconds: float | None, busiest: int | None = None) -> str:
    """Requests a second, minute or hour.

    The unit is the shortest in which the rate is at least 1. With ``busiest``, the highest of several counts, it is the
    shortest in which the rate of that count is at least 10, so that all of them have the same unit.
    """
    if not seconds:
        return ""
    most = count if busiest is None else busiest / 10
    unit, size = next(
        ((unit, size) for unit, size in (("s", 1), ("min", 60), ("h", 3600)) if most * size >= seconds), ("h", 3600)
    )
    return f"{count * size / seconds:.3g}/{unit}"
