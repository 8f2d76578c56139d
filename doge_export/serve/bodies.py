"""Objects that OpenAI's API answers with."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from doge_export.serve.requests import Request
from doge_export.serve.tool_calls import ToolCalls, tool_names

if TYPE_CHECKING:
    from doge_export.runtime.generate import Row

_encode = json.JSONEncoder(ensure_ascii=False).encode
_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


def dumped(value: Any) -> bytes:
    """Return JSON; a lone surrogate, which UTF-8 cannot say, is escaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def usage(rows: Sequence[Row], n: int) -> dict[str, int]:
    """Return the numbers of tokens; a prompt with several answers counts once."""
    read = sum(len(row.prompt_token_ids) for row in rows[::n])
    written = sum(len(row.token_ids) for row in rows)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Bodies:
    """The answer to one request, whole or in chunks."""

    def __init__(self, request: Request) -> None:
        self._chat = request.is_chat
        kind, self._prefix = ("chat.completion", "chatcmpl-") if request.is_chat else ("text_completion", "cmpl-")
        self._head = {"id": self._prefix + uuid.uuid4().hex, "object": kind, "created": int(time.time())}
        self._head |= {"model": request.model}
        self._include_usage = request.include_usage
        self._names = tool_names(request.tools)
        self._calls: dict[int, ToolCalls] = {}  # by answer

    def whole(self, rows: Sequence[Row], records: Sequence[list[Any]], n: int, logprobs: bool) -> dict[str, Any]:
        """Return the answers as one object."""
        choices = []
        for index, row in enumerate(rows):
            text = "".join(row.pieces)
            said: dict[str, Any] = {"text": text}
            if self._chat:
                message = self._said(index, text, is_last=True)
                content = message.get("content") or (None if "tool_calls" in message else "")
                said = {"message": {"role": "assistant", **message, "content": content}}
            choices.append(self._choice(index, said, records[index] if logprobs else None, row.finish_reason))
        return {**self._head, "choices": choices, "usage": usage(rows, n)}

    def beginning(self, index: int) -> dict[str, Any]:
        """Return the part that begins a chat's message."""
        return self._chunk([self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None)])

    def chunk(self, index: int, text: str, records: list[Any] | None, reason: str | None) -> dict[str, Any] | None:
        """Return a part of an answer; None if it says nothing yet."""
        delta = self._said(index, text, reason is not None) if self._chat else {}
        if not (delta if self._chat else text) and records is None and reason is None:
            return None
        said: dict[str, Any] = {"delta": delta} if self._chat else {"text": text}
        return self._chunk([self._choice(index, said, records, reason)])

    def _said(self, index: int, text: str, is_last: bool) -> dict[str, Any]:
        """Return the content and the calls that a part of a chat's answer adds, without those that are empty."""
        if not self._names:
            return {"content": text} if text else {}
        reader = self._calls.setdefault(index, ToolCalls(self._names))
        first = reader.count
        content, calls = reader.push(text, is_last)
        said: dict[str, Any] = {"content": content} if content else {}
        if calls:
            said["tool_calls"] = [{"index": first + at, **call} for at, call in enumerate(calls)]
        return said

    def last(self, rows: Sequence[Row], n: int) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens."""
        return {**self._chunk([]), "usage": usage(rows, n)}

    def _chunk(self, choices: list[Any]) -> dict[str, Any]:
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        return {**head, "choices": choices, **({"usage": None} if self._include_usage else {})}

    def _choice(self, index: int, said: dict[str, Any], records: list[Any] | None, reason: Any) -> dict[str, Any]:
        told = None if records is None else {"content": records} if self._chat else _as_lists(records)
        why = _REASONS.get(reason)
        if why == "stop" and index in self._calls and self._calls[index].count:
            why = "tool_calls"
        return {"index": index, **said, "logprobs": told, "finish_reason": why}


def _as_lists(records: list[Any]) -> dict[str, Any]:
    """Return log-probabilities in the form of /v1/completions."""
    return {
        "tokens": [record["token"] for record in records],
        "token_logprobs": [record["logprob"] for record in records],
        "top_logprobs": [{top["token"]: top["logprob"] for top in record["top_logprobs"]} for record in records],
    }
