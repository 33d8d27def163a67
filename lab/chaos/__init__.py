"""Experiments: break a running lab in one way, and check what the telemetry shows."""
