"""Messages and tools of a chat, checked, since chat templates write whatever they are given."""

from __future__ import annotations

from typing import Any

from doge_export.serve.api_error import ApiError
from doge_export.serve.tool_calls import with_objects

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def checked_message(message: Any) -> Any:
    """Return a message with the parts of its content joined to the one text that chat templates read.

    Raises:
        ApiError: it has no role or another one, or its content is no text.
    """
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong("a message is not an object with a role and content")
    if message["role"] not in ROLES:
        raise _wrong(f"the role of a message is {message['role'][:40]!r}, expected one of {', '.join(ROLES)}")
    message, content = with_objects(message), message.get("content")
    calls = message["role"] == "assistant" and (message.get("tool_calls") or message.get("function_call"))
    if isinstance(content, str) or (content is None and calls):
        return message
    if not isinstance(content, list) or not content:
        raise _wrong("the content of a message is no text and no list of parts")
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise _wrong("a part of a message is not a text: this model reads texts alone")
    return {**message, "content": "".join(text for text in texts if text)}


def checked_tools(tools: list[Any] | None) -> list[Any] | None:
    """Return declared functions.

    Raises:
        ApiError: one is something else.
    """
    for tool in tools or []:
        if not _is_function(tool):
            expected = 'expected {"type": "function", "function": {"name": NAME, "parameters": SCHEMA}}'
            raise ApiError(400, f"a tool is no function: {expected}", "invalid_value", "tools")
    return tools


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict | None):
        return False
    name = function.get("name")
    return isinstance(name, str) and bool(name)


def _wrong(message: str) -> ApiError:
    return ApiError(400, message, "invalid_value", "messages")
