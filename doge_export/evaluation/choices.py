"""Multiple choice by likelihood, as lm-evaluation-harness does it: which choice would the model rather have written?"""

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
    """What the model makes of one question.

    log_likelihoods: natural, of each choice behind the prompt. is_greedy: whether greedy generation would write it.
    truncated: whether the start of a prompt was cut off, since it and the choice were longer than the export holds.
    """

    question: Question
    log_likelihoods: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    truncated: bool

    @property
    def chosen(self) -> int:
        """The likeliest choice; the first of equals."""
        return self._best([1] * len(self.log_likelihoods))

    @property
    def chosen_norm(self) -> int:
        """The likeliest choice for its number of characters."""
        return self._best(list(map(len, self.question.choices)))

    @property
    def chosen_bytes(self) -> int:
        """The likeliest choice for its number of UTF-8 bytes."""
        return self._best([len(choice.encode()) for choice in self.question.choices])

    def _best(self, lengths: Sequence[int]) -> int:
        return int(np.argmax(np.divide(self.log_likelihoods, lengths)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        chosen = {"chosen": self.chosen, "chosen_norm": self.chosen_norm, "chosen_bytes": self.chosen_bytes}
        return {**values.pop("question"), **values, **chosen}


@dataclasses.dataclass(frozen=True)
class ChoicesScore:
    """Answers, and the share that was right under each measure of lm-evaluation-harness.

    "acc": the likeliest choice is right. "acc_norm", "acc_bytes": the likeliest for its number of characters, of bytes.
    "exact_match": greedy generation would write the right one.
    """

    answers: tuple[Answer, ...]

    @property
    def measures(self) -> dict[str, dict[str, float | None]]:
        """{measure: {"value", "stderr"}}; the standard error of one question alone is None."""
        right = {
            "acc": [item.chosen == item.question.answer for item in self.answers],
            "acc_norm": [item.chosen_norm == item.question.answer for item in self.answers],
            "acc_bytes": [item.chosen_bytes == item.question.answer for item in self.answers],
            "exact_match": [item.is_greedy[item.question.answer] for item in self.answers],
        }
        return {name: {"value": float(np.mean(hits)), "stderr": _stderr(hits)} for name, hits in right.items()}

    @property
    def truncated(self) -> int:
        """Questions with a prompt that was cut."""
        return sum(item.truncated for item in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        items = [item.to_dict() for item in self.answers]
        return {**self.measures, "questions": len(items), "truncated": self.truncated, "items": items}


def evaluate_choices(session: Session, questions: str | Path | Iterable[Question | Mapping[str, Any]]) -> ChoicesScore:
    """Lets the model choose.

    Args:
        session: of a folder exported for text-generation, with a tokenizer.
        questions: a JSONL file, or its objects: {"question": text, "choices": [text...], "answer": index or text,
            "context": text (optional, before the question)}. A choice follows the question behind a space.

    Raises DogeExportError for a question that is not one, or a choice that alone is longer than the export holds.
    """
    tokenizer = need_tokenizer(session.tokenizer)
    if isinstance(questions, (str, Path)):
        asked = read_questions(questions)
    else:
        asked = [given if isinstance(given, Question) else Question.of(given) for given in questions]
    if not asked:
        raise DogeExportError("there are no questions")
    scorer = Scorer(session)
    answers = []
    with progress("answering", len(asked)) as advance:
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
        # The last token is scored and not read; what is too long loses its start.
        input_ids = [*prompt_ids, *choice_ids][-(max_length + 1) : -1]
        truncated |= len(prompt_ids) + len(choice_ids) - 1 > max_length
        log_probs, likeliest = scorer.score(input_ids, len(input_ids) - len(choice_ids), choice_ids)
        log_likelihoods.append(float(log_probs.sum()))
        is_greedy.append(bool(likeliest.all()))
    return Answer(question, tuple(log_likelihoods), tuple(is_greedy), truncated)


def encode_pair(tokenizer: Tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the choice behind it.

    Spaces at the end of the prompt belong to the choice: tokens begin with a space, they do not end with one. The ids
    of the choice are what encoding both together has beyond the ids of the prompt. Where nothing is left of the prompt,
    bos (else eos) stands in for it.
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
    """With the special tokens of every text, but no second bos where the text spells one."""
    bos = tokenizer.special_tokens.get("bos_token")
    return tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))


def _stderr(hits: Sequence[bool]) -> float | None:
    """Of the mean, with the sample's standard deviation."""
    return float(np.std(hits, ddof=1) / len(hits) ** 0.5) if len(hits) > 1 else None
