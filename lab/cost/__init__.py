"""``dicelab cost``: how many bytes and series telemetry takes, how much of it no query uses, and how to save."""
