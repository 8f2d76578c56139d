"""Rendering of chat templates by jinja2. A program of its own, which `template_process.py` starts and may end.

A template is somebody else's code. The sandbox of jinja2 keeps it from Python's objects, but no sandbox bounds the time
and the memory that a template takes (nested loops, lists of lists, paddings of any width, regular expressions of
filters), so it runs in a process that can be killed and whose address space is limited. This file must not import
anything but the standard library and jinja2: what it does not load cannot be reached, and starts at once.

The output equals transformers' `apply_chat_template` byte for byte. A request on stdin is a length and a marshalled
(kind, source, variables); an answer on stdout is a status, a length, and a text.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import marshal
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

DONE, INVALID, FAILED = range(3)
"""Statuses of an answer: the text, why the source is no template, why the template failed."""

REQUEST, ANSWER = struct.Struct(">Q"), struct.Struct(">BQ")

TIME_LIMIT = 10.0
"""Seconds that a template may take; rendering a long conversation takes milliseconds."""
OUTPUT_LIMIT = 16_000_000
"""Characters that a template may write, and items of a sequence that it may make by multiplication."""
MEMORY_LIMIT = 512 * 2**20
"""Bytes that a template may take beyond what the process has when it starts, on Linux."""
BITS_LIMIT = 100_000


class _Generation(jinja2.ext.Extension):
    """Tag `{% generation %}`, which marks the assistant's words for training and here only renders them."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"{name!r} cannot be stored on a namespace: it begins with an underscore")


class _Dict:
    """The function `dict` of a template, without the attributes of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, which also refuses products that no conversation needs, on systems without limits of memory too."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            _check(bits <= BITS_LIMIT, "a number is too large")
        elif operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(times, int) and hasattr(items, "__len__"):
                    _check(len(items) * times <= OUTPUT_LIMIT, "a text or list is too long")
        return super().call_binop(context, operator, left, right)


def _check(condition: bool, complaint: str) -> None:
    if not condition:
        raise jinja2.exceptions.SecurityError(complaint)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def literals(source: str) -> str:
    """Return every text that a template writes by itself, separated by null characters."""
    tree = _environment().parse(source)
    found = {node.data for node in tree.find_all(jinja2.nodes.TemplateData)}
    found |= {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
    return "\0".join(sorted(found))


def render(source: str, variables: dict[str, Any]) -> str:
    """Render a template with variables of plain data."""
    pieces, size = [], 0
    for piece in _compiled(source).generate(variables):
        size += len(piece)
        _check(size <= OUTPUT_LIMIT, f"the text is longer than {OUTPUT_LIMIT} characters")
        pieces.append(piece)
    return "".join(pieces)


def answer(kind: str, source: str, variables: dict[str, Any]) -> tuple[int, str]:
    """Return the status and the text of an answer to a request of kind "literals" or "render"."""
    try:
        return DONE, literals(source) if kind == "literals" else render(source, variables)
    except jinja2.TemplateSyntaxError as error:
        return INVALID, _one_line(f"line {error.lineno}: {error}")
    except Exception as error:
        # Whatever a template raises (RecursionError, MemoryError, OverflowError...) is its own, and no bug of ours.
        is_plain = isinstance(error, jinja2.TemplateError) and str(error)
        return FAILED, _one_line(str(error) if is_plain else f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    line = " ".join(text[:2000].split())[:500]
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + MEMORY_LIMIT
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm(seconds: float) -> None:
    """Let the system end this process after `seconds`, also where its parent is gone; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    _environment()
    _limit_memory()
    answers.write(ANSWER.pack(DONE, 0))
    answers.flush()
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        (size,) = REQUEST.unpack(head)
        _alarm(2 * TIME_LIMIT)
        status, text = FAILED, "MemoryError"
        with contextlib.suppress(MemoryError):
            status, text = answer(*marshal.loads(requests.read(size)))
        payload = text.encode("utf-8", "surrogatepass")
        answers.write(ANSWER.pack(status, len(payload)) + payload)
        answers.flush()
        _alarm(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process if it wants to
    serve(sys.stdin.buffer, sys.stdout.buffer)
