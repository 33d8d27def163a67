"""The ``dicelab`` command: starts the lab, asks it and stops it. Imports none of its services."""


class LabError(Exception):
    """Something the user can mend; its text is one line that says what."""
