"""Folders of this repository that the lab reads. A wheel has them too, except docs/."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOY = ROOT / "alloy"
COMPOSE = ROOT / "compose"
COLLECTOR = COMPOSE / "otel-collector"
DOCS = ROOT / "docs"
GRAFANA = ROOT / "grafana"
OTEL = ROOT / "otel"

DASHBOARDS = GRAFANA / "dashboards"
SAMPLING_VARIABLES = COMPOSE / "sampling"
