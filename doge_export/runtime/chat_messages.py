"""Conversations as plain data, in the form in which transformers hands them to a chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which APIs give the reasoning of a message; templates read the first, or the second."""


def plain_data(value: Any) -> Any:
    """Rebuild a value from None, bool, int, float, str, list, tuple and dict.

    A template calls the methods of what it is given, and some write files (`numpy.ndarray.tofile`, `Path.write_text`).
    Dataclasses and pydantic models become dicts, NumPy's numbers become Python's, and anything else becomes a text
    with the name of its type, as in transformers.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # a subclass may have methods of its own; the kind's own conversion calls none
            return kind.__str__(value) if kind is str else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain_data(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_data(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain_data(item) for item in value)
    if isinstance(value, np.generic):
        return plain_data(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return plain_data(value.model_dump())
    return f"<{type(value).__name__}>"


def is_message(value: Any) -> bool:
    """Return whether `value` can be a message: a dict, a dataclass or a pydantic model."""
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return isinstance(value, Mapping) or is_dataclass or callable(getattr(value, "model_dump", None))


def conversation(messages: Any) -> list[dict[str, Any]]:
    """Return the messages of a conversation as plain dicts, without fields that are None.

    Args:
        messages: messages as `is_message` describes them, or an object that has them as `messages`.

    Raises:
        DogeExportError: there is no message, or one is no message, has no role, or is nested too deeply.
    """
    messages = getattr(messages, "messages", messages)
    if not isinstance(messages, Sequence) or not messages:
        raise DogeExportError("the conversation is empty: give at least one message")
    found = []
    for message in messages:
        values = data_of(message) if is_message(message) else None
        if not isinstance(values, dict) or not isinstance(values.get("role"), str):
            raise DogeExportError(f'a chat message is a dict with "role" and "content", not {_shown(message)}')
        found.append({name: value for name, value in values.items() if value is not None})
    return found


def data_of(value: Any) -> Any:
    """Return `plain_data` of a value of the caller's.

    Raises:
        DogeExportError: it is nested too deeply, or within itself.
    """
    try:
        return plain_data(value)
    except RecursionError as error:
        raise DogeExportError("a value for the chat template is nested too deeply: give less deep data") from error


def checked_tools(tools: Any) -> list[Any] | None:
    """Return the JSON schemas of functions as plain dicts.

    Raises:
        DogeExportError: they are no list of dicts.
    """
    return _dicts(tools, "tools", "JSON schemas (transformers.utils.get_json_schema makes one of a function)")


def checked_documents(documents: Any) -> list[Any] | None:
    """Return documents as plain dicts.

    Raises:
        DogeExportError: they are no list of dicts.
    """
    return _dicts(documents, "documents", 'dicts with "title" and "text"')


def _dicts(values: Any, name: str, expected: str) -> list[Any] | None:
    if values is None:
        return None
    if not isinstance(values, Sequence) or not all(isinstance(value, Mapping) for value in values):
        raise DogeExportError(f"{name} is {_shown(values)}, expected a list of {expected}")
    return [data_of(value) for value in values]


def with_reasoning(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the reasoning of each message under the names that templates read."""
    found = []
    for message in messages:
        reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        found.append(message)
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
