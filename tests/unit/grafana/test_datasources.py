"""Grafana's provisioned data sources, and the links between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from frontend.explorer.sources.engines import TENANTS
from lab.paths import GRAFANA

FILE = GRAFANA / "provisioning" / "datasources" / "dicelab.yml"
SOURCES: dict[str, dict[str, Any]] = {one["uid"]: one for one in yaml.safe_load(FILE.read_text())["datasources"]}


def tenants(uid: str) -> str:
    """The tenants of Loki that a data source queries."""
    assert SOURCES[uid]["jsonData"]["httpHeaderName1"] == "X-Scope-OrgID"
    return str(SOURCES[uid]["secureJsonData"]["httpHeaderValue1"])


def linked(node: Any) -> Iterator[str]:
    """Every data source that a setting links to."""
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "datasourceUid")
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from linked(child)


def test_a_span_links_to_the_lines_of_both_tenants() -> None:
    link = SOURCES["tempo"]["jsonData"]["tracesToLogsV2"]
    assert SOURCES[link["datasourceUid"]]["type"] == "loki"
    assert tenants(link["datasourceUid"]) == TENANTS["X-Scope-OrgID"] == "operations|usage"
    assert {tenants(uid) for uid in ("loki", "loki-usage")} == {"operations", "usage"}


def test_every_link_targets_an_existing_data_source() -> None:
    targets = list(linked([source["jsonData"] for source in SOURCES.values()]))
    assert set(targets) == {"tempo", "prometheus", "loki-all"}


def test_every_log_data_source_links_to_traces() -> None:
    sources = [source for source in SOURCES.values() if source["type"] == "loki"]
    assert len(sources) == 3
    for source in sources:
        assert [field["datasourceUid"] for field in source["jsonData"]["derivedFields"]] == ["tempo"]
