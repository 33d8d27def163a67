"""The view of log lines."""
