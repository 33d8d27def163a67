"""Alertmanager's webhook receiver: a log line in the services' format for each alert.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.aiohttp import make_aiohttp_handler

from alertreceiver.settings import Settings
from web.hosts import AllowedHosts, refuse_foreign_hosts
from web.origin import is_foreign

SERVICE = "alerts"  # what its lines are called in Loki and in the page
CONTAINER = "alert-receiver"  # its name in the compose project
WEBHOOK_TIMEOUT = 5.0  # seconds
STATUSES = ("firing", "resolved")
# Names of alerts that become label values; further ones are counted as "other". The lab has some thirty.
MAX_NAMES = 200

SETTINGS = web.AppKey("settings", Settings)
SESSION = web.AppKey("session", ClientSession)
RECEIVED = web.AppKey("received", Counter)
NAMES = web.AppKey("names", set[str])  # of the alerts that were received


def create_app(settings: Settings) -> web.Application:
    hosts = AllowedHosts([CONTAINER, *settings.allowed_hosts])
    app = web.Application(middlewares=[refuse_foreign_hosts(hosts, CONTAINER), refuse_pages_of_other_sites])
    registry = CollectorRegistry()
    app[SETTINGS] = settings
    app[NAMES] = set()
    app[RECEIVED] = Counter(
        "alerts_received_total",
        "Alerts received, by their name and status.",
        ["alertname", "status"],
        registry=registry,
    )
    app.router.add_post("/", receive)
    app.router.add_get("/metrics", make_aiohttp_handler(registry))
    app.router.add_get("/readyz", ready)
    app.cleanup_ctx.append(_session)
    return app


async def _session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(timeout=ClientTimeout(total=WEBHOOK_TIMEOUT)) as session:
        app[SESSION] = session
        yield


@web.middleware
async def refuse_pages_of_other_sites(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return 403 for what another site's page posts."""
    if request.method == "POST" and is_foreign(request):
        raise web.HTTPForbidden(text="this is for Alertmanager, not for another site's page\n")
    return await handler(request)


async def ready(request: web.Request) -> web.Response:
    return web.Response()


async def receive(request: web.Request) -> web.Response:
    """Receive one notification: pass it on, count its alerts, write their lines."""
    app, settings = request.app, request.app[SETTINGS]
    # A page of another site can send a form or plain text to this address, but no JSON.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="a notification is application/json\n")
    try:
        notification = await request.json()
        lines = list(log_lines(notification))
    except (ValueError, KeyError, TypeError):
        raise web.HTTPBadRequest(text="not a notification of Alertmanager\n") from None
    if settings.webhook_url is not None:
        try:
            async with app[SESSION].post(settings.webhook_url, json=notification) as response:
                response.raise_for_status()
        except (ClientError, TimeoutError) as error:
            # Alertmanager counts the failure and sends the notification again.
            raise web.HTTPBadGateway(text=f"the webhook failed: {type(error).__name__}\n") from error
    for alert in notification["alerts"]:
        app[RECEIVED].labels(_label(app[NAMES], alert["labels"]["alertname"]), alert["status"]).inc()
    await asyncio.to_thread(_write, settings.alert_log, "".join(line + "\n" for line in lines))
    return web.Response()


def _label(names: set[str], name: str) -> str:
    """The label value for an alert. Its name is untrusted: anyone who can post a notification chooses it."""
    if name not in names and len(names) >= MAX_NAMES:
        return "other"
    names.add(name)
    return name


def _write(path: Path | None, text: str) -> None:
    if path is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with open(path, "a") as file:
        file.write(text)


def log_lines(notification: dict[str, Any]) -> Iterator[str]:
    """A line for each alert of a notification.

    Raises:
        KeyError, TypeError, ValueError: when it is not a notification.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for alert in notification["alerts"]:
        labels, annotations = alert["labels"], alert["annotations"]
        if alert["status"] not in STATUSES or not isinstance(labels["alertname"], str):
            raise ValueError("neither firing nor resolved, or without a name")
        fires = alert["status"] == "firing"
        yield json.dumps(
            {
                "timestamp": now,
                "level": "WARNING" if fires else "INFO",
                "message": f"{labels['alertname']} {'fires' if fires else 'is resolved'}: {annotations['summary']}",
                "logger": SERVICE,
                "alert": labels["alertname"],
                "status": alert["status"],
                "labels": labels,
                "starts_at": alert["startsAt"],
                **({} if fires else {"ends_at": alert["endsAt"]}),
                "description": annotations["description"],
                "runbook_url": annotations["runbook_url"],
            }
        )
