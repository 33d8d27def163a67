"""The dashboards, as code: ``python -m grafana`` writes them to ``grafana/dashboards/``.

``panels.py`` is how a panel of each kind looks, ``stages.py`` what the six stages show, ``slo.py`` the
objectives. Panels name metrics, fields and spans that docs/telemetry.md lists.
"""
