"""The exceptions that are not bugs: a command prints them in one line, and any other with its traceback."""


class DogeExportError(Exception):
    """A mistake of the user; the one-line message says what was seen, what was expected and what to do. Exit code 2."""

    exit_code = 2


class RunFailed(DogeExportError):
    """A failure of the run or the validation although the request was right. Exit code 1."""

    exit_code = 1


class TooLong(DogeExportError):
    """A mistake of the user: a text or a conversation that is longer than the export holds."""
