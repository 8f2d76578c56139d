"""Whether a call is one that pybind11's bindings take, by the signatures in their docstrings."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

_PARAMETER = re.compile(r"(\w+): (.*?)(?: = .*)?$")


def overloads(function: Any) -> list[list[tuple[str, str, bool]]]:
    """(name, type, has a default) of each parameter, `self` left out, for every overload."""
    name = function.__name__
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", function.__doc__ or "", re.MULTILINE)
    parsed = []
    for text in found:
        if text.startswith("*args"):
            continue
        parameters = []
        for part in _split(text):
            match = _PARAMETER.match(part)
            if match and match[1] != "self":
                parameters.append((match[1], match[2], " = " in part))
        parsed.append(parameters)
    return parsed


def _split(text: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth, last = [], 0, ""
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append(last.strip())
            last = ""
        else:
            last += letter
    return [*parts, last.strip()] if last.strip() else parts


def check_call(real: ModuleType, where: str, function: Any, arguments: tuple[Any, ...]) -> None:
    """Asserts that some overload takes these arguments by position."""
    known = overloads(function)
    assert known, f"{where} has no signature in its docstring"
    assert any(_takes(real, parameters, arguments) for parameters in known), (
        f"{where}{tuple(map(type, arguments))} is none of {known}"
    )


def _takes(real: ModuleType, parameters: list[tuple[str, str, bool]], arguments: tuple[Any, ...]) -> bool:
    least = sum(not default for _, _, default in parameters)
    if not least <= len(arguments) <= len(parameters):
        return False
    return all(_is(real, value, kind) for value, (_, kind, _) in zip(arguments, parameters, strict=False))


def _is(real: ModuleType, value: Any, kind: str) -> bool:
    simple = {"str": str, "bool": bool, "tuple": tuple, "list": list, "typing.SupportsInt": int}
    if kind in simple:
        return isinstance(value, simple[kind])
    if kind == "typing_extensions.Buffer":
        return isinstance(value, (bytes, bytearray, memoryview))
    name = re.split(r"\.|::", kind)[-1]
    if name == "Dims":
        return isinstance(value, (tuple, list)) and all(isinstance(size, int) for size in value)
    if hasattr(value, "_kind"):  # an object that the recorder handed out
        return value._kind == name
    known = getattr(real, name, None)
    return known is not None and isinstance(value, known)
