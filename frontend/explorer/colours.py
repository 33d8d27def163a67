"""A colour and a letter for each service, the same in every view."""

from __future__ import annotations

# Readable as white text's ground and beside it, on a light page and on a dark one.
COLOURS = {"frontend": "#2b7d48", "dice-roller": "#2269b3", "die-service": "#8c4fb0", "traffic": "#8a5a00"}
OTHER_COLOURS = ("#1b7a7a", "#a04a30", "#5c6b78", "#7a6a00")


def colour(service: str) -> str:
    return COLOURS.get(service) or OTHER_COLOURS[sum(service.encode()) % len(OTHER_COLOURS)]
