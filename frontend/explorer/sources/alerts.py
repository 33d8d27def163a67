"""The firing alerts: from Alertmanager, which knows which of them are muted, else from Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from frontend.explorer.model import SourceError
from frontend.explorer.sources.engines import Engine


@dataclass(frozen=True)
class Alert:
    """One firing alert.

    Attributes:
        job: the service or engine that it is about; empty if it is about none.
        since: nanoseconds since 1970.
        muted: whether nobody is notified, because the alert of its cause fires too or because it was silenced.
    """

    name: str
    job: str
    severity: str
    summary: str
    description: str
    since: int
    muted: bool

    @property
    def order(self) -> tuple[bool, bool, int]:
        """The sort key: the most urgent alert first."""
        return self.muted, self.severity != "page", self.since


class AlertSource(Protocol):
    name: str

    async def alerts(self) -> list[Alert]:
        """The firing alerts, the most urgent one first.

        Raises:
            SourceError: when they are not available.
        """


class Alertmanager(Engine):
    """Alerts from Alertmanager: https://prometheus.io/docs/alerting/latest/management_api/"""

    name = "Alertmanager"

    async def alerts(self) -> list[Alert]:
        response = await self.get("api/v2/alerts")
        try:
            found = [_alert(one, one["startsAt"], one["status"]["state"] == "suppressed") for one in response]
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError("Alertmanager sent an invalid response.") from error
        return sorted(found, key=lambda alert: alert.order)


class PrometheusAlerts(Engine):
    """Alerts from Prometheus: https://prometheus.io/docs/prometheus/latest/querying/api/#alerts"""

    name = "Prometheus"

    async def alerts(self) -> list[Alert]:
        response = await self.get("api/v1/alerts")
        try:
            firing = [one for one in response["data"]["alerts"] if one["state"] == "firing"]
            found = [_alert(one, one["activeAt"], muted=False) for one in firing]
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError("Prometheus sent an invalid response.") from error
        return sorted(found, key=lambda alert: alert.order)


def _alert(document: Mapping[str, Any], since: str, muted: bool) -> Alert:
    labels, annotations = document["labels"], document["annotations"]
    return Alert(
        name=str(labels["alertname"]),
        job=str(labels.get("job", "")),
        severity=str(labels.get("severity", "")),
        summary=str(annotations.get("summary", "")),
        description=str(annotations.get("description", "")),
        since=int(datetime.fromisoformat(since).timestamp() * 1e9),
        muted=muted,
    )
