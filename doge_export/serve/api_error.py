"""Errors in OpenAI's form."""

from __future__ import annotations

import logging
from typing import Any

from doge_export.errors import DogeExportError, RunFailed, TooLong

_log = logging.getLogger("doge_export.serve")


class ApiError(Exception):
    """An answer to a request that is refused, or that failed.

    Args:
        status: HTTP status.
        message: one line: seen, expected, what to do.
        code: OpenAI's word for the mistake; None without one.
        param: field of the request that is wrong; None where it is none.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON object that the client gets."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}}


def api_error(error: BaseException, prompt: str | None = None) -> ApiError:
    """Return the answer for an exception; that of a bug says nothing of its inside.

    Args:
        error: the exception.
        prompt: field of the request that holds its text.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TooLong) or isinstance(error.__cause__, TooLong):
        return ApiError(400, str(error), "context_length_exceeded", prompt)
    if isinstance(error, RunFailed):
        return ApiError(500, str(error))
    if isinstance(error, DogeExportError):
        return ApiError(400, str(error))
    return ApiError(500, "the server failed on this request; its log tells more")


def log_bug(error: BaseException) -> None:
    """Write the traceback of an exception that no client is to blame for to the server's log."""
    if api_error(error).status == 500:
        _log.error("a request failed: %s", error, exc_info=error)


def out_of_time(seconds: float) -> ApiError:
    """Return the answer to a request that takes too long."""
    return ApiError(504, f"the answer took more than {seconds:g} s", "timeout")
