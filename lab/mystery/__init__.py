"""``dicelab mystery``: a running lab is broken in a way that only its telemetry tells."""
