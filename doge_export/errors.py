"""The two ways a command can fail that are not bugs; anything else keeps its traceback."""


class DogeExportError(Exception):
    """A user's mistake, told in one line: what was seen, what was expected, what to do. Exit code 2."""

    exit_code = 2


class RunFailed(DogeExportError):
    """The request was sound, but the run or the validation failed. Exit code 1."""

    exit_code = 1
