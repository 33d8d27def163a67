"""The tables of the index, the statements that fill them, and the queries."""

from __future__ import annotations

TABLES = """
CREATE TABLE spans (
    file INTEGER, trace_id VARCHAR, span_id VARCHAR, parent_id VARCHAR, service VARCHAR, name VARCHAR, kind INTEGER,
    start BIGINT, finish BIGINT, status INTEGER, message VARCHAR, die VARCHAR, attributes VARCHAR, events VARCHAR
);
CREATE TABLE logs (
    file INTEGER, time VARCHAR, level VARCHAR, service VARCHAR, trace_id VARCHAR, span_id VARCHAR, line VARCHAR
);
"""
# Each line is an export: a list of resources with lists of scopes with lists of spans. Other lines are skipped.
INSERT_SPANS = """
INSERT INTO spans
WITH resources AS (
    SELECT unnest(resourceSpans) AS resource
    FROM read_json(
        $chunk, format = 'newline_delimited', ignore_errors = true, maximum_object_size = 67108864,
        columns = {resourceSpans: 'STRUCT(
            resource STRUCT(attributes STRUCT("key" VARCHAR, "value" STRUCT(stringValue VARCHAR))[]),
            scopeSpans STRUCT(spans STRUCT(
                traceId VARCHAR, spanId VARCHAR, parentSpanId VARCHAR, name VARCHAR, kind INTEGER,
                startTimeUnixNano BIGINT, endTimeUnixNano BIGINT, status STRUCT(code INTEGER, message VARCHAR),
                attributes JSON, events JSON
            )[])[]
        )[]'}
    )
), scopes AS (
    SELECT
        list_filter(resource.resource.attributes, lambda a: a.key = 'service.name')[1].value.stringValue AS service,
        unnest(resource.scopeSpans) AS scope
    FROM resources
), spans AS (
    SELECT service, unnest(scope.spans) AS span FROM scopes
)
SELECT
    $file, span.traceId, span.spanId, coalesce(span.parentSpanId, ''), coalesce(service, 'unknown'),
    coalesce(span.name, ''), coalesce(span.kind, 0), span.startTimeUnixNano,
    coalesce(span.endTimeUnixNano, span.startTimeUnixNano), coalesce(span.status.code, 0),
    coalesce(span.status.message, ''),
    nullif(regexp_extract(span.attributes, '"key":"die\\.type","value":\\{"stringValue":"([^"\\\\]*)"', 1), ''),
    span.attributes, span.events
FROM spans
WHERE span.traceId IS NOT NULL AND span.spanId IS NOT NULL AND span.startTimeUnixNano IS NOT NULL
"""
# Read as text rather than as JSON, so that lines that are not JSON are kept too.
INSERT_LOGS = """
INSERT INTO logs
SELECT
    $file, coalesce(field[1], ''), coalesce(field[2], 'unknown'), coalesce(field[3], $service), field[4], field[5], line
FROM (
    SELECT
        line,
        json_extract_string(
            TRY_CAST(line AS JSON), ['$.timestamp', '$.level', '$.logger', '$.trace_id', '$.span_id']
        ) AS field
    FROM read_csv(
        $chunk, columns = {line: 'VARCHAR'}, auto_detect = false, header = false, delim = chr(1), quote = '',
        escape = '', new_line = '\\n', max_line_size = 67108864, ignore_errors = true
    )
    WHERE line <> ''
)
"""
TRACE = """
SELECT DISTINCT ON (span_id) * EXCLUDE (file, die) FROM spans WHERE trace_id = $trace_id
ORDER BY start, span_id LIMIT $limit
"""
SEARCH = """
SELECT
    trace_id,
    min(start) AS start,
    max(finish) - min(start) AS duration,
    count(*) AS spans,
    coalesce(arg_min(name, start) FILTER (parent_id = ''), arg_min(name, start))
        || coalesce(' → ' || arg_min(name, start) FILTER (kind = 2 AND parent_id <> ''), '') AS name,
    list_sort(list_distinct(list(service))) AS services,
    max(die) AS die,
    bool_or(status = 2) AS failed
FROM spans
WHERE start >= $since - 600000000000  -- a trace takes less than ten minutes
GROUP BY trace_id
HAVING min(start) >= $since AND ($until = 0 OR min(start) < $until)
    AND ($service = '' OR list_contains(services, $service))
    AND ($die = '' OR max(die) = $die)
    AND ($failed IS NULL OR failed = $failed)
    AND duration >= $min_duration
ORDER BY start DESC
LIMIT $limit
"""
# Served requests, and database queries, each with the calling service.
CALLS = """
SELECT
    s.trace_id, s.start, s.finish - s.start AS duration, coalesce(p.service, '') AS caller, s.service,
    s.status = 2 AS failed
FROM spans s LEFT JOIN spans p ON s.parent_id <> '' AND p.trace_id = s.trace_id AND p.span_id = s.parent_id
WHERE s.kind = 2 AND NOT contains(s.name, '/static/') AND s.name <> 'GET /ws'
    AND s.start >= $since AND ($until = 0 OR s.start < $until)
"""
QUERIES = r"""
SELECT
    trace_id, start, finish - start AS duration, service AS caller,
    regexp_extract(attributes, '"key":"db\.system(?:\.name)?","value":\{"stringValue":"([^"\\]*)"', 1) AS service,
    status = 2 AS failed
FROM spans
WHERE kind = 3 AND contains(attributes, '"db.system') AND start >= $since AND ($until = 0 OR start < $until)
"""
HEAT = f"""
SELECT
    service, start // $step * $step AS start, len(list_filter($bounds, lambda bound: bound <= duration)) AS bucket,
    count(*) AS count, count(*) FILTER (failed) AS failed, arg_max(trace_id, (failed, duration)) AS trace_id
FROM ({CALLS}) GROUP BY ALL
"""
EDGES = f"""
SELECT
    caller, service, count(*) AS count, count(*) FILTER (failed) AS failed, quantile_cont(duration, 0.5) AS median,
    quantile_cont(duration, 0.95) AS p95, arg_max(trace_id, duration) AS trace_id
FROM ({CALLS} UNION ALL {QUERIES}) GROUP BY caller, service
"""
MATCHING = """
FROM logs
WHERE ($service = '' OR service = $service)
    AND ($level = '' OR level = $level)
    AND ($trace_id = '' OR starts_with(trace_id, $trace_id))
    AND ($span_id = '' OR starts_with(span_id, $span_id))
    AND ($text = '' OR contains(lower(line), lower($text)))
    AND ($without = '' OR NOT contains(line, $without))
    AND ($since = '' OR time >= $since)
    AND ($until = '' OR time < $until)
"""
LOGS = f"SELECT line, service, level {MATCHING} {{filters}} ORDER BY time DESC LIMIT $limit"
VOLUME = f"""
SELECT epoch_ms(TRY_CAST(time AS TIMESTAMP)) // $step * $step AS start, level, count(*) AS count
{MATCHING} {{filters}} AND TRY_CAST(time AS TIMESTAMP) IS NOT NULL GROUP BY ALL
"""
