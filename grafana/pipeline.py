"""The dashboard of the telemetry pipelines, with their throughput and losses, and of the services' saturation."""

from __future__ import annotations

from grafana.panels import AMBER, GREEN, RED, Panel, Says, Signals, number, query, timeseries
from grafana.stages import Row

ANY = Signals('{level=~"WARNING|ERROR|CRITICAL"} | json', "{status=error}")
SERVICES = "dice-roller|frontend|die-service"
NOT_SCRAPED = "Prometheus has not scraped this in this time range: is the engine running? See dicelab status."


def targets() -> list[Panel]:
    return [
        number(
            "Up",
            Says(
                "Whether Prometheus can scrape each service and engine.",
                "Down: see the runbook ServiceDown. One that is missing has no target: the lab runs without it.",
            ),
            [query("min by (job) (up)", "{{job}}")],
            unit="none",
            signals=ANY,
            low_is_bad=True,
            steps=[(1, GREEN)],
            words={"0": ("down", RED), "1": ("up", GREEN)},
            idle=NOT_SCRAPED,
            width=16,
        ),
        timeseries(
            "Scrape duration",
            Says(
                "How long each scrape takes. Prometheus gives up after 4 s, and the target counts as down.",
                "A service whose scrape takes longer than a second is saturated.",
            ),
            [query("max by (job) (scrape_duration_seconds)", "{{job}}")],
            unit="s",
            signals=ANY,
            steps=[(1, AMBER), (4, RED)],
            idle=NOT_SCRAPED,
            width=8,
        ),
    ]


def losses() -> list[Panel]:
    return [
        timeseries(
            "Dropped by the services",
            Says(
                "Spans and log lines per second that a service dropped because its queue was full.",
                "Any at all: see the runbook TelemetryDropped.",
            ),
            [query("sum by (job, signal) (rate(telemetry_dropped_total[$__rate_interval]))", "{{job}} {{signal}}")],
            unit="cps",
            signals=ANY,
            steps=[(0.01, RED)],
            idle=NOT_SCRAPED,
        ),
        timeseries(
            "Spans: Collector and Tempo",
            Says(
                "Spans per second that the Collector receives, sends and gives up, and that Tempo receives.",
                "Received and not sent: they wait in the queue. Given up: they are lost, see the runbook PipelineLoss.",
            ),
            [
                query("sum(rate(otelcol_receiver_accepted_spans_total[$__rate_interval]))", "Collector receives"),
                query("sum(rate(otelcol_exporter_sent_spans_total[$__rate_interval]))", "Collector sends"),
                query("sum(rate(otelcol_exporter_send_failed_spans_total[$__rate_interval]))", "Collector gives up"),
                query("sum(rate(tempo_distributor_spans_received_total[$__rate_interval]))", "Tempo receives"),
            ],
            unit="cps",
            signals=ANY,
            idle=NOT_SCRAPED,
        ),
        timeseries(
            "Collector's queue",
            Says(
                "How full the queue to Tempo is, which holds 2000 batches.",
                "It fills while Tempo is down or slow; see the runbook PipelineBacklog.",
            ),
            [query("sum(otelcol_exporter_queue_size) / sum(otelcol_exporter_queue_capacity)", "used")],
            unit="percentunit",
            signals=ANY,
            steps=[(0.5, AMBER), (0.9, RED)],
            highest=1,
            idle=NOT_SCRAPED,
        ),
        timeseries(
            "Lines: Alloy and Loki",
            Says(
                "Log lines per second that Alloy reads and sends, and that Loki receives.",
                "Read and not sent: Loki is down or slow; lines wait in the files. Loki receives more than Alloy reads:"
                " lines are read again after a crash.",
            ),
            [
                query("sum(rate(loki_source_file_read_lines_total[$__rate_interval]))", "Alloy reads"),
                query("sum(rate(loki_write_sent_entries_total[$__rate_interval]))", "Alloy sends"),
                query("sum(rate(loki_distributor_lines_received_total[$__rate_interval]))", "Loki receives"),
            ],
            unit="cps",
            signals=ANY,
            idle=NOT_SCRAPED,
        ),
        timeseries(
            "Lines lost",
            Says(
                "Log lines per second that Alloy gave up or Loki discarded.",
                "Any at all: see the runbook PipelineLoss; the reason names the limit.",
            ),
            [
                query(
                    "sum by (reason) (rate(loki_write_dropped_entries_total[$__rate_interval]))", "Alloy: {{reason}}"
                ),
                query("sum by (reason) (rate(loki_discarded_samples_total[$__rate_interval]))", "Loki: {{reason}}"),
            ],
            unit="cps",
            signals=ANY,
            steps=[(0.01, RED)],
            idle="No line was lost in this time range.",
        ),
        timeseries(
            "Alerts and notifications",
            Says(
                "Firing alerts, and notifications per second that Alertmanager sent or failed to send.",
                "Alerts without notifications: their cause mutes them, or delivery fails: see the runbook"
                " NotificationsFailing.",
            ),
            [
                query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing alerts"),
                query("sum(rate(alertmanager_notifications_total[$__rate_interval]))", "sent"),
                query("sum(rate(alertmanager_notifications_failed_total[$__rate_interval]))", "failed"),
            ],
            unit="short",
            signals=ANY,
            idle=NOT_SCRAPED,
        ),
    ]


def saturation() -> list[Panel]:
    def resource(title: str, name: str, shows: str, wrong: str) -> Panel:
        return timeseries(
            title,
            Says(shows, wrong),
            [query(f'job:saturation:ratio{{resource="{name}"}}', "{{job}}")],
            unit="percentunit",
            signals=ANY,
            steps=[(0.7, AMBER), (0.9, RED)],
            idle=NOT_SCRAPED,
        )

    return [
        resource(
            "CPU",
            "CPU",
            "The share of a core that each process of a service uses.",
            "Near 100 %: requests queue. Add processes (dicelab up --workers) or do less for each request.",
        ),
        resource(
            "Memory",
            "memory",
            "The memory of each process of a service, as a share of a container's limit of 512 MiB.",
            "Growing with the requests in flight: they wait for something. Growing for ever: a leak.",
        ),
        resource(
            "Descriptors",
            "descriptors",
            "Open files and connections, as a share of the process's limit.",
            "Near 100 %: connections are refused. What do the requests in flight wait for?",
        ),
        resource(
            "Event loop",
            "event loop",
            "The lag of the event loop: at 100 % one callback in twenty runs 0.1 s late.",
            "High while CPU is free: something blocks the loop. High with high CPU: the service is saturated.",
        ),
        timeseries(
            "Requests in flight",
            Says(
                "Requests in flight in each service at the time of a scrape.",
                "It must return to its usual level after a burst; requests that remain wait for something.",
            ),
            [query("sum by (job) (http_requests_in_flight)", "{{job}}")],
            unit="short",
            signals=ANY,
            steps=[(500, AMBER)],
            idle=NOT_SCRAPED,
        ),
        timeseries(
            "Memory of the engines",
            Says(
                "Resident memory of each engine.",
                "Tempo may briefly need a gigabyte when many traces are looked up at once. Growing for ever: see"
                " its log.",
            ),
            [query(f'sum by (job) (process_resident_memory_bytes{{job!~"{SERVICES}"}})', "{{job}}")],
            unit="bytes",
            signals=ANY,
            steps=[(1.5e9, RED)],
            idle=NOT_SCRAPED,
        ),
        number(
            "Builds",
            Says(
                "The version of Dice Lab that each service runs, and how many processes of it there are.",
                "Different versions side by side: a service was not restarted after an update.",
            ),
            [query("sum by (job, version) (dicelab_build_info)", "{{job}} {{version}}")],
            unit="short",
            signals=ANY,
            idle=NOT_SCRAPED,
            width=24,
        ),
    ]


ROWS = (Row("Targets", targets), Row("Telemetry pipelines", losses), Row("Saturation", saturation))
