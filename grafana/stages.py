"""What each stage's dashboard shows: its own panels after those of the stages before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grafana.panels import (
    AMBER,
    GREEN,
    RED,
    USAGE,
    Figure,
    Panel,
    Says,
    Signals,
    bars,
    counted,
    lines,
    log_query,
    log_total,
    number,
    of,
    per_bucket,
    quantiles,
    query,
    service_map,
    summary,
    timeseries,
    total,
    traces,
    words,
)


@dataclass(frozen=True)
class Row:
    """A stage's panels under one heading. Widths fill lines of 24 columns."""

    title: str
    panels: Callable[[], Sequence[Panel]]


ROLLER = of("dice-roller")
FRONTEND = of("frontend")
DIE_SERVICE = of("die-service", 'name="GET /dice"')
DATABASE = Signals(
    '{service_name="die-service"} | json | db_query_type=~".+"',
    '{resource.service.name="die-service" && span.db.system.name="postgresql"}',
)
BATCHES = of("dice-roller", 'name="GET /roll-async"')

# What the objectives count: a caller's own mistakes and callers that went away are no one's failure.
ELIGIBLE = 'outcome=~"success|die_failed|error"'
# Not those that PostgreSQL brings along, nor what belongs to none (an empty name).
OWN_DATABASES = 'datname!~"template.*|postgres|"'


def _share(part: str, whole: str) -> str:
    """Of counters that are there, at zero, before they first count."""
    return f"sum(increase({part}[$__range])) / sum(increase({whole}[$__range]))"


def _average(metric: str, matchers: str, by: str = "") -> str:
    by = f" by ({by})" if by else ""
    return (
        f"sum{by} (rate({metric}_sum{{{matchers}}}[$__rate_interval]))"
        f" / sum{by} (rate({metric}_count{{{matchers}}}[$__rate_interval]))"
    )


def _beyond_design() -> str:
    """By how many standard deviations more rolls of each die failed in the time range than its budget says.

    The 1 keeps the fair die, whose budget is 0, finite: five of its rolls must fail to reach 5.
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
    """The same on every stage. The rules record at the frontend, or at the dice-roller where there is none."""
    failing = Signals('{level=~"ERROR|CRITICAL"} | json', "{status=error}")
    return [
        summary(
            "Service level",
            Says(
                "What users get now, over the last minute: requests for rolls per second, the share of them that was"
                " served (a die's designed failures count as served), and how long all but one in twenty took.",
                "A share below 99.5 %: Error logs says what fails. Slower than 1.5 s: open a dot in Latency of a roll.",
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
            Says(
                "The fullest resource of any service (CPU, memory, descriptors, event loop), what is left of the error"
                " budget of 30 days, and how many alerts fire.",
                "Which resource, and what the engines do, is in the dashboard Pipeline and saturation; the burn of the"
                " budget in Objectives. Each alert names its runbook in docs/runbooks.",
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
            Says(
                "Requests per second to the dice-roller, by route and status.",
                "No line at all: is the service up, does Prometheus scrape it? Many 503 or 504: look at what the"
                " roller depends on. Many 500: which dice are rolled? Risky ones fail by design.",
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
            Says(
                "How long GET /roll takes: half of the requests less than p50, all but one in a hundred less than"
                " p99. Each dot is one request; a click on it opens its trace.",
                "A roll waits up to one second by design. More than that is spent elsewhere: open a dot above the"
                " line and see which span is the long one.",
            ),
            quantiles("http_request_duration_seconds", roll),
            unit="s",
            signals=ROLLER,
            steps=[(1.5, RED)],
            width=12,
        ),
        bars(
            "Error rate by die",
            Says(
                "How many more rolls of a die failed in the time range than its design allows, in standard deviations."
                " Risky is designed to fail every tenth time, extreme every second time. 0 is as many as designed or"
                " fewer, up to 3 is chance.",
                "A die above 5 has another error_rate than its design: compare its specification with the budgets in"
                " compose/prometheus/rules/slo.yml. Open the failed traces: the roll's span says why.",
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
            Says(
                "How many rolls came out or failed in the time range, by die; each roll of a batch counts.",
                "A die that is missing has not been rolled. 'unknown' are requests for dice there are none of: the"
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
            Says(
                "How often each face of the fair die came up in the time range: exact counts, not cumulated.",
                "Expect the same number for all six, give or take twice its square root. A face that stays behind"
                " for thousands of rolls is no chance.",
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
            Says(
                "How often each face of the risky die, 2 to 7, came up in the time range: exact counts. Rolls that"
                " failed have no face.",
                "Expect the same number for all six. Fewer rolls than asked for are its designed failures; see"
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
            Says(
                "The dice-roller's newest log lines. Unfold one for its fields; its trace id leads to the trace.",
                "Nothing although there is traffic: do logs arrive in Loki at all? Ask for one in Explore, then look"
                " at Alloy.",
            ),
            '{service_name="dice-roller"}',
        ),
        lines(
            "Error logs",
            Says(
                "What any service has logged as an error.",
                "Failed rolls of risky dice are expected here. For anything else open the line's trace.",
            ),
            '{level=~"ERROR|CRITICAL"}',
        ),
        traces(
            "Recent traces",
            Says(
                "The newest requests for rolls as traces; a click on an id opens the trace.",
                "Nothing although there is traffic: do spans arrive in Tempo? telemetry_dropped_total says if the"
                " services had to drop some.",
            ),
            '{resource.service.name="dice-roller" && name=~"GET /roll.*"}',
        ),
        words(
            "From a trace to its logs, and back",
            Says("How the three signals of one roll are found.", "The ids are in every answer's X-Trace-Id header."),
            "1. **Metric → trace:** a dot in *Latency of a roll* is one request; *Query with Tempo* opens its trace.\n"
            "2. **Trace → logs:** each span of a trace has *Logs for this span*.\n"
            "3. **Log → trace:** unfold a log line; beside its `trace_id` stands a link to the trace.\n"
            "4. **Any roll:** each answer carries its id in `X-Trace-Id`. In Explore, Tempo takes the id itself,"
            ' Loki `{service_name="dice-roller"} | trace_id="…"`.',
        ),
    ]


def frontend() -> list[Panel]:
    return [
        timeseries(
            "Frontend request rate",
            Says(
                "What users got per second, from the page and its JSON face alike, by status.",
                "503: the dice-roller cannot be reached. 504: it took too long. 500: a roll failed, or the roller did.",
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
            Says(
                "The share of users' requests that were served, over the whole time range. A die's designed failures"
                " count as served, unknown dice and callers that went away are left out.",
                "100 % while nothing is broken. Below it, Error logs and the statuses in Frontend request rate say what"
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
            Says(
                "Rolls asked for per second, by die; a batch is one click.",
                "Clicks without requests beside them are still under way, or never got an answer.",
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
            Says(
                "From a click to the answer, as the user felt it. Each dot is one click; it opens its trace.",
                "Compare with Latency of a roll: what is longer here is spent between the services.",
            ),
            quantiles("streamlit_request_duration_seconds", 'job="frontend",die_type=~"$die"'),
            unit="s",
            signals=FRONTEND,
            steps=[(1.5, RED)],
            width=24,
        ),
        lines(
            "Frontend logs",
            Says(
                "The frontend's newest operational log lines.",
                "'Backend failed' tells the URL and the status it got; the line's trace tells where it broke.",
            ),
            '{service_name="frontend"}',
        ),
        service_map(
            "Service map",
            Says(
                "Who calls whom: requests per second and mean duration, found in the traces by Tempo. The ring is the"
                " share of failed requests.",
                "A missing arrow: no trace crosses there. Does the caller pass its trace context on, does Tempo write"
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
            Says(
                "Requests per second to the die-service, by status. 404 is a die there is none of.",
                "503 and 504 come from its store of dice. No line although dice are rolled: the roller does not"
                " reach it.",
            ),
            [
                query(
                    f"sum by (status) (rate(http_requests_total{{{served}}}[$__rate_interval]))",
                    "{{status}}",
                )
            ],
            idle="Nobody has asked the die-service in this time range. Roll a die.",
            unit="reqps",
            signals=DIE_SERVICE,
        ),
        bars(
            "Dice requested",
            Says(
                "How often each die's specification was asked for in the time range.",
                "Expect one question a roll or batch. 'unknown' are names of dice there are none of.",
            ),
            [
                total(
                    f"sum by (identifier) ({counted(requested)})",
                    "{{identifier}}",
                )
            ],
            idle="Nobody has asked the die-service in this time range. Roll a die.",
            unit="short",
            signals=Signals('{service_name="die-service"} | json | die_identifier=~"${die:regex}"', DIE_SERVICE.traces),
        ),
        timeseries(
            "Die-service latency",
            Says(
                "How long the die-service takes for GET /dice; each dot opens its trace.",
                "It has nothing to wait for but its store: with a database, open a slow dot and look at its SELECT.",
            ),
            quantiles("http_request_duration_seconds", served),
            idle="Nobody has asked the die-service in this time range. Roll a die.",
            unit="s",
            signals=DIE_SERVICE,
            steps=[(0.5, RED)],
        ),
        timeseries(
            "Roller to die-service: rate",
            Says(
                "Questions per second that the roller asked, by what became of them.",
                "Should be equal to the die-service's own request rate; what is missing there never arrived.",
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
            Says(
                "Questions per second that failed: HTTP errors, timeouts and failed connections. Asking for a die there"
                " is none of (404) is no failure.",
                "connection_error: the die-service is down. timeout: it hangs, or all connections to it are busy."
                " 503: its database is away.",
            ),
            [
                query(
                    'sum by (status) (rate(die_service_requests_total{job="dice-roller",status!~"200|404"}'
                    "[$__rate_interval]))",
                    "{{status}}",
                )
            ],
            idle="Every question got its die in this time range.",
            unit="reqps",
            signals=Signals(
                '{service_name="dice-roller",level="WARNING"} | json | die_found="false"',
                '{resource.service.name="dice-roller" && kind=client && status=error}',
            ),
            steps=[(0.01, RED)],
        ),
        timeseries(
            "Roller to die-service: latency",
            Says(
                "How long the roller waits for the die-service's answer; each dot opens its trace.",
                "Far above Die-service latency: the time is lost on the way, or waiting for a free connection.",
            ),
            quantiles("die_service_request_duration_seconds", 'job="dice-roller"'),
            unit="s",
            signals=of("dice-roller", "kind=client"),
            steps=[(0.5, RED)],
        ),
        lines(
            "Die-service logs",
            Says(
                "The die-service's newest log lines.",
                "Warnings name dice there are none of; errors come from the database.",
            ),
            '{service_name="die-service"}',
        ),
        traces(
            "Traces across all services",
            Says(
                "The newest rolls whose trace crosses the frontend, the dice-roller and the die-service.",
                "Empty although dice are rolled: one of the three passes no trace context on. Compare with Recent"
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
            Says(
                "Requests per second for single rolls and for batches, and the rolls of those batches.",
                "Rolls of batches far above batches is what they are for. Batches without rolls are dice there are"
                " none of, or a die-service that is away.",
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
            Says(
                "How many batches of each size were asked for in the time range.",
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
            Says(
                "The most rolls of batches that were under way at once, as far as a scrape saw them.",
                "It must come back to zero: rolls that stay in progress hang. A roll takes a second at most.",
            ),
            [query('max(max_over_time(async_rolls_in_progress{job="dice-roller"}[$__rate_interval]))', "in progress")],
            idle="The dice-roller says nothing; see the runbook ServiceDown.",
            unit="short",
            signals=BATCHES,
            steps=[(500, AMBER)],
        ),
        timeseries(
            "Duration of single rolls",
            Says(
                "Mean and 95th percentile of GET /roll.",
                "The measure to hold batches against. Above 1.5 s something other than the die takes time.",
            ),
            [
                query(single, "mean"),
                quantiles("http_request_duration_seconds", 'job="dice-roller",handler="/roll"')[1],
            ],
            unit="s",
            signals=of("dice-roller", 'name="GET /roll"'),
            steps=[(1.5, RED)],
        ),
        timeseries(
            "Duration of batches",
            Says(
                "Mean and 95th percentile of GET /roll-async, the whole request as in Duration of single rolls.",
                "It should be that of the slowest single roll, whatever the size. If it grows with the size, the"
                " rolls wait for each other: open a dot and look whether their spans overlap.",
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
            Says(
                "How many times longer the rolls of the batches would have taken as requests of their own, one after"
                " the other: their number times the mean duration of GET /roll, by the time that GET /roll-async took.",
                "Batches of ten reach 5.5 where a roll waits up to a second; 1 means that rolling at once gains"
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
            Says(
                "Connections to the database, as PostgreSQL itself counts them.",
                "The die-service holds its pool and one to watch by. None: it is cut off. Many more: something else"
                " uses the database, or connections leak.",
            ),
            [
                query(
                    f'sum by (datname) (pg_stat_database_numbackends{{job="postgres-exporter",{OWN_DATABASES}}})',
                    "{{datname}}",
                )
            ],
            idle="The PostgreSQL exporter says nothing; see the runbook ExporterDown.",
            unit="short",
            signals=DATABASE,
        ),
        timeseries(
            "Connections by state",
            Says(
                "What the connections do at the moment of a scrape: active ones run a query.",
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
            idle="The PostgreSQL exporter says nothing; see the runbook ExporterDown.",
            unit="short",
            signals=DATABASE,
        ),
        number(
            "Database size",
            Says(
                "Bytes that the database takes on disk; an empty one has some megabytes.",
                "The dice take a few rows. If it grows, something else writes to it.",
            ),
            [
                query(
                    f'sum by (datname) (pg_database_size_bytes{{job="postgres-exporter",{OWN_DATABASES}}})',
                    "{{datname}}",
                )
            ],
            idle="The PostgreSQL exporter says nothing; see the runbook ExporterDown.",
            unit="bytes",
            signals=DATABASE,
            steps=[(1e9, AMBER)],
        ),
        timeseries(
            "Query rate",
            Says(
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
            Says(
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
            Says(
                "Queries per second that failed, those that found no connection among them.",
                "Any at all is wrong. The query logs say why: refused, cancelled for being too slow, or no connection"
                " to be had.",
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
            Says(
                "Connections of the die-service's pool: open ones, and those of them that nobody uses.",
                "None free: queries wait, then fail; see the runbook DatabasePoolExhausted. None open: the database"
                " is away.",
            ),
            [
                query('sum(database_connection_pool_size{job="die-service"})', "open"),
                query('sum(database_connection_pool_available{job="die-service"})', "free"),
            ],
            idle="The die-service says nothing; see the runbook ServiceDown.",
            unit="short",
            signals=DATABASE,
        ),
        number(
            "Database up",
            Says(
                "Whether PostgreSQL answers its exporter.",
                "Down: see the runbook DatabaseDown. No value at all: the exporter is away, see ExporterDown.",
            ),
            [query('min(pg_up{job="postgres-exporter"})', "database")],
            idle="The PostgreSQL exporter says nothing; see the runbook ExporterDown.",
            unit="none",
            signals=DATABASE,
            low_is_bad=True,
            steps=[(1, GREEN)],
            words={"0": ("down", RED), "1": ("up", GREEN)},
        ),
        number(
            "Query success rate",
            Says(
                "The share of queries that succeeded, over the whole time range.",
                "Below 100 % the query logs have an error for each that failed.",
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
            Says(
                "A line for each query: its kind, how long it took, how many rows it gave.",
                "'Query failed' and 'Connection pool exhausted' say why; their trace shows which roll it was for.",
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
            Says(
                "What signed-in users did: signed in, rolled, signed out. Counted from the usage log lines.",
                "Nothing although users roll: are they signed in? Then look whether Alloy sends lines with usage=true"
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
            Says(
                "Different names and different sessions that did something in the time range.",
                "More sessions than users: people came back, or use several browsers. Names are not checked, so two"
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
            Says(
                "How often users signed in, over time.",
                "A burst by one name is a script or a lost cookie; the usage lines show it.",
            ),
            [log_query(f'sum(count_over_time({events} | event_type="sign_in" [$__auto]))', "sign-ins")],
            idle="Nobody has signed in in this time range.",
            unit="short",
            signals=visits,
            bars=True,
            datasource=USAGE,
        ),
        lines(
            "Usage log lines",
            Says(
                "The usage log itself, from its own destination. These lines are nowhere else.",
                "One of them among the frontend's operational logs, or another line here: the routing is wrong.",
            ),
            events,
            width=24,
            datasource=USAGE,
        ),
    ]


SUMMARY = Row("Summary", overview)
# The rows that each stage adds, and its name.
STAGES: dict[int, tuple[str, Row]] = {
    1: ("One service", Row("Dice-roller", dice_roller)),
    2: ("A frontend", Row("Frontend", frontend)),
    3: ("Three services", Row("Die-service", die_service)),
    4: ("Many rolls at once", Row("Batches", batches)),
    5: ("A database", Row("Database", database)),
    6: ("Usage logs", Row("Usage", usage)),
}
