"""Telemetry shared by every service: JSON logs, traces and HTTP metrics."""
