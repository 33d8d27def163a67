"""Dice, drawn as SVG."""

from __future__ import annotations

from markupsafe import Markup

# The positions of the pips of each face, on a grid from 0 to 2 in both directions.
_CORNERS = ((0, 0), (2, 2), (2, 0), (0, 2))
PIPS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 1),),
    2: _CORNERS[:2],
    3: (*_CORNERS[:2], (1, 1)),
    4: _CORNERS,
    5: (*_CORNERS, (1, 1)),
    6: (*_CORNERS, (0, 1), (2, 1)),
    7: (*_CORNERS, (0, 1), (2, 1), (1, 1)),
    8: (*_CORNERS, (0, 1), (2, 1), (1, 0), (1, 2)),
    9: (*_CORNERS, (0, 1), (2, 1), (1, 0), (1, 2), (1, 1)),
}


def die(face: int | None) -> Markup:
    """One die; ``None`` draws a failed roll. Faces that have no pips, 0 among them, are written as a number."""
    label = "failed roll" if face is None else str(face)
    if face is None:
        inside = '<path d="M30 30 70 70M70 30 30 70" stroke="var(--die-bad)" stroke-width="9" stroke-linecap="round"/>'
    elif face in PIPS:
        inside = "".join(
            f'<circle cx="{26 + 24 * x}" cy="{26 + 24 * y}" r="8.5" fill="var(--die-ink)"/>' for x, y in PIPS[face]
        )
    else:
        inside = (
            '<text x="50" y="53" text-anchor="middle" dominant-baseline="middle" font-size="44"'
            f' font-family="sans-serif" fill="var(--die-ink)">{int(face)}</text>'
        )
    edge = "var(--die-bad)" if face is None else "#7c8a96"
    return Markup(
        f'<svg class="die" viewBox="0 0 100 100" role="img" aria-label="{label}">'
        f'<rect x="3" y="3" width="94" height="94" rx="20" fill="var(--die-paper)" stroke="{edge}" stroke-width="3"/>'
        f"{inside}</svg>"
    )
