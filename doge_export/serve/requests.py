"""Requests of OpenAI's API, checked and turned into the runtime's words."""

from __future__ import annotations

import dataclasses
from typing import Any

from doge_export.serve.api_error import ApiError
from doge_export.serve.fields import Fields
from doge_export.serve.messages import checked_message, checked_tools

LARGEST = 2**31 - 1
_MOST_STOPS = 16
_FEW, _SHORT = 4, 1000
"""Answers (and biases), and characters or token ids, of a request that is checked in about a millisecond at most."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for text.

    Attributes:
        model: name of the model.
        prompts: texts or token ids; for a chat the one list of messages.
        is_chat: the prompt is a conversation.
        tools: JSON schemas of functions, for the chat template; None without.
        settings: keywords of `Session.rows`.
        n: answers to each prompt.
        stream: send the text as it comes.
        include_usage: end a stream with the numbers of tokens.
        logprobs: number of the likeliest tokens to tell beside each chosen one; None for no log-probabilities.
    """

    model: str
    prompts: list[Any]
    is_chat: bool
    tools: list[Any] | None
    settings: dict[str, Any]
    n: int
    stream: bool
    include_usage: bool
    logprobs: int | None

    @property
    def is_short(self) -> bool:
        """True if another thread would take longer to begin than this request is checked: a few short texts."""
        stop, bias = self.settings["stop"] or (), self.settings["sequence_bias"] or ()
        is_plain = not self.is_chat and self.settings["response_format"] is None and len(bias) <= _FEW
        texts = [*self.prompts, *([stop] if isinstance(stop, str) else stop)]
        return is_plain and len(self.prompts) * self.n <= _FEW and sum(map(len, texts)) <= _SHORT


def chat_request(body: Any) -> Request:
    """Read a body of /v1/chat/completions."""
    fields = Fields(body)
    messages = fields.of(list, "messages", "a list of messages")
    if not messages:
        raise ApiError(400, "messages is missing or empty: give at least one message", "invalid_value", "messages")
    tools = checked_tools(fields.of(list, "tools", "a list of functions"))
    if fields.any("tool_choice") == "none":
        tools = None
    fields.only("tool_choice", "auto", "none")
    wanted = fields.of(bool, "logprobs", "true or false")
    top = fields.integer("top_logprobs", 0, 20)
    if top is not None and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", "top_logprobs")
    most = fields.integer("max_completion_tokens", 1, LARGEST)
    return _request(
        fields, [[checked_message(each) for each in messages]], True, tools, (top or 0) if wanted else None, most
    )


def completion_request(body: Any) -> Request:
    """Read a body of /v1/completions."""
    fields = Fields(body)
    prompt = fields.of((str, list), "prompt", "a text, token ids, or a list of those")
    if not prompt:
        raise ApiError(400, "prompt is missing or empty: give at least one character", "invalid_value", "prompt")
    is_batch = isinstance(prompt, list) and isinstance(prompt[0], (str, list))
    prompts = prompt if is_batch else [prompt]
    if not all(isinstance(each, str) or _is_ids(each) for each in prompts):
        raise ApiError(400, "prompt is not a text, token ids, or a list of those", "invalid_type", "prompt")
    fields.only("echo", False)
    fields.only("best_of", 1)
    fields.only("suffix", "")
    return _request(fields, prompts, False, None, fields.integer("logprobs", 0, 20), None)


def _request(
    fields: Fields, prompts: list[Any], is_chat: bool, tools: list[Any] | None, logprobs: int | None, most: int | None
) -> Request:
    model = fields.model()
    stream = fields.of(bool, "stream", "true or false") or False
    include_usage = _includes_usage(fields, stream)
    bias = fields.of(dict, "logit_bias", "an object of token ids and numbers") or {}
    settings = {
        "max_new_tokens": most or fields.integer("max_tokens", 1, LARGEST),
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", 0, LARGEST),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 10),
        "seed": fields.integer("seed", 0, 2**63),
        "stop": _stops(fields),
        "response_format": fields.of(dict, "response_format", "an object"),
        "sequence_bias": [[[int(token)], float(value)] for token, value in bias.items()] if _is_bias(bias) else None,
    }
    fields.any("max_tokens")
    fields.only("presence_penalty", 0)
    fields.only("frequency_penalty", 0)
    n = fields.integer("n", 1, 16) or 1
    fields.finish()
    return Request(model, prompts, is_chat, tools, settings, n, stream, include_usage, logprobs)


def _includes_usage(fields: Fields, stream: bool) -> bool:
    options = fields.of(dict, "stream_options", "an object")
    if options is None:
        return False
    if not stream:
        raise ApiError(400, "stream_options needs stream: true", "invalid_value", "stream_options")
    inner = Fields(options)
    wanted = inner.of(bool, "include_usage", "true or false")
    inner.of(bool, "include_obfuscation", "true or false")  # against listeners on the network: streams are as they are
    inner.finish()
    return bool(wanted)


def _stops(fields: Fields) -> Any:
    stops = fields.of((str, list), "stop", "a text or a list of texts")
    if isinstance(stops, list):
        if not all(isinstance(text, str) and text for text in stops):
            raise ApiError(400, "stop has what is no text, or an empty one", "invalid_type", "stop")
        if len(stops) > _MOST_STOPS:
            raise ApiError(400, f"stop has {len(stops)} texts, expected {_MOST_STOPS} at most", "invalid_value", "stop")
    return stops


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and bool(prompt) and all(type(each) is int for each in prompt)


def _is_bias(bias: dict[str, Any]) -> bool:
    if not all(key.isdecimal() and len(key) < 10 and type(value) in (int, float) for key, value in bias.items()):
        raise ApiError(400, "logit_bias is not an object of token ids and numbers", "invalid_type", "logit_bias")
    if not all(abs(value) <= 100 for value in bias.values()):
        raise ApiError(400, "logit_bias has a number beyond -100 to 100", "invalid_value", "logit_bias")
    return bool(bias)
