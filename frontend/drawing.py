"""Dice and what came of a roll, drawn as HTML."""

from __future__ import annotations

from dataclasses import dataclass

# Where the pips of a face sit, on a grid from 0 to 2 in both directions.
_CORNERS = ((0, 0), (2, 2), (2, 0), (0, 2))
PIPS: dict[int, tuple[tuple[int, int], ...]] = {
    0: (),
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

STYLE = """
:host {
  --die-paper: #fffdf8; --die-ink: #1d3b4f; --die-edge: #aebcc6; --bad: var(--danger-bg-color, #d32f2f);
  --soft: color-mix(in srgb, currentColor 68%, transparent);
  --line: color-mix(in srgb, currentColor 22%, transparent);
}
.dice { display: flex; flex-wrap: wrap; gap: 12px; justify-content: center; padding: 8px 0; }
.die { width: 96px; height: 96px; animation: land .35s ease-out; filter: drop-shadow(0 3px 4px rgb(0 0 0 / .25)); }
.dice.many { gap: 6px; }
.dice.many .die { width: 44px; height: 44px; }
@keyframes land { from { transform: rotate(-50deg) scale(.6); opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .die { animation: none; } }
.sum { text-align: center; font-size: 1.1rem; margin: 6px 0; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 16px; justify-content: center; color: var(--soft); font-size: .9rem; }
code { font-family: ui-monospace, monospace; font-size: .85em; overflow-wrap: anywhere; }
.copy {
  font: inherit; font-size: .85em; color: inherit; background: none;
  border: 1px solid var(--line); border-radius: 6px; padding: 1px 8px; cursor: pointer;
}
.copy:hover { border-color: currentColor; }
.copy:focus-visible { outline: 3px solid #0b8ecb; outline-offset: 1px; }
.empty { color: var(--soft); text-align: center; padding: 24px 8px; }
.failed { color: var(--bad); }
"""


@dataclass(frozen=True)
class Roll:
    """One click and what came of it."""

    time: str  # HH:MM:SS
    die: str
    status: int
    milliseconds: float
    trace_id: str | None
    faces: tuple[int | None, ...]  # None: that roll failed
    message: str  # empty when all went well

    @property
    def failed(self) -> bool:
        return self.status != 200


def die(face: int | None) -> str:
    """One die as SVG; ``None`` draws a failed roll."""
    label = "failed roll" if face is None else str(face)
    if face is None:
        inside = '<path d="M30 30 70 70M70 30 30 70" stroke="var(--bad)" stroke-width="9" stroke-linecap="round"/>'
    elif face in PIPS:
        inside = "".join(
            f'<circle cx="{26 + 24 * x}" cy="{26 + 24 * y}" r="8.5" fill="var(--die-ink)"/>' for x, y in PIPS[face]
        )
    else:
        inside = (
            '<text x="50" y="52" text-anchor="middle" dominant-baseline="middle" font-size="40"'
            f' font-family="sans-serif" fill="var(--die-ink)">{face}</text>'
        )
    edge = "var(--bad)" if face is None else "var(--die-edge)"
    return (
        f'<svg class="die" viewBox="0 0 100 100" role="img" aria-label="{label}"><title>{label}</title>'
        f'<rect x="3" y="3" width="94" height="94" rx="20" fill="var(--die-paper)" stroke="{edge}" stroke-width="3"/>'
        f"{inside}</svg>"
    )


def trace_button(trace_id: str | None) -> str:
    """The trace id with a button that copies it."""
    if not trace_id:
        return ""
    copy = (
        "const b=this;navigator.clipboard.writeText(b.dataset.trace)"
        ".then(()=>{b.textContent='copied';setTimeout(()=>b.textContent='copy',1500)})"
    )
    return (
        f'<code>{trace_id}</code> <button class="copy" type="button" data-trace="{trace_id}"'
        f' aria-label="Copy trace id {trace_id}" onclick="{copy}">copy</button>'
    )


def result(roll: Roll | None) -> str:
    """The last roll: its dice, and below them what is known of it."""
    if roll is None:
        return '<div class="empty">Choose a die and roll it.</div>'
    many = " many" if len(roll.faces) > 8 else ""
    dice = f'<div class="dice{many}">{"".join(die(face) for face in roll.faces)}</div>' if roll.faces else ""
    total = ""
    if len(roll.faces) > 1:
        total = (
            f'<div class="sum">Total <b>{sum(face or 0 for face in roll.faces)}</b> of {len(roll.faces)} rolls</div>'
        )
    status = f'<span class="failed">{roll.status} failed</span>' if roll.failed else f"<span>{roll.status} OK</span>"
    trace = trace_button(roll.trace_id)
    return (
        f'<div role="status">{dice}{total}<div class="facts">{status}<span>{roll.milliseconds:.0f} ms</span>'
        f"{f'<span>trace {trace}</span>' if trace else ''}</div></div>"
    )


def outcome(roll: Roll) -> str:
    """What came of a roll, as text."""
    if roll.failed:
        return f"✖ {roll.status}: {roll.message}"
    faces = ", ".join(str(face) for face in roll.faces[:10]) + (", …" if len(roll.faces) > 10 else "")
    return faces if len(roll.faces) == 1 else f"{sum(face or 0 for face in roll.faces)} ({faces})"
