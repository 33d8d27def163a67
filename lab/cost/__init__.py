"""``dicelab cost``: the bytes and series that telemetry takes, what nobody asks for, and what could be saved."""
