"""The telemetry in the page.

A view a sub-package: ``trace``, ``logs``, ``metrics``, ``map`` and ``recent``; ``explorer`` puts them together.
``model`` holds the shapes; ``sources`` are the places that they come from: the run dir's files (with ``index``, the
process that reads them), Tempo and Loki, Prometheus and the services' own pages.
"""
