"""Links to the same telemetry in Grafana's Explore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from frontend.explorer.context import Context


def explore_link(context: Context, kind: str, queries: Sequence[Mapping[str, Any]]) -> str:
    """The address of the same query in Grafana, over the same time range; empty if Grafana does not run.

    Args:
        context: has Grafana's address and the time range.
        kind: a data source's type, which is also its uid here: tempo, loki or prometheus.
        queries: as Explore keeps them in its address.
    """
    grafana = context.telemetry.grafana
    if grafana is None:
        return ""
    source = {"type": kind, "uid": kind}
    since, until = context.range.bounds()
    pane = {
        "datasource": kind,
        "queries": [{"refId": chr(ord("A") + i), "datasource": source, **query} for i, query in enumerate(queries)],
        "range": {
            "from": str(since // 1_000_000) if since else "now-24h",
            "to": str(until // 1_000_000) if until else "now",
        },
    }
    url = (grafana / "explore").with_query(schemaVersion="1", orgId="1", panes=orjson.dumps({"dicelab": pane}).decode())
    return str(url)
