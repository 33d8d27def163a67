"""The content of each stage as data: the feature matrix and the names behind it.

The marks of a row are stages 1 to 6: ``x`` for present, ``-`` for absent.
"""

from __future__ import annotations

STAGES = range(1, 7)

FEATURES = {
    # services
    "dice roller": "xxxxxx",
    "frontend": "-xxxxx",
    "die service": "--xxxx",
    "postgres": "----xx",
    # endpoints
    "GET /roll": "xxxxxx",
    "GET /roll-async": "---xxx",
    "GET /dice": "--xxxx",
    # metrics
    "automatic http metrics": "xxxxxx",
    "custom business metrics": "xxxxxx",
    "service-to-service metrics": "--xxxx",
    "database metrics": "----xx",
    "async operation metrics": "---xxx",
    # logs
    "structured json logs": "xxxxxx",
    "trace context in logs": "xxxxxx",
    "usage tracking logs": "-----x",
    # traces
    "automatic instrumentation": "xxxxxx",
    "trace context propagation": "-xxxxx",
    "distributed traces": "-xxxxx",
    "parent and child spans": "---xxx",
    "concurrent operation traces": "---xxx",
    "database query spans": "----xx",
}


def has(feature: str, stage: int) -> bool:
    return FEATURES[feature][stage - 1] == "x"


def spans_of(stage: int, batch: int | None = None, die_is_known: bool = True) -> int:
    """The number of spans of a roll, or of a batch of ``batch`` rolls."""
    frontend = 3 if has("frontend", stage) else 0
    dice = (2 if has("GET /dice", stage) else 0) + (1 if has("database query spans", stage) else 0)
    rolling = 0 if batch is None else 1 + (1 + batch if die_is_known else 0)
    return frontend + 1 + dice + rolling


# (first stage, service, family, type, labels)
METRICS = [
    (1, "dice-roller", "dice_rolls", "counter", {"die_type", "result"}),
    (1, "dice-roller", "dice_roll_value", "histogram", {"die_type"}),
    (1, "dice-roller", "roll_requests", "counter", {"outcome"}),
    (1, "dice-roller", "roll_request_duration_seconds", "histogram", {"outcome"}),
    (2, "frontend", "streamlit_button_clicks", "counter", {"die_type"}),
    (2, "frontend", "streamlit_requests", "counter", {"die_type", "status_code"}),
    (2, "frontend", "streamlit_request_duration_seconds", "histogram", {"die_type"}),
    (2, "frontend", "roll_requests", "counter", {"outcome"}),
    (2, "frontend", "roll_request_duration_seconds", "histogram", {"outcome"}),
    (3, "die-service", "die_specifications_requested", "counter", {"identifier"}),
    (3, "die-service", "die_list_requests", "counter", set()),
    (3, "die-service", "die_specifications_loaded", "gauge", set()),
    (3, "dice-roller", "die_service_requests", "counter", {"identifier", "status"}),
    (3, "dice-roller", "die_service_request_duration_seconds", "histogram", set()),
    (4, "dice-roller", "async_rolls", "counter", {"die_type", "result"}),
    (4, "dice-roller", "async_roll_batch_size", "histogram", set()),
    (4, "dice-roller", "async_roll_duration_seconds", "histogram", set()),
    (4, "dice-roller", "async_rolls_in_progress", "gauge", set()),
    (4, "frontend", "async_roll_requests", "counter", {"batch_size"}),
    (5, "die-service", "database_queries", "counter", {"query_type", "result"}),
    (5, "die-service", "database_query_duration_seconds", "histogram", {"query_type"}),
    (5, "die-service", "database_connection_pool_size", "gauge", set()),
    (5, "die-service", "database_connection_pool_available", "gauge", set()),
]
COMMON_METRICS = [
    ("http_requests", "counter", {"handler", "method", "status"}),
    ("http_request_duration_seconds", "histogram", {"handler", "method"}),
    ("http_requests_in_flight", "gauge", set()),
    ("event_loop_lag_seconds", "histogram", set()),
    ("telemetry_dropped", "counter", {"signal"}),
    ("dicelab_build_info", "gauge", {"version", "python_version"}),
    ("dicelab_traffic_expected", "gauge", set()),
]

# (first stage, field, type)
LOG_FIELDS = [
    (1, "die_type", str),
    (1, "roll_value", int),
    (2, "backend_status", int),
    (2, "backend_url", str),
    (3, "die_identifier", str),
    (3, "die_found", bool),
    (4, "async_batch_size", int),
    (4, "async_roll_index", int),
    (4, "async_total_result", int),
    (5, "db_query_type", str),
    (5, "db_query_duration_ms", float),
    (5, "db_result_count", int),
    (6, "usage", bool),
    (6, "event_type", str),
    (6, "session_id", str),
    (6, "username", str),
]

# (first stage, service, level, message): the events in a stage's log after all of its features were used.
LOG_EVENTS = [
    (1, "dice-roller", "INFO", "Dice roller started"),
    (1, "dice-roller", "INFO", "Roll requested"),
    (1, "dice-roller", "INFO", "Roll completed"),
    (1, "dice-roller", "ERROR", "Roll failed"),
    (1, "dice-roller", "WARNING", "Unknown die"),
    (2, "frontend", "INFO", "Frontend started"),
    (2, "frontend", "INFO", "Button clicked"),
    (2, "frontend", "INFO", "Backend answered"),
    (2, "frontend", "ERROR", "Backend failed"),
    (3, "dice-roller", "INFO", "Querying die service"),
    (3, "dice-roller", "WARNING", "Die service error"),
    (3, "die-service", "INFO", "Die service started with 3 dice"),
    (3, "die-service", "INFO", "Dice list requested"),
    (3, "die-service", "INFO", "Die requested"),
    (3, "die-service", "WARNING", "Unknown die"),
    (3, "frontend", "INFO", "Die list fetched: 3 dice"),
    (4, "dice-roller", "INFO", "Batch started"),
    (4, "dice-roller", "INFO", "Roll of a batch completed"),
    (4, "dice-roller", "INFO", "Batch completed"),
    (4, "dice-roller", "ERROR", "Batch failed"),
    (4, "frontend", "INFO", "Async roll requested"),
    (5, "die-service", "INFO", "Database connected"),
    (5, "die-service", "INFO", "Database seeded"),
    (5, "die-service", "INFO", "Query executed"),
    (6, "frontend", "INFO", "Usage: sign_in"),
    (6, "frontend", "INFO", "Usage: roll"),
    (6, "frontend", "INFO", "Usage: sign_out"),
]
