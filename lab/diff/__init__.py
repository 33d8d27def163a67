"""``dicelab diff A B``: shows what changed between two stages, derived from the stages themselves.

The settings come from the stages' env files, and the panels from their dashboards. For the rest, the command starts
both stages, uses every feature of each, stops them, and compares their OpenAPI documents, ``/metrics``, log lines and
spans.
"""
