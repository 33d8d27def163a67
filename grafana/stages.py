"""The panels of each stage's dashboard: its own, and those of the stages before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grafana.panels import (
    AMBER,
    GREEN,
    RED,
    USAGE,
    Description,
    Figure,
    Panel,
    Signals,
    bars,
    counted,
    lines,
    log_query,
    log_total,
    number,
    per_bucket,
    quantiles,
    query,
    service_map,
    signals_of,
    summary,
    text_panel,
    timeseries,
    total,
    traces,
)


@dataclass(frozen=True)
class Row:
    """A stage's panels under one heading. Widths fill lines of 24 columns."""

    title: str
    panels: Callable[[], Sequence[Panel]]


ROLLER = signals_of("dice-roller")
FRONTEND = signals_of("frontend")
DIE_SERVICE = signals_of("die-service", 'name="GET /dice"')
DATABASE = Signals(
    '{service_name="die-service"} | json | db_query_type=~".+"',
    '{resource.service.name="die-service" && span.db.system.name="postgresql"}',
)
BATCHES = signals_of("dice-roller", 'name="GET /roll-async"')

# What the objectives count: client errors and callers that disconnected are not failures.
ELIGIBLE = 'outcome=~"success|die_failed|error"'
# Not PostgreSQL's own databases, nor connections without a database (an empty name).
OWN_DATABASES = 'datname!~"template.*|postgres|"'


def _share(part: str, whole: str) -> str:
    """The ratio of the increases of two counters, both of which are exposed as 0 before their first increment."""
    return f"sum(increase({part}[$__range])) / sum(increase({whole}[$__range]))"


def _average(metric: str, matchers: str, by: str = "") -> str:
    by = f" by ({by})" if by else ""
    return (
        f"sum{by} (rate({metric}_sum{{{matchers}}}[$__rate_interval]))"
        f" / sum{by} (rate({metric}_count{{{matchers}}}[$__rate_interval]))"
    )


def _beyond_design() -> str:
    """By how many standard deviations the failed rolls of each die exceed its budget in the time range.

    The 1 under the root avoids a division by zero for the fair die, whose budget is 0; five failed rolls give it 5.
    """
    rolls = 'dice_rolls_total{job="dice-roller",die_type=~"$die",die_type!="unknown"}'
    failures = rolls.replace("}", ',result="error"}')
    failed, rolled = f"sum by (die_type) ({counted(failures)})", f"sum by (die_type) ({counted(rolls)})"
    budget = "on (die_type) die:failure_budget:ratio"
    spread = f"sqrt({rolled} * {budget} * on (die_type) (1 - die:failure_budget:ratio) + 1)"
    return f"clamp_min(({failed} - {rolled} * {budget}) / {spread}, 0)"


def _faces(faces: Sequence[int]) -> list[tuple[str, str]]:
    return [(f"{face}.0", str(face)) for face in faces]


def overview() -> list[Panel]:
    """The summary of every stage. Its rules use the frontend's metrics, or without a frontend the dice-roller's."""
    failing = Signals('{level=~"ERROR|CRITICAL"} | json', "{status=error}")
    return [
        summary(
            "Service level",
            Description(
                "What users got in the last minute: requests for rolls per second, the share of them that was"
                " served (a die's designed failures count as served), and how long all but one in twenty took.",
                "Below 99.5 %: Error logs shows what fails. Slower than 1.5 s: open a dot in Latency of a roll.",
            ),
            [
                Figure(query("roll:requests:rate1m", "requests"), "reqps"),
                Figure(
                    query("roll:served:ratio_rate1m", "served"),
                    "percentunit",
                    steps=[(0.95, AMBER), (0.995, GREEN)],
                    low_is_bad=True,
                ),
                Figure(query("roll:duration_seconds:p95_rate1m", "p95"), "s", steps=[(1.5, RED)], decimals=2),
            ],
            signals=failing,
        ),
        summary(
            "Health",
            Description(
                "The fullest resource of any service (CPU, memory, descriptors, event loop), the remaining error"
                " budget of 30 days, and the number of firing alerts.",
                "The dashboard Pipeline and saturation shows the resources and the engines, Objectives the burn of the"
                " budget. Each alert names its runbook in docs/runbooks.",
            ),
            [
                Figure(
                    query("max(job:saturation:ratio)", "fullest resource"),
                    "percentunit",
                    steps=[(0.7, AMBER), (0.9, RED)],
                    decimals=0,
                ),
                Figure(
                    query("roll:error_budget:remaining30d", "error budget left"),
                    "percentunit",
                    steps=[(0, AMBER), (0.25, GREEN)],
                    low_is_bad=True,
                    decimals=0,
                ),
                Figure(
                    query('count(ALERTS{alertstate="firing"}) or vector(0)', "alerts"),
                    "short",
                    steps=[(1, RED)],
                    decimals=0,
                ),
            ],
            signals=failing,
        ),
    ]


def dice_roller() -> list[Panel]:
    roll = 'job="dice-roller",handler="/roll"'
    rolls = 'dice_rolls_total{job="dice-roller",die_type=~"$die"}'
    return [
        timeseries(
            "Request rate",
            Description(
                "Requests per second to the dice-roller, by route and status.",
                "No series at all: is the service up, does Prometheus scrape it? Many 503 or 504: look at the services"
                " that the roller depends on. Many 500: which dice are rolled? Risky ones fail by design.",
            ),
            [
                query(
                    'sum by (handler, status) (rate(http_requests_total{job="dice-roller",handler=~"/roll.*"}'
                    "[$__rate_interval]))",
                    "{{handler}} {{status}}",
                )
            ],
            unit="reqps",
            signals=ROLLER,
            width=12,
        ),
        timeseries(
            "Latency of a roll",
            Description(
                "How long GET /roll takes: half of the requests less than p50, all but one in a hundred less than"
                " p99. Each dot is one request; a click on it opens its trace.",
                "A roll waits up to one second by design. More than that is spent elsewhere: open a dot above the"
                " line and find the longest span.",
            ),
            quantiles("http_request_duration_seconds", roll),
            unit="s",
            signals=ROLLER,
            steps=[(1.5, RED)],
            width=12,
        ),
        bars(
            "Error rate by die",
            Description(
                "By how many standard deviations the failed rolls of a die exceed its design in the time range."
                " Risky is designed to fail every tenth time, extreme every second time. 0 means as designed or"
                " better, up to 3 is chance.",
                "Above 5 the die's error_rate differs from its design: compare its specification with the budgets in"
                " compose/prometheus/rules/slo.yml. Open the failed traces: the roll's span has the reason.",
            ),
            [total(_beyond_design(), "{{die_type}}")],
            idle="No die has been rolled in this time range.",
            unit="none",
            signals=Signals(
                '{service_name="dice-roller",level=~"ERROR|WARNING"} | json | die_type=~"${die:regex}"',
                '{resource.service.name="dice-roller" && status=error}',
            ),
            steps=[(3, AMBER), (5, RED)],
            decimals=1,
            width=6,
        ),
        bars(
            "Rolls by die",
            Description(
                "How many rolls succeeded or failed in the time range, by die; each roll of a batch counts.",
                "A missing die has not been rolled. 'unknown' counts requests for dice that do not exist: the"
                " log's warnings name them.",
            ),
            [
                total(
                    f"sum by (die_type) ({counted(rolls)})",
                    "{{die_type}}",
                )
            ],
            unit="short",
            signals=ROLLER,
            width=6,
        ),
        bars(
            "Faces of the fair die",
            Description(
                "How often each face of the fair die came up in the time range: exact counts, not cumulated.",
                "Expect the same number for all six, within twice its square root. A face that stays behind"
                " for thousands of rolls is not chance.",
            ),
            per_bucket("dice_roll_value", 'job="dice-roller",die_type="fair"', _faces(range(1, 7))),
            unit="short",
            signals=Signals(
                '{service_name="dice-roller"} | json | die_type="fair"',
                '{resource.service.name="dice-roller" && span.die.type="fair"}',
            ),
            width=6,
        ),
        bars(
            "Faces of the risky die",
            Description(
                "How often each face of the risky die, 2 to 7, came up in the time range: exact counts. Rolls that"
                " failed have no face.",
                "Expect the same number for all six. Their sum is lower than the rolls by its designed failures; see"
                " Error rate by die.",
            ),
            per_bucket("dice_roll_value", 'job="dice-roller",die_type="risky"', _faces(range(2, 8))),
            unit="short",
            signals=Signals(
                '{service_name="dice-roller"} | json | die_type="risky"',
                '{resource.service.name="dice-roller" && span.die.type="risky"}',
            ),
            width=6,
        ),
        lines(
            "Recent logs",
            Description(
                "The dice-roller's newest log lines. Unfold one for its fields; its trace id leads to the trace.",
                "Nothing although there is traffic: do logs arrive in Loki at all? Query one in Explore, then look"
                " at Alloy.",
            ),
            '{service_name="dice-roller"}',
        ),
        lines(
            "Error logs",
            Description(
                "Errors in the logs of all services.",
                "Failed rolls of risky dice are expected here. For anything else open the line's trace.",
            ),
            '{level=~"ERROR|CRITICAL"}',
        ),
        traces(
            "Recent traces",
            Description(
                "The newest requests for rolls as traces; a click on an id opens the trace.",
                "Nothing although there is traffic: do spans arrive in Tempo? telemetry_dropped_total shows whether the"
                " services dropped some.",
            ),
            '{resource.service.name="dice-roller" && name=~"GET /roll.*"}',
        ),
        text_panel(
            "From a trace to its logs, and back",
            Description(
                "How to find the three signals of one roll.", "The ids are in every response's X-Trace-Id header."
            ),
            "1. **Metric → trace:** a dot in *Latency of a roll* is one request; *Query with Tempo* opens its trace.\n"
            "2. **Trace → logs:** each span of a trace has *Logs for this span*.\n"
            "3. **Log → trace:** unfold a log line; its `trace_id` links to the trace.\n"
            "4. **Any roll:** each response carries its trace id in `X-Trace-Id`. In Explore, Tempo takes the id,"
            ' Loki `{service_name="dice-roller"} | trace_id="…"`.',
        ),
    ]


def frontend() -> list[Panel]:
    return [
        timeseries(
            "Frontend request rate",
            Description(
                "Responses to users per second, from the page and the JSON API, by status.",
                "503: the dice-roller is unreachable. 504: it took too long. 500: a roll or the roller failed.",
            ),
            [
                query(
                    'sum by (status_code) (rate(streamlit_requests_total{job="frontend",die_type=~"$die"}'
                    "[$__rate_interval]))",
                    "{{status_code}}",
                )
            ],
            unit="reqps",
            signals=FRONTEND,
        ),
        number(
            "Frontend success rate",
            Description(
                "The share of users' requests that were served, over the whole time range. A die's designed failures"
                " count as served; unknown dice and callers that disconnected are left out.",
                "100 % while nothing is broken. Below it, Error logs and the status in Frontend request rate show what"
                " failed.",
            ),
            [
                total(
                    _share(
                        'roll_requests_total{job="frontend",outcome=~"success|die_failed"}',
                        f'roll_requests_total{{job="frontend",{ELIGIBLE}}}',
                    ),
                    "served",
                )
            ],
            unit="percentunit",
            signals=Signals(
                '{service_name="frontend",level="ERROR"} | json',
                '{resource.service.name="frontend" && status=error}',
            ),
            low_is_bad=True,
            steps=[(0.99, AMBER), (0.995, GREEN)],
            decimals=2,
        ),
        timeseries(
            "Button clicks by die",
            Description(
                "Requested rolls per second, by die; a batch is one click.",
                "Clicks without matching requests are still in progress, or never got a response.",
            ),
            [
                query(
                    'sum by (die_type) (rate(streamlit_button_clicks_total{job="frontend",die_type=~"$die"}'
                    "[$__rate_interval]))",
                    "{{die_type}}",
                )
            ],
            unit="cps",
            signals=Signals(
                '{service_name="frontend"} | json | die_type=~"${die:regex}"',
                '{resource.service.name="frontend" && name="button click"}',
            ),
        ),
        timeseries(
            "End-to-end latency",
            Description(
                "The time from a click to the response. Each dot is one click; it opens its trace.",
                "Compare with Latency of a roll: the difference is spent between the services.",
            ),
            quantiles("streamlit_request_duration_seconds", 'job="frontend",die_type=~"$die"'),
            unit="s",
            signals=FRONTEND,
            steps=[(1.5, RED)],
            width=24,
        ),
        lines(
            "Frontend logs",
            Description(
                "The frontend's newest operational log lines.",
                "'Backend failed' has the URL and the status; the line's trace shows where it failed.",
            ),
            '{service_name="frontend"}',
        ),
        service_map(
            "Service map",
            Description(
                "Calls between services: requests per second and mean duration, derived from traces. The ring is the"
                " share of failed requests.",
                "A missing arrow: no trace crosses there. Does the caller propagate its trace context, does Tempo write"
                " to Prometheus?",
            ),
        ),
    ]


def die_service() -> list[Panel]:
    served = 'job="die-service",handler="/dice"'
    requested = 'die_specifications_requested_total{job="die-service",identifier=~"$die"}'
    return [
        timeseries(
            "Die-service request rate",
            Description(
                "Requests per second to the die-service, by status. 404: no such die.",
                "503 and 504 come from its store of dice. No series although dice are rolled: the roller does not"
                " reach it.",
            ),
            [
                query(
                    f"sum by (status) (rate(http_requests_total{{{served}}}[$__rate_interval]))",
                    "{{status}}",
                )
            ],
            idle="No request to the die-service in this time range. Roll a die.",
            unit="reqps",
            signals=DIE_SERVICE,
        ),
        bars(
            "Dice requested",
            Description(
                "How often each die's specification was requested in the time range.",
                "Expect one request a roll or batch. 'unknown' counts names of dice that do not exist.",
            ),
            [
                total(
                    f"sum by (identifier) ({counted(requested)})",
                    "{{identifier}}",
                )
            ],
            idle="No request to the die-service in this time range. Roll a die.",
            unit="short",
            signals=Signals('{service_name="die-service"} | json | die_identifier=~"${die:regex}"', DIE_SERVICE.traces),
        ),
        timeseries(
            "Die-service latency",
            Description(
                "How long the die-service takes for GET /dice; each dot opens its trace.",
                "It waits only for its store: with a database, open a slow dot and look at its SELECT.",
            ),
            quantiles("http_request_duration_seconds", served),
            idle="No request to the die-service in this time range. Roll a die.",
            unit="s",
            signals=DIE_SERVICE,
            steps=[(0.5, RED)],
        ),
        timeseries(
            "Roller to die-service: rate",
            Description(
                "Requests per second from the roller to the die-service, by outcome.",
                "It should equal the die-service's own request rate; requests missing there never arrived.",
            ),
            [
                query(
                    'sum by (status) (rate(die_service_requests_total{job="dice-roller",identifier=~"$die"}'
                    "[$__rate_interval]))",
                    "{{status}}",
                )
            ],
            unit="reqps",
            signals=ROLLER,
        ),
        timeseries(
            "Roller to die-service: errors",
            Description(
                "Failed requests per second: HTTP errors, timeouts and failed connections. An unknown die (404)"
                " is not a failure.",
                "connection_error: the die-service is down. timeout: it hangs, or all connections to it are busy."
                " 503: its database is unavailable.",
            ),
            [
                query(
                    'sum by (status) (rate(die_service_requests_total{job="dice-roller",status!~"200|404"}'
                    "[$__rate_interval]))",
                    "{{status}}",
                )
            ],
            idle="No request to the die-service failed in this time range.",
            unit="reqps",
            signals=Signals(
                '{service_name="dice-roller",level="WARNING"} | json | die_found="false"',
                '{resource.service.name="dice-roller" && kind=client && status=error}',
            ),
            steps=[(0.01, RED)],
        ),
        timeseries(
            "Roller to die-service: latency",
            Description(
                "How long the roller waits for the die-service's response; each dot opens its trace.",
                "Far above Die-service latency: the time is spent in the network, or waiting for a free connection.",
            ),
            quantiles("die_service_request_duration_seconds", 'job="dice-roller"'),
            unit="s",
            signals=signals_of("dice-roller", "kind=client"),
            steps=[(0.5, RED)],
        ),
        lines(
            "Die-service logs",
            Description(
                "The die-service's newest log lines.",
                "Warnings name dice that do not exist; errors come from the database.",
            ),
            '{service_name="die-service"}',
        ),
        traces(
            "Traces across all services",
            Description(
                "The newest rolls whose trace crosses the frontend, the dice-roller and the die-service.",
                "Empty although dice are rolled: one of the three propagates no trace context. Compare with Recent"
                " traces.",
            ),
            '{resource.service.name="frontend"} >> {resource.service.name="die-service"}',
        ),
    ]


def batches() -> list[Panel]:
    sizes = [
        ("1.0", "1"),
        ("2.0", "2"),
        ("5.0", "3-5"),
        ("10.0", "6-10"),
        ("20.0", "11-20"),
        ("50.0", "21-50"),
        ("100.0", "51-100"),
    ]
    rolls = 'sum(rate(async_rolls_total{job="dice-roller"}[$__rate_interval]))'
    single = _average("http_request_duration_seconds", 'job="dice-roller",handler="/roll"')
    batch = _average("http_request_duration_seconds", 'job="dice-roller",handler="/roll-async"')
    return [
        timeseries(
            "Rolls one by one and in batches",
            Description(
                "Requests per second for single rolls and for batches, and the rolls of those batches.",
                "Rolls in batches should be far above batches. Batches without rolls: unknown dice,"
                " or the die-service is down.",
            ),
            [
                query(
                    'sum(rate(http_requests_total{job="dice-roller",handler="/roll"}[$__rate_interval]))',
                    "single rolls",
                ),
                query(
                    'sum(rate(http_requests_total{job="dice-roller",handler="/roll-async"}[$__rate_interval]))',
                    "batches",
                ),
                query(rolls, "rolls in batches"),
            ],
            unit="reqps",
            signals=BATCHES,
        ),
        bars(
            "Batch sizes",
            Description(
                "How many batches of each size were requested in the time range.",
                "One size only: is a load generator running? Sizes above the limit are refused and not shown.",
            ),
            per_bucket("async_roll_batch_size", 'job="dice-roller"', sizes),
            idle="No batches in this time range. Roll many dice at once.",
            unit="short",
            signals=Signals(
                '{service_name="dice-roller"} | json | async_batch_size>0',
                '{resource.service.name="dice-roller" && span.async.batch_size>0}',
            ),
        ),
        timeseries(
            "Rolls in progress",
            Description(
                "The highest number of concurrent rolls in batches, as seen by scrapes.",
                "It must return to zero: rolls that stay in progress hang. A roll takes a second at most.",
            ),
            [query('max(max_over_time(async_rolls_in_progress{job="dice-roller"}[$__rate_interval]))', "in progress")],
            idle="The dice-roller exposes no metrics; see the runbook ServiceDown.",
            unit="short",
            signals=BATCHES,
            steps=[(500, AMBER)],
        ),
        timeseries(
            "Duration of single rolls",
            Description(
                "Mean and 95th percentile of GET /roll.",
                "The baseline for batches. Above 1.5 s something other than the die takes time.",
            ),
            [
                query(single, "mean"),
                quantiles("http_request_duration_seconds", 'job="dice-roller",handler="/roll"')[1],
            ],
            unit="s",
            signals=signals_of("dice-roller", 'name="GET /roll"'),
            steps=[(1.5, RED)],
        ),
        timeseries(
            "Duration of batches",
            Description(
                "Mean and 95th percentile of GET /roll-async, the whole request as in Duration of single rolls.",
                "It should equal the slowest single roll, whatever the size. If it grows with the size, the"
                " rolls wait for each other: open a dot and check whether their spans overlap.",
            ),
            [
                query(batch, "mean"),
                quantiles("http_request_duration_seconds", 'job="dice-roller",handler="/roll-async"')[1],
            ],
            idle="No batches in this time range. Roll many dice at once.",
            unit="s",
            signals=BATCHES,
            steps=[(1.5, RED)],
        ),
        timeseries(
            "Measured speed-up",
            Description(
                "How many times longer the rolls of the batches would have taken as single requests, one after"
                " the other: their number times the mean duration of GET /roll, divided by that of GET /roll-async.",
                "Batches of ten reach 5.5 where a roll waits up to a second; 1 means that concurrency gains"
                " nothing. Needs single rolls and batches in the same rate interval.",
            ),
            [
                query(
                    f"{rolls} * {single}"
                    ' / sum(rate(http_request_duration_seconds_sum{job="dice-roller",handler="/roll-async"}'
                    "[$__rate_interval]))",
                    "times faster",
                )
            ],
            idle="Needs single rolls and batches in this time range: dicelab compare.",
            unit="none",
            signals=BATCHES,
        ),
    ]


def database() -> list[Panel]:
    return [
        timeseries(
            "Database connections",
            Description(
                "Connections to the database, as counted by PostgreSQL.",
                "The die-service holds its pool and one for probes. None: it is disconnected. Many more: something else"
                " uses the database, or connections leak.",
            ),
            [
                query(
                    f'sum by (datname) (pg_stat_database_numbackends{{job="postgres-exporter",{OWN_DATABASES}}})',
                    "{{datname}}",
                )
            ],
            idle="The PostgreSQL exporter exposes no metrics; see the runbook ExporterDown.",
            unit="short",
            signals=DATABASE,
        ),
        timeseries(
            "Connections by state",
            Description(
                "The states of the connections at the time of a scrape: active ones run a query.",
                "Queries take a millisecond, so active is mostly the exporter itself. Many active: slow or locked"
                " queries. 'idle in transaction' holds locks and should not be there.",
            ),
            [
                query(
                    "sum by (state) (pg_stat_activity_count"
                    f'{{job="postgres-exporter",{OWN_DATABASES},state=~"active|idle.*"}})',
                    "{{state}}",
                )
            ],
            idle="The PostgreSQL exporter exposes no metrics; see the runbook ExporterDown.",
            unit="short",
            signals=DATABASE,
        ),
        number(
            "Database size",
            Description(
                "The size of the database on disk; an empty one has some megabytes.",
                "The dice take a few rows. If it grows, something else writes to it.",
            ),
            [
                query(
                    f'sum by (datname) (pg_database_size_bytes{{job="postgres-exporter",{OWN_DATABASES}}})',
                    "{{datname}}",
                )
            ],
            idle="The PostgreSQL exporter exposes no metrics; see the runbook ExporterDown.",
            unit="bytes",
            signals=DATABASE,
            steps=[(1e9, AMBER)],
        ),
        timeseries(
            "Query rate",
            Description(
                "Queries per second by kind: 'get' one die, 'list' all of them.",
                "Expect one 'get' a roll or batch. None although dice are rolled: is DICE_STORE postgres?",
            ),
            [
                query(
                    'sum by (query_type) (rate(database_queries_total{job="die-service"}[$__rate_interval]))',
                    "{{query_type}}",
                )
            ],
            idle="No queries in this time range. Roll a die.",
            unit="ops",
            signals=DATABASE,
        ),
        timeseries(
            "Query duration",
            Description(
                "How long queries take in the database; each dot opens its trace.",
                "More than some milliseconds: a lock, a slow disk or a busy machine. The SELECT's span has the"
                " statement.",
            ),
            quantiles("database_query_duration_seconds", 'job="die-service"'),
            idle="No queries in this time range. Roll a die.",
            unit="s",
            signals=DATABASE,
            steps=[(0.1, AMBER), (1, RED)],
        ),
        timeseries(
            "Query errors",
            Description(
                "Failed queries per second, including those that got no connection.",
                "Any at all is wrong. The query logs have the reason: refused, cancelled as too slow, or no connection"
                " available.",
            ),
            [
                query(
                    'sum by (query_type) (rate(database_queries_total{job="die-service",result="error"}'
                    "[$__rate_interval]))",
                    "{{query_type}}",
                )
            ],
            idle="No query has failed in this time range.",
            unit="ops",
            signals=Signals(
                '{service_name="die-service",level=~"ERROR|WARNING"} | json | db_query_type=~".+"',
                '{resource.service.name="die-service" && status=error}',
            ),
            steps=[(0.01, RED)],
        ),
        timeseries(
            "Connection pool",
            Description(
                "Connections of the die-service's pool: open ones, and idle ones.",
                "None free: queries wait, then fail; see the runbook DatabasePoolExhausted. None open: the database"
                " is unavailable.",
            ),
            [
                query('sum(database_connection_pool_size{job="die-service"})', "open"),
                query('sum(database_connection_pool_available{job="die-service"})', "free"),
            ],
            idle="The die-service exposes no metrics; see the runbook ServiceDown.",
            unit="short",
            signals=DATABASE,
        ),
        number(
            "Database up",
            Description(
                "Whether PostgreSQL responds to its exporter.",
                "Down: see the runbook DatabaseDown. No value at all: the exporter is down, see ExporterDown.",
            ),
            [query('min(pg_up{job="postgres-exporter"})', "database")],
            idle="The PostgreSQL exporter exposes no metrics; see the runbook ExporterDown.",
            unit="none",
            signals=DATABASE,
            low_is_bad=True,
            steps=[(1, GREEN)],
            value_texts={"0": ("down", RED), "1": ("up", GREEN)},
        ),
        number(
            "Query success rate",
            Description(
                "The share of queries that succeeded, over the whole time range.",
                "Below 100 % the query logs have an error for each failed query.",
            ),
            [
                total(
                    _share(
                        'database_queries_total{job="die-service",result="success"}',
                        'database_queries_total{job="die-service"}',
                    ),
                    "success",
                )
            ],
            idle="No queries in this time range. Roll a die.",
            unit="percentunit",
            signals=DATABASE,
            low_is_bad=True,
            steps=[(0.99, AMBER), (0.999, GREEN)],
            decimals=2,
        ),
        lines(
            "Query logs",
            Description(
                "A line for each query: its kind, its duration and its number of rows.",
                "'Query failed' and 'Connection pool exhausted' give the reason; their trace shows the roll.",
            ),
            '{service_name="die-service"} | json | db_query_type=~".+"',
            width=24,
        ),
    ]


def usage() -> list[Panel]:
    events = '{service_name="frontend"} | json | usage="true"'
    visits = Signals(events, '{resource.service.name="frontend"}', USAGE)
    return [
        timeseries(
            "Usage events",
            Description(
                "Actions of signed-in users: sign-in, roll, sign-out. Counted from the usage log lines.",
                "Nothing although users roll: are they signed in? Then check whether Alloy sends lines with usage=true"
                " to the usage tenant.",
            ),
            [log_query(f"sum by (event_type) (count_over_time({events} [$__auto]))", "{{event_type}}")],
            idle="No signed-in user has done anything in this time range. Sign in and roll.",
            unit="short",
            signals=visits,
            bars=True,
            datasource=USAGE,
        ),
        number(
            "Active users and sessions",
            Description(
                "Distinct user names and sessions with events in the time range.",
                "More sessions than users: users returned, or use several browsers. Names are not verified, so two"
                " people may share one.",
            ),
            [
                log_total(f"count(sum by (username) (count_over_time({events} [$__range])))", "users"),
                log_total(f"count(sum by (session_id) (count_over_time({events} [$__range])))", "sessions"),
            ],
            idle="No signed-in user has done anything in this time range. Sign in and roll.",
            unit="short",
            signals=visits,
            datasource=USAGE,
        ),
        timeseries(
            "Sign-ins",
            Description(
                "How often users signed in, over time.",
                "A burst by one name is a script or a lost cookie; the usage lines show it.",
            ),
            [log_query(f'sum(count_over_time({events} | event_type="sign_in" [$__auto]))', "sign-ins")],
            idle="No sign-in in this time range.",
            unit="short",
            signals=visits,
            bars=True,
            datasource=USAGE,
        ),
        lines(
            "Usage log lines",
            Description(
                "The usage log, from its own tenant. These lines are in no other tenant.",
                "A usage line in the frontend's operational logs, or another line here: the routing is wrong.",
            ),
            events,
            width=24,
            datasource=USAGE,
        ),
    ]


SUMMARY = Row("Summary", overview)
# Each stage's name, and the row that it adds.
STAGES: dict[int, tuple[str, Row]] = {
    1: ("One service", Row("Dice-roller", dice_roller)),
    2: ("A frontend", Row("Frontend", frontend)),
    3: ("Three services", Row("Die-service", die_service)),
    4: ("Many rolls at once", Row("Batches", batches)),
    5: ("A database", Row("Database", database)),
    6: ("Usage logs", Row("Usage", usage)),
}
