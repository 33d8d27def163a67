"""The telemetry in the page.

Each view is a sub-package: ``trace``, ``logs``, ``metrics``, ``map``, ``recent`` and ``learn``; ``explorer`` composes
them. ``model`` holds the data types. ``sources`` fetches the data: from the run dir's files (by ``index``, the process
that reads them), from Tempo, Loki and Prometheus, or from the services' ``/metrics``.
"""
