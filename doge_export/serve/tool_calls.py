"""Calls of functions in a model's text, as most chat templates teach them: <tool_call>{"name": ...}</tool_call>."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from typing import Any

from doge_export.serve.api_error import ApiError

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def tool_names(tools: list[Any] | None) -> frozenset[str]:
    """Return the names of declared functions; other tools have none."""
    functions = [tool.get("function") for tool in tools or [] if isinstance(tool, dict)]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return frozenset(name for name in names if isinstance(name, str))


def with_objects(message: Any) -> Any:
    """Return a message whose calls have their arguments as objects, which chat templates write, not as JSON texts.

    Raises:
        ApiError: the calls are not in OpenAI's form.
    """
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if calls is None:
        return message
    try:
        functions = [{**call["function"], "arguments": _object(call["function"]["arguments"])} for call in calls]
        return {**message, "tool_calls": [{**a, "function": b} for a, b in zip(calls, functions, strict=True)]}
    except (KeyError, TypeError, ValueError, RecursionError):
        expected = "tool_calls of a message are not functions with a name and arguments, a JSON text of an object"
        raise ApiError(400, expected, "invalid_value", "messages") from None


def _object(arguments: Any) -> dict[str, Any]:
    # Some clients send back a call without arguments with an empty text.
    value = json.loads(arguments or "{}", parse_constant=_refused) if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


class ToolCalls:
    """Splits a text that comes in pieces into what is said and what is called.

    What is no call of a declared function stays text. White space around calls is dropped.

    Args:
        names: the declared functions.

    Attributes:
        count: calls so far.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._held, self.count = names, "", 0

    def push(self, piece: str, is_last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """Return the text and the calls that have become certain."""
        text, calls = "", []
        self._held += piece
        while (start := self._held.find(OPEN)) >= 0 and (end := self._held.find(CLOSE, start)) >= 0:
            call = self._call(self._held[start + len(OPEN) : end])
            before, whole = self._held[:start], self._held[start : end + len(CLOSE)]
            self._held = self._held[end + len(CLOSE) :]
            if call is None:
                text += self._said(before + whole)
            else:
                text += self._said(before.rstrip())
                calls.append(call)
        cut = len(self._held) if is_last else _certain(self._held)
        said, self._held = self._held[:cut], self._held[cut:]
        return text + self._said(said.rstrip() if is_last and self.count else said), calls

    def _said(self, text: str) -> str:
        return text.lstrip() if self.count else text

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            value = json.loads(text, parse_constant=_refused)
            name, arguments = value["name"], _object(value.get("arguments") or {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        if not isinstance(name, str) or name not in self._names:
            return None
        self.count += 1
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _certain(text: str) -> int:
    """Return how much of a text belongs to no call: all before a tag, what may become one, and white space there."""
    start = text.find(OPEN)
    if start < 0:
        possible = range(max(0, len(text) - len(OPEN)), len(text))
        start = next((at for at in possible if OPEN.startswith(text[at:])), len(text))
    return len(text[:start].rstrip())
