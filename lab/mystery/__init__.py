"""``dicelab mystery``: a game that breaks a running lab; the player finds the fault in the telemetry."""
