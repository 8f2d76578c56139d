"""Answers that follow a JSON schema: a logits processor that forbids every token the schema does not allow.

llguidance, of the extra `structured`, compiles the schema and computes the tokens.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError, RunFailed
from doge_export.installing import need
from doge_export.runtime.logits_processors import Ids, Processor, Scores
from doge_export.runtime.tokenizer import Tokenizer

_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write each value: small models fill free white space without end."""

_tokenizers: weakref.WeakKeyDictionary[Tokenizer, dict[Any, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def schema_of(json_schema: Any, response_format: Any) -> Any:
    """Return the schema that a call asks for; None for a free text.

    Args:
        json_schema: a schema as a dict or its JSON text.
        response_format: {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "json_schema":
            {"schema": SCHEMA}}, as other servers take it.

    Raises:
        DogeExportError: both are given, or one is something else.
    """
    if response_format is not None:
        if json_schema is not None:
            raise DogeExportError("json_schema and response_format say the same: give one of them")
        kind = response_format.get("type") if isinstance(response_format, Mapping) else None
        if kind == "text":
            return None
        if kind == "json_object":
            return {"type": "object"}
        inner = response_format.get("json_schema") if kind == "json_schema" else None
        json_schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if json_schema is None:
            raise DogeExportError(
                f"response_format is {str(response_format)[:80]}, expected a dict with type text, json_object, or "
                "json_schema with json_schema.schema"
            )
    if isinstance(json_schema, str):
        try:
            json_schema = json.loads(json_schema)
        except (ValueError, RecursionError) as error:
            raise DogeExportError(f"json_schema is not JSON: {error}") from error
    if json_schema is not None and not isinstance(json_schema, (Mapping, bool)):
        raise DogeExportError(f"json_schema is {str(json_schema)[:80]!r}, expected a JSON schema: a dict")
    return json_schema


def grammar_of(schema: Any) -> str:
    """Compile a schema.

    Raises:
        DogeExportError: llguidance is not installed, or does not take the schema.
    """
    need("structured", "llguidance")
    from llguidance import LLMatcher

    try:
        grammar: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_COMPACT)
    except (ValueError, TypeError, RecursionError) as error:
        raise DogeExportError(f"json_schema cannot be used: {' '.join(str(error).split())}") from error
    return grammar


def follow(grammar: str, tokenizer: Tokenizer, eos: Sequence[int], vocab_size: int, prompt_length: int) -> Processor:
    """Return a processor that lets only tokens through with which the answer goes on, or ends, as the grammar says.

    Args:
        grammar: of `grammar_of`.
        tokenizer: of the model.
        eos: ids that end the answer.
        vocab_size: number of logits.
        prompt_length: ids of the prompt, which stand before the answer.

    Raises:
        DogeExportError: there is no eos token, or the schema is refused.
    """
    from llguidance import LLMatcher

    if not eos:
        raise DogeExportError("an answer by a JSON schema ends with an eos token, and there is none: drop eos_token_id")
    matcher = LLMatcher(_wrapped(tokenizer, tuple(eos), vocab_size), grammar)
    if matcher.is_error():
        raise DogeExportError(f"json_schema cannot be used: {' '.join(matcher.get_error().split())}")
    read = prompt_length

    def process(ids: Ids, scores: Scores) -> Scores:
        nonlocal read
        new = [int(token) for token in ids[read:]]
        read = len(ids)
        if new and not matcher.consume_tokens(new):
            raise RunFailed(f"the answer left its JSON schema: {matcher.get_error() or 'no token is allowed'}")
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.zeros(len(scores), bool)
        allowed[: min(len(bits), len(scores))] = bits[: len(scores)]
        return np.where(allowed, scores, np.float32(-np.inf))

    return process


def _wrapped(tokenizer: Tokenizer, eos: tuple[int, ...], vocab_size: int) -> Any:
    """Return llguidance's tokenizer, which is made once for each tokenizer."""
    from llguidance import LLTokenizer

    with _lock:
        made = _tokenizers.setdefault(tokenizer, {})
        if (eos, vocab_size) not in made:
            count = max(vocab_size, tokenizer.backend.get_vocab_size(with_added_tokens=True))
            made[eos, vocab_size] = LLTokenizer(tokenizer.backend.to_str(), n_vocab=count, eos_token=list(eos))
        return made[eos, vocab_size]
