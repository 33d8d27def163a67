"""A colour for each service, the same in every view."""

from __future__ import annotations

# Readable as a background of white text, and on both a light and a dark page.
COLOURS = {"frontend": "#2b7d48", "dice-roller": "#2269b3", "die-service": "#8c4fb0", "traffic": "#8a5a00"}
OTHER_COLOURS = ("#1b7a7a", "#a04a30", "#5c6b78", "#7a6a00")


def colour(service: str) -> str:
    return COLOURS.get(service) or OTHER_COLOURS[sum(service.encode()) % len(OTHER_COLOURS)]
