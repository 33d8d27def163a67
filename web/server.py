"""Run a service: read its settings, start its telemetry, serve until a signal, stop in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from aiohttp import web

import otel
from otel import http, logs, traces
from web import health, runtime_metrics, tuning
from web.connection import Runner
from web.faulty_propagation import FaultyPropagator
from web.hosts import AllowedHosts, is_loopback
from web.settings import EVENT_LOOPS, Environment, ServerSettings, SettingsError

log = logging.getLogger(__name__)


class ServiceSettings(Protocol):
    @property
    def server(self) -> ServerSettings: ...


S = TypeVar("S", bound=ServiceSettings)


async def serve(app: web.Application, settings: ServerSettings, name: str) -> None:
    """Serve until SIGTERM or SIGINT; then finish the requests in flight and close everything that was opened.

    A second signal ends the wait for requests in flight.
    """
    runner = Runner(
        app,
        AllowedHosts([settings.host, name, *settings.allowed_hosts]),
        handler_cancellation=True,  # when the client disconnects, its work is cancelled
        shutdown_timeout=settings.shutdown_timeout,
    )
    app[runtime_metrics.TRAFFIC_EXPECTED].set(settings.traffic_expected)
    stopping = app[health.STOPPING]
    loop = asyncio.get_running_loop()
    forced = loop.create_future()

    def on_signal() -> None:
        if not stopping.is_set():
            stopping.set()
        elif not forced.done():
            forced.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        await runner.setup()
        site = web.TCPSite(
            runner,
            settings.host,
            settings.port,
            backlog=tuning.backlog(settings),
            reuse_port=True if settings.workers_dir else None,
        )
        await site.start()
        if not is_loopback(settings.host):
            log.warning(
                "Listening on %s: anyone who reaches this address can use the service without a password",
                settings.host,
                extra={"fields": {}},
            )
        tuning.reduce_garbage_collection()
        slow = asyncio.create_task(runner.close_slow_connections(settings.header_timeout))
        await stopping.wait()
        slow.cancel()
        log.info("Stopping", extra={"fields": {}})
    finally:
        closing = asyncio.ensure_future(runner.cleanup())
        await asyncio.wait([closing, forced], return_when=asyncio.FIRST_COMPLETED)
        if closing.done():
            closing.result()


def main(
    name: str,
    read_settings: Callable[[Environment], S],
    create_app: Callable[[S], web.Application],
    *,
    untraced_paths: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run a service to its end and return the exit status: 0 stopped, 1 could not start, 2 bad settings."""
    try:
        settings = read_settings(Environment(environ))
        stop_traces = traces.start(
            name,
            file=settings.server.trace_file,
            untraced_paths=[f"^({'|'.join(sorted(http.UNOBSERVED))})$", *untraced_paths],
        )
    except (SettingsError, traces.TracingError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    if settings.server.defects_socket:
        FaultyPropagator.install()
    stop_logs = logs.start(name, settings.server.log_level)
    for warning in otel.WARNINGS:
        log.warning(warning, extra={"fields": {}})
    try:
        with asyncio.Runner(loop_factory=EVENT_LOOPS[settings.server.event_loop]) as runner:
            runner.run(serve(create_app(settings), settings.server, name))
    except (SettingsError, OSError) as error:
        log.critical("Cannot serve: %s", error, extra={"fields": {}})
        print(f"{name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except Exception as error:  # logged here: after this function the log is closed
        log.critical("Uncaught exception", exc_info=error, extra={"fields": {}})
        return 1
    finally:
        stop_traces()
        stop_logs()
    return 0
