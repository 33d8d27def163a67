"""Tests of ``otel.fast`` alone: its encoders, caches and queues."""
