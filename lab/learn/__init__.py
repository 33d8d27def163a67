"""Exercises that are checked against the lab: ``dicelab learn``."""

# The actions of ``dicelab learn``: those that only read, and those that use the lab or change the progress.
READING = ("list", "guide", "question", "hint", "solution")
WORKING = ("ask", "answer", "reset")
