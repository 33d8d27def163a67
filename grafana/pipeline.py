"""The dashboard of the telemetry pipelines, their throughput and losses, and the saturation of the services."""

from __future__ import annotations

from typing import Any

from grafana.panels import AMBER, GREEN, RED, Description, Panel, Query, Signals, number, query, timeseries
from grafana.stages import Row

ANY = Signals('{level=~"WARNING|ERROR|CRITICAL"} | json', "{status=error}")
SERVICES = "dice-roller|frontend|die-service"
NOT_SCRAPED = "Prometheus has not scraped this in this time range: is the engine running? See dicelab status."
LOST = [(0.01, RED)]
FULL = [(0.7, AMBER), (0.9, RED)]


def per_second(counter: str, legend: str, by: str = "") -> Query:
    """The rate of a counter, for each value of the labels ``by``."""
    return query(f"sum{f' by ({by}) ' if by else ''}(rate({counter}[$__rate_interval]))", legend)


def over_time(title: str, shows: str, wrong: str, targets: list[Query], idle: str = NOT_SCRAPED, **more: Any) -> Panel:
    """Values over time; ``more`` are arguments of :func:`grafana.panels.timeseries`."""
    return timeseries(title, Description(shows, wrong), targets, signals=ANY, idle=idle, **more)


def figures(title: str, shows: str, wrong: str, target: Query, **more: Any) -> Panel:
    """A number for each job; ``more`` are arguments of :func:`grafana.panels.number`."""
    return number(title, Description(shows, wrong), [target], signals=ANY, idle=NOT_SCRAPED, **more)


def targets() -> list[Panel]:
    return [
        figures(
            "Up",
            "Whether Prometheus can scrape each service and engine.",
            "Down: see the runbook ServiceDown. One that is missing has no target: the lab runs without it.",
            query("min by (job) (up)", "{{job}}"),
            unit="none",
            low_is_bad=True,
            steps=[(1, GREEN)],
            value_texts={"0": ("down", RED), "1": ("up", GREEN)},
            width=16,
        ),
        over_time(
            "Scrape duration",
            "How long each scrape takes. Prometheus gives up after 4 s, and the target counts as down.",
            "A service whose scrape takes longer than a second is saturated.",
            [query("max by (job) (scrape_duration_seconds)", "{{job}}")],
            unit="s",
            steps=[(1, AMBER), (4, RED)],
        ),
    ]


def losses() -> list[Panel]:
    return [
        over_time(
            "Dropped by the services",
            "Spans and log lines per second that a service dropped because its queue was full.",
            "Any at all: see the runbook TelemetryDropped.",
            [per_second("telemetry_dropped_total", "{{job}} {{signal}}", by="job, signal")],
            unit="cps",
            steps=LOST,
        ),
        over_time(
            "Spans: Collector and Tempo",
            "Spans per second that the Collector receives, sends and gives up, and that Tempo receives.",
            "Received and not sent: they wait in the queue, or SAMPLING=tail does not keep them."
            " Given up: they are lost, see the runbook PipelineLoss.",
            [
                per_second("otelcol_receiver_accepted_spans_total", "Collector receives"),
                per_second("otelcol_exporter_sent_spans_total", "Collector sends"),
                per_second("otelcol_exporter_send_failed_spans_total", "Collector gives up"),
                per_second("tempo_distributor_spans_received_total", "Tempo receives"),
            ],
            unit="cps",
        ),
        over_time(
            "Collector's queue",
            "How full the Collector's queue to Tempo is. It holds 2000 export requests of the services.",
            "It fills while Tempo is down or slow; see the runbook PipelineBacklog.",
            [
                query(
                    "max(sum by (exporter) (otelcol_exporter_queue_size)"
                    " / sum by (exporter) (otelcol_exporter_queue_capacity))",
                    "used",
                )
            ],
            unit="percentunit",
            steps=[(0.5, AMBER), (0.9, RED)],
            highest=1,
        ),
        over_time(
            "Lines: Alloy and Loki",
            "Log lines per second that Alloy reads and sends, and that Loki receives.",
            "Read and not sent: Loki is down or slow; lines wait in the files. Loki receives more than Alloy reads:"
            " lines are read again after a crash.",
            [
                per_second("loki_source_file_read_lines_total", "Alloy reads"),
                per_second("loki_write_sent_entries_total", "Alloy sends"),
                per_second("loki_distributor_lines_received_total", "Loki receives"),
            ],
            unit="cps",
        ),
        over_time(
            "Lines lost",
            "Log lines per second that Alloy gave up or Loki discarded.",
            "Any at all: see the runbook PipelineLoss; the reason names the limit.",
            [
                per_second("loki_write_dropped_entries_total", "Alloy: {{reason}}", by="reason"),
                per_second("loki_discarded_samples_total", "Loki: {{reason}}", by="reason"),
            ],
            unit="cps",
            steps=LOST,
            idle="No line was lost in this time range.",
        ),
        over_time(
            "Alerts and notifications",
            "Firing alerts, and notifications per second that Alertmanager sent or failed to send.",
            "Alerts without notifications: their cause mutes them, or delivery fails: see the runbook"
            " NotificationsFailing.",
            [
                query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing alerts"),
                per_second("alertmanager_notifications_total", "sent"),
                per_second("alertmanager_notifications_failed_total", "failed"),
            ],
            unit="short",
        ),
    ]


def saturation() -> list[Panel]:
    resources = (
        (
            "CPU",
            "The share of a core that each process of a service uses.",
            "Near 100 %: requests queue. Add processes (dicelab up --workers) or do less for each request.",
        ),
        (
            "Memory",
            "The memory of each process of a service, as a share of a container's limit of 512 MiB.",
            "Growing with the requests in flight: they wait for something. Growing for ever: a leak.",
        ),
        (
            "Descriptors",
            "Open files and connections, as a share of the process's limit.",
            "Near 100 %: connections are refused. What do the requests in flight wait for?",
        ),
        (
            "Event loop",
            "The lag of the event loop: at 100 % one callback in twenty runs 0.1 s late.",
            "High while CPU is free: something blocks the loop. High with high CPU: the service is saturated.",
        ),
    )
    return [
        *(
            over_time(
                title,
                shows,
                wrong,
                [query(f'job:saturation:ratio{{resource="{_resource(title)}"}}', "{{job}}")],
                unit="percentunit",
                steps=FULL,
            )
            for title, shows, wrong in resources
        ),
        over_time(
            "Requests in flight",
            "Requests in flight in each service at the time of a scrape.",
            "It must return to its usual level after a burst; requests that remain wait for something.",
            [query("sum by (job) (http_requests_in_flight)", "{{job}}")],
            unit="short",
            steps=[(500, AMBER)],
        ),
        over_time(
            "Memory of the engines",
            "Resident memory of each engine.",
            "Tempo may briefly need a gigabyte when many traces are looked up at once. Growing for ever: see its log.",
            [query(f'sum by (job) (process_resident_memory_bytes{{job!~"{SERVICES}"}})', "{{job}}")],
            unit="bytes",
            steps=[(1.5e9, RED)],
        ),
        figures(
            "Builds",
            "The version of Dice Lab that each service runs, and how many processes of it there are.",
            "Different versions side by side: a service was not restarted after an update.",
            query("sum by (job, version) (dicelab_build_info)", "{{job}} {{version}}"),
            unit="short",
            width=24,
        ),
    ]


def _resource(title: str) -> str:
    """The recording rule's name of a panel's resource."""
    return title if title == "CPU" else title.lower()


ROWS = (Row("Targets", targets), Row("Telemetry pipelines", losses), Row("Saturation", saturation))
