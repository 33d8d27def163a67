"""The part of the metrics view that shows what the telemetry of a roll costs."""

from __future__ import annotations

from frontend.explorer.context import Context
from frontend.explorer.model import SourceError

REGION = "cost"


async def refresh(context: Context) -> None:
    """Show the last report of ``dicelab cost``, or how to get one; shows nothing without a run dir.

    An error of the report is shown here, because the figures come from another source.
    """
    source = context.telemetry.cost
    if source is None:
        return
    try:
        cost, failure = await source.latest(), ""
    except SourceError as error:
        cost, failure = None, str(error)
    longest = max((one.spans + one.lines for one in cost.services), default=0.0) if cost else 0.0
    context.show(REGION, "metrics/cost.html", cost=cost, failure=failure, longest=longest or 1.0)
