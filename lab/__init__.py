"""The ``dicelab`` command: starts, inspects and stops a lab. It imports none of the services."""


class LabError(Exception):
    """An error that the user can fix; the text is one line that explains it."""


class InputError(LabError):
    """The user's input is not valid; the command ends with exit status 2."""
