"""The ``dicelab`` command: starts, inspects and stops a lab. It imports none of the services."""


class LabError(Exception):
    """An error that the user can fix; its text explains it in one line."""


class InputError(LabError):
    """The user's input is not valid; the command ends with exit status 2."""


def error_text(error: BaseException) -> str:
    """The text of an error in a message; a time-out has none of its own."""
    return str(error) or ("no response in time" if isinstance(error, TimeoutError) else type(error).__name__)
