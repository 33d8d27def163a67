"""The telemetry explorer: traces, logs and metrics of the lab, in the page beside the dice.

``model`` holds the shapes, ``files`` (with ``index``, its process) and ``engines`` are the two places they come
from, ``metrics`` samples figures, ``waterfall`` and ``charts`` draw, and ``views`` is what the user sees.
"""
