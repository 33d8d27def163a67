"""The source of each signal: the engine if it runs, else the run dir's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import ClientSession
from markupsafe import Markup
from yarl import URL

from frontend.explorer.learn.client import Exercises
from frontend.explorer.model import LogSource, TraceSource
from frontend.explorer.sources.alerts import Alertmanager, AlertSource, PrometheusAlerts
from frontend.explorer.sources.cost import CostReport
from frontend.explorer.sources.engines import Loki, Tempo
from frontend.explorer.sources.figures import MetricSource
from frontend.explorer.sources.files import Files
from frontend.explorer.sources.pages import Pages
from frontend.explorer.sources.prometheus import Prometheus
from frontend.settings import Settings
from web.settings import ServerSettings


@dataclass(frozen=True)
class Telemetry:
    """The sources of the explorer; ``None`` for a missing one."""

    services: tuple[str, ...]
    traces: TraceSource | None
    logs: LogSource | None
    metrics: MetricSource
    alerts: AlertSource | None
    pages: Pages
    files: Files | None
    grafana: URL | None
    learn: Exercises | None = None
    cost: CostReport | None = None

    @property
    def behind(self) -> int:
        """Bytes of older files that are still to be read; 0 if no files are read."""
        return self.files.behind if self.files else 0

    def badge(self, source: TraceSource | LogSource | MetricSource | None) -> Markup:
        """HTML that names the source of a view's content."""
        if source is None:
            return Markup('<span class="source" data-source="">no source</span>')
        late = source is self.files and self.behind
        more = f'<span class="soft">reading older files, {self.behind / 1e6:.0f} MB left</span>' if late else ""
        return Markup(f'{more}<span class="source" data-source="{source.name}">from {source.name}</span>')

    async def close(self) -> None:
        await self.pages.close()
        if self.files is not None:
            await self.files.close()
        if self.learn is not None:
            await self.learn.close()


def choose(session: Callable[[], ClientSession], settings: Settings) -> Telemetry:
    services = {"frontend": own_url(settings.server), "dice-roller": settings.roller_url}
    if settings.die_service_url:
        services["die-service"] = settings.die_service_url
    files = Files(settings.telemetry_dir) if settings.telemetry_dir else None
    pages = Pages(session, services)
    alerts: AlertSource | None = None
    if settings.alertmanager_url:
        alerts = Alertmanager(session, settings.alertmanager_url)
    elif settings.prometheus_url:
        alerts = PrometheusAlerts(session, settings.prometheus_url)
    return Telemetry(
        services=tuple(services),
        metrics=Prometheus(session, settings.prometheus_url) if settings.prometheus_url else pages,
        alerts=alerts,
        pages=pages,
        traces=Tempo(session, settings.tempo_url) if settings.tempo_url else files,
        logs=Loki(session, settings.loki_url) if settings.loki_url else files,
        files=files,
        grafana=settings.grafana_url,
        learn=Exercises(settings.learn_socket) if settings.learn_socket else None,
        cost=CostReport(settings.telemetry_dir) if settings.telemetry_dir else None,
    )


def own_url(server: ServerSettings) -> URL:
    """The address of this service's own pages, seen from this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    return URL.build(scheme="http", host=host, port=server.port)
