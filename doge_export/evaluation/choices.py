"""Multiple choice by likelihood, as in lm-evaluation-harness: the model chooses the likeliest continuation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.console import progress
from doge_export.errors import DogeExportError
from doge_export.evaluation.questions import Question, read_questions
from doge_export.evaluation.scorer import Scorer
from doge_export.runtime.prompts import need_tokenizer
from doge_export.runtime.session import Session
from doge_export.runtime.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Answer:
    """The model's answer to a question.

    Attributes:
        question: the question.
        log_likelihoods: natural log-likelihood of each choice after the prompt.
        is_greedy: for each choice, True if greedy decoding writes it.
        truncated: True if the start of a prompt was cut off, because prompt and choice do not fit into the export.
    """

    question: Question
    log_likelihoods: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    truncated: bool

    @property
    def chosen(self) -> int:
        """Index of the likeliest choice, the first among equals."""
        return self._best([1] * len(self.log_likelihoods))

    @property
    def chosen_norm(self) -> int:
        """Index of the choice with the largest log-likelihood per character."""
        return self._best(list(map(len, self.question.choices)))

    @property
    def chosen_bytes(self) -> int:
        """Index of the choice with the largest log-likelihood per UTF-8 byte."""
        return self._best([len(choice.encode()) for choice in self.question.choices])

    def _best(self, lengths: Sequence[int]) -> int:
        return int(np.argmax(np.divide(self.log_likelihoods, lengths)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = dataclasses.asdict(self)
        chosen = {"chosen": self.chosen, "chosen_norm": self.chosen_norm, "chosen_bytes": self.chosen_bytes}
        return {**values.pop("question"), **values, **chosen}


@dataclasses.dataclass(frozen=True)
class ChoicesScore:
    """Answers, and the share of right ones under each measure of lm-evaluation-harness.

    "acc" takes the likeliest choice, "acc_norm" the one likeliest per character, "acc_bytes" the one likeliest per
    byte. "exact_match" is the share of questions whose right choice greedy decoding writes.
    """

    answers: tuple[Answer, ...]

    @property
    def measures(self) -> dict[str, dict[str, float | None]]:
        """Measure -> {"value", "stderr"}; the standard error of a single question is None."""
        right = {
            "acc": [item.chosen == item.question.answer for item in self.answers],
            "acc_norm": [item.chosen_norm == item.question.answer for item in self.answers],
            "acc_bytes": [item.chosen_bytes == item.question.answer for item in self.answers],
            "exact_match": [item.is_greedy[item.question.answer] for item in self.answers],
        }
        return {name: {"value": float(np.mean(hits)), "stderr": _stderr(hits)} for name, hits in right.items()}

    @property
    def truncated(self) -> int:
        """Number of questions with a prompt whose start was cut off."""
        return sum(item.truncated for item in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        items = [item.to_dict() for item in self.answers]
        return {**self.measures, "questions": len(items), "truncated": self.truncated, "items": items}


def evaluate_choices(session: Session, questions: str | Path | Iterable[Question | Mapping[str, Any]]) -> ChoicesScore:
    """Answer multiple-choice questions.

    Args:
        session: session of a folder exported for text-generation, with a tokenizer.
        questions: a JSONL file, or its objects: {"question": text, "choices": [text...], "answer": index or text,
            "context": text (optional, before the question)}. A choice is appended to the question after a space.

    Raises:
        DogeExportError: a question is malformed, or a choice alone is longer than the export holds.
    """
    tokenizer = need_tokenizer(session.tokenizer)
    if isinstance(questions, (str, Path)):
        asked = read_questions(questions)
    else:
        asked = [given if isinstance(given, Question) else Question.of(given) for given in questions]
    if not asked:
        raise DogeExportError("there are no questions")
    answers = []
    with session.exclusive(), progress("answering", len(asked)) as advance:
        scorer = Scorer(session)
        for number, question in enumerate(asked, 1):
            try:
                answers.append(_answer(scorer, tokenizer, session.max_length, question))
            except DogeExportError as error:
                raise type(error)(f"question {number}: {error}") from error
            advance()
    return ChoicesScore(tuple(answers))


def _answer(scorer: Scorer, tokenizer: Tokenizer, max_length: int, question: Question) -> Answer:
    log_likelihoods, is_greedy, truncated = [], [], False
    for choice in question.choices:
        prompt_ids, choice_ids = encode_pair(tokenizer, question.prompt, f" {choice}")
        if not choice_ids or len(choice_ids) > max_length:
            raise DogeExportError(
                f"the choice {choice[:40]!r} has {len(choice_ids)} tokens, expected 1 to {max_length}, the tokens that "
                "this export holds"
            )
        # The last token is scored but not read. A sequence that is too long loses its start.
        input_ids = [*prompt_ids, *choice_ids][-(max_length + 1) : -1]
        truncated |= len(prompt_ids) + len(choice_ids) - 1 > max_length
        log_probs, likeliest = scorer.score(input_ids, len(input_ids) - len(choice_ids), choice_ids)
        log_likelihoods.append(float(log_probs.sum()))
        is_greedy.append(bool(likeliest.all()))
    return Answer(question, tuple(log_likelihoods), tuple(is_greedy), truncated)


def encode_pair(tokenizer: Tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Encode a prompt and the choice after it.

    Spaces at the end of the prompt are moved to the choice, because tokens begin with a space and do not end with one.
    The ids of the choice are those that the encoding of both together has after the ids of the prompt. An empty prompt
    is replaced by bos, or without bos by eos.

    Returns:
        The ids of the prompt and the ids of the choice.

    Raises:
        DogeExportError: the prompt is empty and the tokenizer has neither bos nor eos.
    """
    bare = prompt.rstrip()
    choice = prompt[len(bare) :] + choice
    if bare:
        prompt_ids = _encode(tokenizer, bare)
        return prompt_ids, _encode(tokenizer, bare + choice)[len(prompt_ids) :]
    first = tokenizer.token_id("bos_token")
    first = tokenizer.token_id("eos_token") if first is None else first
    if first is None:
        raise DogeExportError("the question is empty and the tokenizer has no bos token to begin with: give a question")
    return [first], tokenizer.encode(choice, add_special_tokens=False)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode a text with special tokens, unless it begins with bos in writing: no second bos is added."""
    bos = tokenizer.special_tokens.get("bos_token")
    return tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))


def _stderr(hits: Sequence[bool]) -> float | None:
    """Return the standard error of the mean; None for a single value."""
    return float(np.std(hits, ddof=1) / len(hits) ** 0.5) if len(hits) > 1 else None
