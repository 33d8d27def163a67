"""``python -m web.alert_receiver``: writes Alertmanager's notifications to a log file and forwards them to a webhook.

``ALERT_WEBHOOK_URL`` is the URL to which each notification is forwarded unchanged.
``ALLOWED_HOSTS`` lists further host names under which Alertmanager reaches it, separated by commas.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.aiohttp import make_aiohttp_handler

from web.hosts import AllowedHosts
from web.origin import is_foreign
from web.settings import Environment

SERVICE = "alerts"
CONTAINER = "alert-receiver"  # its name in the compose project
WEBHOOK_TIMEOUT = 5.0  # seconds

ALERT_LOG = web.AppKey("alert_log", str)
WEBHOOK_URL = web.AppKey("webhook_url", str)
SESSION = web.AppKey("session", ClientSession)
RECEIVED = web.AppKey("received", Counter)
HOSTS = web.AppKey("hosts", AllowedHosts)


def create_app(alert_log: str = "", webhook_url: str = "", allowed_hosts: Sequence[str] = ()) -> web.Application:
    app = web.Application(middlewares=[refuse_browsers_of_other_sites])
    registry = CollectorRegistry()
    app[ALERT_LOG], app[WEBHOOK_URL] = alert_log, webhook_url
    app[HOSTS] = AllowedHosts([CONTAINER, *allowed_hosts])
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
async def refuse_browsers_of_other_sites(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse foreign hosts with 421 (DNS rebinding) and what another site's page posts with 403."""
    try:
        known = "Host" not in request.headers or request.url.host in request.app[HOSTS]
    except ValueError:
        raise web.HTTPBadRequest(text="the Host header makes no sense\n") from None
    if not known:
        raise web.HTTPMisdirectedRequest(text=f"no alerts are received for {request.host[:256]}; see ALLOWED_HOSTS\n")
    if request.method == "POST" and is_foreign(request):
        raise web.HTTPForbidden(text="this is for Alertmanager, not for another site's page\n")
    return await handler(request)


async def ready(request: web.Request) -> web.Response:
    return web.Response()


async def receive(request: web.Request) -> web.Response:
    """Receive one notification: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config."""
    app = request.app
    try:
        notification = await request.json()
        lines = list(log_lines(notification))
    except (ValueError, KeyError, TypeError):
        raise web.HTTPBadRequest(text="not a notification of Alertmanager\n") from None
    if app[WEBHOOK_URL]:
        try:
            async with app[SESSION].post(app[WEBHOOK_URL], json=notification) as answer:
                answer.raise_for_status()
        except (ClientError, TimeoutError) as error:
            # Alertmanager counts the failure and sends the notification again.
            raise web.HTTPBadGateway(text=f"{app[WEBHOOK_URL]}: {error or type(error).__name__}\n") from error
    for alert in notification["alerts"]:
        app[RECEIVED].labels(alert["labels"]["alertname"], alert["status"]).inc()
    await asyncio.to_thread(_write, app[ALERT_LOG], "".join(line + "\n" for line in lines))
    return web.Response()


def _write(path: str, text: str) -> None:
    if not path:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with open(path, "a") as file:
        file.write(text)


def log_lines(notification: dict[str, Any]) -> Iterator[str]:
    """A line in the services' format for each alert of a notification."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    for alert in notification["alerts"]:
        labels, annotations = alert["labels"], alert["annotations"]
        fires = alert["status"] == "firing"
        yield json.dumps(
            {
                "timestamp": now,
                "level": "WARNING" if fires else "INFO",
                "message": f"{labels['alertname']} {'fires' if fires else 'is over'}: {annotations['summary']}",
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m web.alert_receiver")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", default="", help="the file that gets a line for each alert; default: standard output")
    given = parser.parse_args()
    environment = Environment(os.environ)
    app = create_app(given.log, environment.text("ALERT_WEBHOOK_URL"), environment.names("ALLOWED_HOSTS"))
    web.run_app(app, host=given.host, port=given.port, print=None, access_log=None)
