"""The ``dicelab`` command: starts, inspects and stops a lab. It imports none of the services."""


class LabError(Exception):
    """An error that the user can fix; its text explains it in one line."""


class InputError(LabError):
    """The user's input is not valid; the command ends with exit status 2."""
