"""The dashboards, as code: ``python -m grafana`` writes them to ``grafana/dashboards/``.

``panels.py`` defines the look of each kind of panel. ``stages.py``, ``slo.py``, ``pipeline.py`` and ``executive.py``
define the content, and ``dashboards.py`` puts it together. docs/telemetry.md lists the metrics, fields and spans that
panels name.
"""
