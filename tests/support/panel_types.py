"""Dashboards checked by TypeScript against the types that Grafana publishes; see ``tests/panel_types``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import typescript

TYPES = Path(__file__).parents[1] / "panel_types"


def type_errors(dashboards: Mapping[str, Mapping[str, Any]], directory: Path) -> list[str]:
    """The type errors, as ``dashboard: panel: the compiler's message``.

    Args:
        dashboards: the JSON of each, by a name.
        directory: an empty one, for the code that is checked.
    """
    code = {f"{name}.ts": "\n".join(_code(dashboard)) + "\n" for name, dashboard in dashboards.items()}
    return [_explained(message, dashboards) for message in typescript.messages(TYPES, directory, code)]


def _code(dashboard: Mapping[str, Any]) -> list[str]:
    """A line of TypeScript for the dashboard without its panels, then one for each panel."""
    around = {key: value for key, value in dashboard.items() if key != "panels"}
    return [
        f"import type {{ Dashboard, Panels }} from './types'; export const dashboard: Dashboard = {json.dumps(around)}",
        *(
            f"export const panel{number}: Panels[{json.dumps(panel['type'])}] = {json.dumps(panel)}"
            for number, panel in enumerate(dashboard["panels"])
        ),
    ]


def _explained(message: str, dashboards: Mapping[str, Mapping[str, Any]]) -> str:
    place = re.fullmatch(r"([\w-]+)\.ts\((\d+),\d+\): (.*)", message)
    if place is None:
        return message
    line = int(place[2]) - 2
    panel = dashboards[place[1]]["panels"][line].get("title", line) if line >= 0 else "around the panels"
    return f"{place[1]}: {panel}: {place[3]}"
