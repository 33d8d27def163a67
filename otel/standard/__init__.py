"""Telemetry with the standard packages, as their documentation shows them, to be read and copied.

Read these three: ``traces`` (resource, provider, processor, exporters, instrumentors), ``logs`` (``logging`` with a
JSON formatter) and ``metrics`` (``prometheus_client``). The other modules add what the packages lack for this lab, each
by a public extension point: ``processor``, ``exporters``, ``files``, ``session`` and ``hooks`` to the OpenTelemetry
SDK, ``stdout`` and ``lines`` to ``logging``, ``dropped`` to the metrics.
"""
