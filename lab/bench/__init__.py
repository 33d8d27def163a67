"""``dicelab bench``: measures what telemetry costs, compared with the same services without telemetry.

All variants are started together, and one at a time is under load. Each round loads every variant, in a random order.
Ratios compare runs of the same round, so that other work on the machine affects all variants alike. The most reliable
figure is the CPU time of a request: it hardly depends on other work.
"""
