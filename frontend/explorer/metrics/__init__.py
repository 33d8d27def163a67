"""The view of metrics: figures, charts, objectives, alerts and cost."""
