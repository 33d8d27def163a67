"""Exercises that are checked against the lab: ``dicelab learn``."""
