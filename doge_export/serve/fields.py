"""Checked reading of a request's JSON object."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from doge_export.serve.api_error import ApiError

IGNORED = ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
"""Fields of OpenAI's API that change nothing here."""


class Fields:
    """Fields of a request; `finish` refuses those that nobody read, so that a misspelt one does not pass in silence.

    Raises:
        ApiError: a field is of another type or out of range.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, Mapping):
            raise ApiError(400, f"the body is a {type(body).__name__}, expected a JSON object")
        self._values = {name: value for name, value in body.items() if value is not None}
        self._read = set(IGNORED)

    def any(self, name: str) -> Any:
        """Return a value of any type; None where it is not given."""
        self._read.add(name)
        return self._values.get(name)

    def of(self, kind: type | tuple[type, ...], name: str, expected: str) -> Any:
        """Return a value of a type."""
        value = self.any(name)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ApiError(400, f"{name} is {str(value)[:80]!r}, expected {expected}", "invalid_type", name)
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return an integer from `low` to `high`."""
        value = self.of(int, name, "an integer")
        if value is not None and not low <= value <= high:
            raise ApiError(400, f"{name} is {str(value)[:20]}, expected {low} to {high}", "invalid_value", name)
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a finite number from `low` to `high`."""
        value = self.of((int, float), name, "a number")
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            raise ApiError(400, f"{name} is {str(value)[:20]}, expected {low} to {high}", "invalid_value", name)
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse a field that this server has only in some values."""
        value = self.any(name)
        if value is not None and value not in allowed:
            raise ApiError(400, f"{name} is not supported here: leave it out", "unsupported_parameter", name)

    def model(self) -> str:
        """Return the name of the model, which every request has."""
        name = self.of(str, "model", "the name of a model")
        if name is None:
            raise ApiError(400, "model is missing: give the name that /v1/models lists", "invalid_value", "model")
        return str(name)

    def finish(self) -> None:
        """Refuse the fields that nobody read."""
        unknown = sorted(self._values.keys() - self._read)
        if unknown:
            raise ApiError(
                400, f"unknown field {unknown[0][:80]!r}: leave it out", "unknown_parameter", unknown[0][:80]
            )
