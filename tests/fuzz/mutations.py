"""Random damage to a file: bytes flipped, cut and inserted, and values of JSON replaced by hostile ones."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    10**12,
    2**31,
    2**63,
    -(2**63) - 1,
    10**299,
    0.5,
    -0.0,
    1e308,
    5e-324,
    "",
    "x",
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "\x1b[2J\x1b]52;c;AAAA\x07",
    "\ud800",
    "x" * 10_000,
    "(a+)+$",
    "{{ 1/0 }}",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": {"c": []}}},
    [1, "a", None],
    list(range(1000)),
)
RAW = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 400,
    b"9" * 5000,
    b"1e999",
    b"-Infinity",
    b"NaN",
    b'"\\ud800"',
    b'"\xff\xfe"',
)
"""Text that no writer of JSON would write; it replaces a value."""

_MARK = "fuzz-mark-7f3a"


def damaged_json(content: bytes, chance: random.Random) -> bytes:
    """Change one to three values of a JSON text, or now and then its bytes."""
    if chance.random() < 0.15:
        return damaged_bytes(content, chance)
    values = json.loads(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        values = _change_one(values, chance, HOSTILE)
    if chance.random() < 0.15:
        values = _change_one(values, chance, (_MARK,))
        return json.dumps(values).encode().replace(json.dumps(_MARK).encode(), chance.choice(RAW), 1)
    return json.dumps(values).encode()


def _change_one(values: Any, chance: random.Random, choices: tuple[Any, ...]) -> Any:
    """Replace, remove, double or move one value, near the top as likely as deep inside."""
    parent, key, node = None, None, values
    while isinstance(node, (dict, list)) and node and (parent is None or chance.random() < 0.75):
        parent = node
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        node = node[key]
    if parent is None or chance.random() < 0.01:
        return copy.deepcopy(chance.choice(choices))
    what = chance.random()
    if what < 0.15 and len(choices) > 1:
        del parent[key]
    elif what < 0.25 and isinstance(node, int) and not isinstance(node, bool) and len(choices) > 1:
        parent[key] = node + chance.choice((-1, 1, 7, -node, node, 1000 * node))
    elif what < 0.3 and isinstance(parent, list) and len(choices) > 1:
        parent.extend(copy.deepcopy(parent[: chance.randrange(1, 50)]))
    else:
        parent[key] = copy.deepcopy(chance.choice(choices))
    return values


def damaged_bytes(content: bytes, chance: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """Flip, cut, insert or repeat bytes between `first` and `last`."""
    changed = bytearray(content)
    end = min(len(changed), len(changed) if last is None else last)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(first, max(end, first + 1))
        match chance.randrange(6):
            case 0 | 1 if place < len(changed):
                changed[place] ^= 1 << chance.randrange(8)
            case 2 if place < len(changed):
                changed[place] = chance.randrange(256)
            case 3:
                del changed[place : place + chance.randrange(1, 64)]
            case 4:
                changed[place:place] = chance.randbytes(chance.randrange(1, 64))
            case _:
                changed[place:place] = changed[max(place - 32, 0) : place]
    if chance.random() < 0.05:
        del changed[chance.randrange(len(changed) + 1) :]
    return bytes(changed)


def damaged_safetensors(content: bytes, chance: random.Random) -> bytes:
    """Change the header of a safetensors file: its JSON, its length, or its bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    what = chance.random()
    if what < 0.1:
        size = chance.choice((0, 1, length - 1, length + 8, 2**31, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", size) + header + data
    if what < 0.3:
        return damaged_bytes(content, chance, 0, 8 + length)
    header = damaged_json(header, chance)
    return struct.pack("<Q", len(header)) + header + data


_SNIPPETS = (
    "{{ ",
    " }}",
    "{% for x in range(1000) %}",
    "{% endfor %}",
    "{% if messages %}",
    "{% endif %}",
    "{% set x = messages %}",
    "{{ messages[0].content * 10 }}",
    "{{ messages[99] }}",
    "{{ x.y.z }}",
    "{{ 1 / 0 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}",
    "{{ messages | tojson(indent='x') }}",
    "{{ messages | map(attribute='role') | join(1) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'x' %}",
    "{# ",
    "\x1b[2J",
)
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ [0] * 10 ** 9 }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 9 ** 9 ** 9 }}",
)
"""Templates that would not end, or take gigabytes."""


def damaged_template(content: bytes, chance: random.Random) -> bytes:
    """Put pieces of templates into one, cut it, or flip its bytes."""
    if chance.random() < 0.2:
        return damaged_bytes(content, chance)
    text = content.decode()
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(text) + 1)
        piece = chance.choice(ENDLESS if chance.random() < 0.05 else _SNIPPETS)
        text = text[:place] + piece + text[place + chance.choice((0, 0, 10, 100)) :]
    return text.encode()
