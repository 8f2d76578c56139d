"""Typed reading of JSON objects: a value of the wrong type or range gives a one-line error that names its key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from doge_export.errors import DogeExportError

REQUIRED: Any = object()
"""Default of a key that must be present."""

_INT32_MAX = 2**31 - 1


def shown(value: Any) -> str:
    """Return a value as JSON text, cut to 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Fields:
    """The values of one JSON object, and its name in error messages.

    Every getter returns the default if the key is missing. It raises DogeExportError if the value has another type
    (null included) or is out of range, or if the key is missing and the default is `REQUIRED`.
    """

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self.values = values
        self.name = name

    def fail(self, key: str, expected: str) -> DogeExportError:
        """Return the error for a value that is present but wrong; the caller raises it."""
        return DogeExportError(f"{self.name}: {key} is {shown(self.values[key])}, expected {expected}")

    def _get(self, key: str, default: Any) -> Any:
        if key not in self.values and default is REQUIRED:
            raise DogeExportError(f"{self.name} has no {key}: not a complete Doge config")
        return self.values.get(key, default)

    def integer(self, key: str, default: int = REQUIRED, *, minimum: int = 1, maximum: int = _INT32_MAX) -> int:
        """Return an integer from `minimum` to `maximum`; true, false and 2.0 are not integers."""
        value = self._get(key, default)
        if type(value) is not int or not minimum <= value <= maximum:
            limit = f"an integer of at least {minimum}" if maximum == _INT32_MAX else f"an integer {minimum}..{maximum}"
            raise self.fail(key, limit)
        return value

    def number(self, key: str, default: float = REQUIRED, *, above: float = 0.0, inclusive: bool = False) -> float:
        """Return a finite number greater than `above`, or equal to it if `inclusive`."""
        value = self._get(key, default)
        if type(value) in (int, float):
            try:
                number = float(value)
            except OverflowError:  # an integer of more than 308 digits
                number = math.inf
            if math.isfinite(number) and (number > above or (inclusive and number == above)):
                return number
        raise self.fail(key, f"a finite number {'of at least' if inclusive else 'above'} {above:g}")

    def boolean(self, key: str, default: bool = REQUIRED) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if type(value) is not bool:
            raise self.fail(key, "true or false")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """Return a required list of `length` finite numbers above zero."""
        value = self._get(key, REQUIRED)
        if not isinstance(value, (list, tuple)) or len(value) != length:
            seen = f"{len(value)} values" if isinstance(value, (list, tuple)) else shown(value)
            raise DogeExportError(f"{self.name}: {key} has {seen}, expected a list of {length} numbers (head_dim / 2)")
        items = Fields({f"{key}[{index}]": item for index, item in enumerate(value)}, self.name)
        return tuple(items.number(name) for name in items.values)
