"""Session of a folder exported for text-classification: logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.numerics import softmax
from doge_export.package.manifest import Manifest
from doge_export.runtime.files import read_json
from doge_export.runtime.generation_config import is_integer
from doge_export.runtime.one_call import OneCall
from doge_export.runtime.prediction import check_finite
from doge_export.runtime.prompts import is_single_text
from doge_export.runtime.single_pass import Advance, SinglePassSession
from doge_export.runtime.tokenizer import Tokenizer

ScoreFunction = Literal["softmax", "sigmoid", "none"]


class Scored(TypedDict):
    """A label of a text, with its score.

    Attributes:
        label: name of the class.
        score: probability of the class, or its logit where no function is applied.
    """

    label: str
    score: float


class ClassificationSession(SinglePassSession):
    """A text classifier, equal to transformers' `DogeForSequenceClassification`.

    Attributes:
        labels: names of the classes, in the order of the logits.
        function_to_apply: function that turns logits into scores, chosen as transformers chooses it: "none" for
            regression, "sigmoid" if several labels may be right or there is only one, else "softmax".
    """

    task = "text-classification"

    def __init__(
        self,
        model: OneCall,
        tokenizer: Tokenizer | None,
        manifest: Manifest,
        folder: Path,
    ) -> None:
        super().__init__(model, tokenizer, manifest, folder)
        self.labels: tuple[str, ...] = tuple(manifest.architecture["labels"])
        self._judges_before_padding = bool(manifest.architecture.get("first_pad_pooling"))
        problem = read_json(folder / "config.json").get("problem_type")
        self.function_to_apply: ScoreFunction = _function_for(problem, len(self.labels))

    def logits(self, input_ids: Any, attention_mask: Any = None) -> np.ndarray:
        """Compute the logits of all rows in one run.

        Args:
            input_ids: token ids [S] or [B, S]. Padding must be pad_token_id, on either side: as in transformers, a row
                is classified by its last token of another id, or by the last 1 of the mask if the model has no
                pad_token_id.
            attention_mask: the same shape, 0 for padding; None without padding.

        Returns:
            float32 [B, labels].

        Raises:
            DogeExportError: an id is out of range, or there are more than max_length tokens.
        """
        return self._forward(input_ids, attention_mask)

    def classify(self, texts: Any, *, top_k: int | None = 1, **options: Any) -> list[Scored] | list[list[Scored]]:
        """Label texts, with scores equal to those of transformers' text-classification pipeline.

        Args:
            texts: a text or token ids (a list of int, an array [S]), or a list of those.
            top_k: labels of each text, best first; None for all of them.
            options: see `ranked`.

        Returns:
            With `top_k` 1, a list with the {"label", "score"} of each text, even of a single one. With another `top_k`,
            a list of {"label", "score"} for a single text, and a list of such lists for several.

        Raises:
            DogeExportError: a text is empty or too long; raised before anything runs.
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
        """Label texts as `classify` does, and return a list of {"label", "score"} for each text in every case.

        Args:
            texts: as in `classify`.
            top_k: as in `classify`.
            function_to_apply: "softmax", "sigmoid" or "none" instead of the model's own.
            truncate: cut texts of more than max_length tokens at their end, instead of refusing them.
            batch_size: largest number of texts in a run; long texts run in smaller batches. No score depends on it,
                nor on the other texts.
            on_progress: called after each run with the number of texts in that run.

        Raises:
            DogeExportError: an argument is wrong, or a text is empty or too long.
            RunFailed: the model gives logits that are not finite.
        """
        if top_k is not None and (not is_integer(top_k) or top_k < 1):
            raise DogeExportError(f"top_k is {top_k!r}, expected 1 or more, or None for all labels")
        function = _FUNCTIONS.get(function_to_apply or self.function_to_apply)
        if function is None:
            raise DogeExportError(
                f"function_to_apply is {function_to_apply!r}, expected one of {', '.join(_FUNCTIONS)}"
            )

        def scored(logits: np.ndarray) -> list[Scored]:
            check_finite(logits)
            scores = map(float, function(logits))
            named = [Scored(label=label, score=score) for label, score in zip(self.labels, scores, strict=True)]
            return sorted(named, key=lambda each: -each["score"])[:top_k]

        return self._each(texts, scored, truncate, batch_size, on_progress)

    def _runs_alone(self, row: Sequence[int]) -> bool:
        # The oldest classifiers read the token before the first padding id. For a row that starts with that id, this
        # is index -1, the last position of the batch, which depends on the length of the other rows.
        starts_padded = self._judges_before_padding and row[0] == self._padding
        return starts_padded or super()._runs_alone(row)


def _function_for(problem: Any, labels: int) -> ScoreFunction:
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(logits))  # exp of a negative number cannot overflow
    return np.where(logits >= 0, 1, small) / (1 + small)


_FUNCTIONS = {"softmax": softmax, "sigmoid": _sigmoid, "none": lambda logits: logits}
