"""Multiple-choice questions in JSONL: {"question", "choices", "answer"} and optionally "context"."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.paths import read_text
from doge_export.runtime.generation_config import is_integer


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt, the choices that may follow it after a space, and the index of the right choice."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    @classmethod
    def of(cls, fields: Any) -> Question:
        """Read a question from an object of the file.

        The prompt is `context`, an empty line and `question`, each as it stands. `answer` is an index from 0 or the
        text of a choice. Other keys are ignored.

        Raises:
            DogeExportError: the object is malformed.
        """
        if not isinstance(fields, Mapping):
            raise DogeExportError(f"expected an object with question, choices and answer, not {_kind(fields)}")
        missing = [key for key in ("question", "choices", "answer") if key not in fields]
        if missing:
            raise DogeExportError(f"there is no {' and no '.join(missing)}; a line has question, choices and answer")
        question, choices = _text(fields["question"], "question"), fields["choices"]
        context = None if fields.get("context") is None else _text(fields["context"], "context")
        if not isinstance(choices, (list, tuple)) or len(choices) < 2:
            raise DogeExportError(f"choices is {_kind(choices)}, expected a list of two or more texts")
        if not all(_text(choice, "a choice") for choice in choices):
            raise DogeExportError("a choice is empty, expected a text")
        prompt = f"{context}\n\n{question}" if context else question
        return cls(prompt, tuple(choices), _index(fields["answer"], choices))


def read_questions(file: str | Path) -> list[Question]:
    """Read the questions of a JSONL file, skipping empty lines.

    Raises:
        DogeExportError: the file cannot be read or has no questions, or a line, which the message names, is malformed.
    """
    questions = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            questions.append(Question.of(json.loads(line)))
        except json.JSONDecodeError as error:
            raise DogeExportError(f"{file}, line {number}: not JSON: {error.msg} at column {error.colno}") from error
        except DogeExportError as error:
            raise DogeExportError(f"{file}, line {number}: {error}") from error
    if not questions:
        raise DogeExportError(f"{file} has no questions: expected a JSON object a line")
    return questions


def _index(answer: Any, choices: list[str] | tuple[str, ...]) -> int:
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if is_integer(answer) and 0 <= answer < len(choices):
        return int(answer)
    raise DogeExportError(
        f"answer is {json.dumps(answer, default=str)}, expected an index from 0 to {len(choices) - 1} or one of the "
        "choices"
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise DogeExportError(f"{name} is {_kind(value)}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DogeExportError(f"{name} has a lone surrogate at character {error.start}") from error
    return value


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    kinds = {dict: "an object", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
