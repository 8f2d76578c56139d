"""A folder exported for text-classification: logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.numerics import softmax
from doge_export.package.manifest import Manifest
from doge_export.runtime.files import read_json
from doge_export.runtime.generation_config import is_integer
from doge_export.runtime.prompts import is_single_text
from doge_export.runtime.single_pass import Advance, SinglePassSession
from doge_export.runtime.tokenizer import Tokenizer

ScoreFunction = Literal["softmax", "sigmoid", "none"]


class Scored(TypedDict):
    """A class of a text, and how sure the model is of it."""

    label: str
    score: float


class ClassificationSession(SinglePassSession):
    """transformers' `DogeForSequenceClassification`.

    Attributes:
        labels: names of the classes, in the order of the logits.
        function_to_apply: what makes scores of logits, as transformers decides it: "none" for regression, "sigmoid"
            where several labels may be right or there is only one, else "softmax".
    """

    task = "text-classification"

    def __init__(
        self,
        graph: onnxruntime.InferenceSession,
        tokenizer: Tokenizer | None,
        manifest: Manifest,
        folder: Path,
    ) -> None:
        super().__init__(graph, tokenizer, manifest, folder)
        labels = manifest.architecture.get("labels")
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise DogeExportError(f"{folder / 'doge_export.json'} names no labels; export the model again")
        self.labels: tuple[str, ...] = tuple(labels)
        self._judges_before_padding = bool(manifest.architecture.get("first_pad_pooling"))
        problem = read_json(folder / "config.json").get("problem_type")
        self.function_to_apply: ScoreFunction = _function_for(problem, len(self.labels))

    def logits(self, input_ids: Any, attention_mask: Any = None) -> np.ndarray:
        """The logits of every row, float32 [B, labels], of rows that are read together as they are.

        input_ids: [S] or [B, S]. attention_mask: the same shape, 0 for padding. A row is judged by its last token that
        is not pad_token_id, as in transformers (where the model has none, by the last one of the mask): padding must
        be of that id, and may be on either side.
        Raises DogeExportError for ids out of range and for more than max_length tokens.
        """
        return self._forward(input_ids, attention_mask)

    def classify(self, texts: Any, *, top_k: int | None = 1, **options: Any) -> list[Scored] | list[list[Scored]]:
        """Labels with scores, as transformers' text-classification pipeline gives them.

        Args:
            texts: a text or token ids (a list of int, an array [S]), or a list of those.
            top_k: labels of each text, best first; None for all of them.
            options: see `ranked`.

        Returns:
            {"label", "score"} for each text, also in a list for a single text; with another `top_k` than 1 a list of
            those for a single text, and a list of lists for several.

        Raises DogeExportError for a text that is empty or too long, before anything runs.
        """
        found = self.ranked(texts, top_k=top_k, **options)
        if top_k == 1:
            return [best for (best,) in found]
        return found[0] if is_single_text(texts) else found

    def ranked(
        self,
        texts: Any,
        *,
        top_k: int | None = 1,
        function_to_apply: ScoreFunction | None = None,
        truncate: bool = False,
        batch_size: int = 32,
        on_progress: Advance | None = None,
    ) -> list[list[Scored]]:
        """{"label", "score"} of the `top_k` best labels of each text, a list of lists whatever was asked for.

        Args:
            texts: as in `classify`.
            top_k: as in `classify`.
            function_to_apply: "softmax", "sigmoid" or "none" instead of the model's own.
            truncate: cut texts of more than max_length tokens at their end, instead of refusing them.
            batch_size: texts in a run at most; long texts run in smaller batches. No score depends on it, nor on the
                other texts.
            on_progress: called after each run with the number of texts it has done.
        """
        if top_k is not None and (not is_integer(top_k) or top_k < 1):
            raise DogeExportError(f"top_k is {top_k!r}, expected 1 or more, or None for all labels")
        function = _FUNCTIONS.get(function_to_apply or self.function_to_apply)
        if function is None:
            raise DogeExportError(
                f"function_to_apply is {function_to_apply!r}, expected one of {', '.join(_FUNCTIONS)}"
            )

        def scored(logits: np.ndarray) -> list[Scored]:
            scores = map(float, function(logits))
            named = [Scored(label=label, score=score) for label, score in zip(self.labels, scores, strict=True)]
            return sorted(named, key=lambda each: -each["score"])[:top_k]

        return self._each(texts, scored, truncate, batch_size, on_progress)

    def _runs_alone(self, row: Sequence[int]) -> bool:
        # The oldest classifiers judge by the token before the first padding, counted from the end where there is none.
        starts_padded = self._judges_before_padding and row[0] == self._padding
        return starts_padded or super()._runs_alone(row)


def _function_for(problem: Any, labels: int) -> ScoreFunction:
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(logits))  # which cannot overflow
    return np.where(logits >= 0, 1, small) / (1 + small)


_FUNCTIONS = {"softmax": softmax, "sigmoid": _sigmoid, "none": lambda logits: logits}
