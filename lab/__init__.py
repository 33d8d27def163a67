"""The ``dicelab`` command: starts the lab, asks it and stops it. Imports none of its services."""


class LabError(Exception):
    """Something the user can mend; its text is one line that says what."""


class InputError(LabError):
    """The user asked for something that makes no sense here; the command ends with exit status 2."""
