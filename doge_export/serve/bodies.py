"""Objects that OpenAI's API answers with."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from doge_export.serve.requests import Request

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

    def whole(self, rows: Sequence[Row], records: Sequence[list[Any]], n: int, logprobs: bool) -> dict[str, Any]:
        """Return the answers as one object."""
        choices = []
        for index, row in enumerate(rows):
            text = "".join(row.pieces)
            said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append(self._choice(index, said, records[index] if logprobs else None, row.finish_reason))
        return {**self._head, "choices": choices, "usage": usage(rows, n)}

    def chunk(self, index: int, text: str | None, records: list[Any] | None, reason: str | None) -> dict[str, Any]:
        """Return a part of an answer; a text of None begins a chat's message."""
        delta = {"role": "assistant", "content": ""} if text is None else {"content": text} if text else {}
        said: dict[str, Any] = {"delta": delta} if self._chat else {"text": text or ""}
        return self._chunk([self._choice(index, said, records, reason)])

    def last(self, rows: Sequence[Row], n: int) -> dict[str, Any]:
        """Return the chunk with the numbers of tokens."""
        return {**self._chunk([]), "usage": usage(rows, n)}

    def _chunk(self, choices: list[Any]) -> dict[str, Any]:
        head = {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}
        return {**head, "choices": choices, **({"usage": None} if self._include_usage else {})}

    def _choice(self, index: int, said: dict[str, Any], records: list[Any] | None, reason: Any) -> dict[str, Any]:
        told = None if records is None else {"content": records} if self._chat else _as_lists(records)
        return {"index": index, **said, "logprobs": told, "finish_reason": _REASONS.get(reason)}


def _as_lists(records: list[Any]) -> dict[str, Any]:
    """Return log-probabilities in the form of /v1/completions."""
    return {
        "tokens": [record["token"] for record in records],
        "token_logprobs": [record["logprob"] for record in records],
        "top_logprobs": [{top["token"]: top["logprob"] for top in record["top_logprobs"]} for record in records],
    }
