"""Triton's ModelConfig in protobuf's text format: a writer, a reader, and a check against the fields used here.

The table of fields is written by hand after Triton's documentation of model configurations: it has what a repository of
this sample needs, and refuses the rest. Numbers, texts, enumeration values and messages are told apart.
"""

from __future__ import annotations

import re
from typing import Any

DATA_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(string)": "TYPE_STRING",
}
"""Triton's names of onnxruntime's types."""


class Word(str):
    """A value of an enumeration, or true or false, which is written without quotes."""


_SHAPE = {"shape": [int]}
_TENSOR = {"name": str, "data_type": frozenset(DATA_TYPES.values()), "dims": [int], "reshape": _SHAPE}
_GROUP = {"count": int, "kind": frozenset({"KIND_CPU", "KIND_GPU", "KIND_AUTO", "KIND_MODEL"}), "gpus": [int]}
_ANY_FLAG = frozenset({"true", "false"})
SCHEMA: dict[str, Any] = {
    "name": str,
    "backend": str,
    "max_batch_size": int,
    "default_model_filename": str,
    "input": [{**_TENSOR, "optional": _ANY_FLAG}],
    "output": [_TENSOR],
    "instance_group": [_GROUP],
    "model_transaction_policy": {"decoupled": _ANY_FLAG},
    "parameters": [{"key": str, "value": {"string_value": str}}],
}
"""Fields of a message: a list for those that repeat, a dict for messages, a set for enumerations."""


def written(message: dict[str, Any], indent: str = "") -> str:
    """Return a message as text."""
    lines = []
    for name, value in message.items():
        if isinstance(value, list) and not any(isinstance(each, dict) for each in value):
            lines.append(f"{indent}{name}: [ {', '.join(map(_shown, value))} ]" if value else f"{indent}{name}: [ ]")
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                lines += [f"{indent}{name} {{", written(each, indent + "  ").rstrip("\n"), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_shown(each)}")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, str) and not isinstance(value, Word):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value)


_TOKEN = re.compile(r'\s+|#[^\n]*|("(?:[^"\\\n]|\\.)*"|[A-Za-z_]\w*|-?\d+|[][{}:,])')


def read(text: str) -> dict[str, Any]:
    """Return the message of a text, its fields unchecked; each is a list of values.

    Raises:
        ValueError: it is no text of protobuf.
    """
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"cannot read {text[at : at + 40]!r}")
        tokens += [found[1]] if found[1] else []  # neither white space nor comments
        at = found.end()
    message, rest = _message(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"{tokens[rest]} closes nothing")
    return message


def _message(tokens: list[str], at: int) -> tuple[dict[str, Any], int]:
    message: dict[str, Any] = {}
    while at < len(tokens) and tokens[at] != "}":
        name, at = tokens[at], at + 1
        if not name[0].isalpha():
            raise ValueError(f"{name} is no name of a field")
        if tokens[at : at + 1] == [":"]:
            at += 1
        values, at = _values(tokens, at)
        message.setdefault(name, []).extend(values)
    return message, at


def _values(tokens: list[str], at: int) -> tuple[list[Any], int]:
    if at >= len(tokens):
        raise ValueError("the text ends before a value")
    if tokens[at] == "[":
        found: list[Any] = []
        at += 1
        while tokens[at : at + 1] != ["]"]:
            values, at = _values(tokens, at)
            found += values
            if tokens[at : at + 1] == [","]:
                at += 1
        return found, at + 1
    if tokens[at] == "{":
        message, at = _message(tokens, at + 1)
        if tokens[at : at + 1] != ["}"]:
            raise ValueError("a message is not closed")
        return [message], at + 1
    token = tokens[at]
    if token[0] == '"':
        return [re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), token[1:-1])], at + 1
    if token[0].isalpha():
        return [Word(token)], at + 1
    return [int(token)], at + 1


def check(message: dict[str, Any], schema: dict[str, Any] = SCHEMA, path: str = "") -> None:
    """Check a message that was read.

    Raises:
        ValueError: a field is unknown, repeats, or has a value of another type; the message names it.
    """
    for name, values in message.items():
        here = f"{path}{name}"
        if name not in schema:
            raise ValueError(f"there is no field {here}")
        kind = schema[name]
        if not isinstance(kind, list) and len(values) != 1:
            raise ValueError(f"{here} has {len(values)} values, expected one")
        kind = kind[0] if isinstance(kind, list) else kind
        for value in values:
            if isinstance(kind, dict) and isinstance(value, dict):
                check(value, kind, f"{here}.")
            elif isinstance(kind, frozenset):
                if not isinstance(value, Word) or value not in kind:
                    raise ValueError(f"{here} is {value!r}, expected one of {', '.join(sorted(kind))}")
            elif isinstance(kind, dict) or type(value) is not kind:
                raise ValueError(f"{here} is {value!r}, expected another type")
    if path in ("input.", "output."):
        missing = [name for name in ("name", "data_type", "dims") if name not in message]
        if missing:
            raise ValueError(f"{path}{missing[0]} is missing")
        if not message["dims"] or any(extent < 1 and extent != -1 for extent in message["dims"]):
            raise ValueError(f"{path}dims are {message['dims']}, expected extents, or -1 for any")
