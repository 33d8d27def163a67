"""Telemetry with the standard packages, as their documentation shows them; made to be read and copied.

``traces``: resource, provider, processor, exporter, instrumentors. ``logs``: ``logging`` with a JSON formatter.
``metrics``: ``prometheus_client``. What the OpenTelemetry SDK lacks for this lab is in ``export``.
"""
