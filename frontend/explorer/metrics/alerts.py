"""The part of the metrics view that shows the firing alerts."""

from __future__ import annotations

from frontend.explorer.context import Context
from frontend.explorer.model import SourceError

REGION = "alerts"


async def refresh(context: Context) -> None:
    """Fetch and show the firing alerts; shows nothing without a source of alerts.

    An error of the alerts' source is shown here, because the figures come from another source.
    """
    source = context.telemetry.alerts
    if source is None:
        return
    try:
        alerts, failure = await source.alerts(), ""
    except SourceError as error:
        alerts, failure = [], str(error)
    context.show(REGION, "metrics/alerts.html", alerts=alerts, failure=failure, source=source)
