"""Base of the sessions for tasks that read each text in one run, without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest
from doge_export.runtime.files import damage_of
from doge_export.runtime.generation_config import is_integer
from doge_export.runtime.one_call import NativeCall, OneCall
from doge_export.runtime.prompts import any_mask, id_matrix, text_rows
from doge_export.runtime.task_session import TaskSession
from doge_export.runtime.tokenizer import Tokenizer

Advance = Callable[[int], object]
Read = TypeVar("Read")

PAIRS = 2**24
"""Most pairs of tokens in a run, rows times length squared: attention keeps some numbers for each pair and head."""


class SinglePassSession(TaskSession):
    """Session over a model of the inputs input_ids and attention_mask, and one output.

    Nothing of a call is kept, so threads may share a session. Their calls run at the same time in onnxruntime; in the
    native decoder they wait for each other.
    """

    def __init__(
        self,
        model: OneCall,
        tokenizer: Tokenizer | None,
        manifest: Manifest,
        folder: Path,
    ) -> None:
        super().__init__(folder, manifest, tokenizer)
        self._model = model
        with damage_of(folder / "doge_export.json"):
            architecture = manifest.architecture
            self._vocab_size = int(architecture["vocab_size"])
            pad = architecture.get("pad_token_id")
            self._padding = 0 if pad is None else int(pad)

    @property
    def computes_by(self) -> str:
        """What computes, in words: "onnxruntime", or the native decoder with its instruction set and threads."""
        return self._model.computes_by

    @property
    def is_native(self) -> bool:
        """Whether the native decoder computes, whose calls wait for each other and use all of its threads."""
        return isinstance(self._model, NativeCall)

    def fork(self) -> Self:
        """Return another session on the same model, which costs no memory of its own."""
        return type(self)(self._model, self.tokenizer, self.manifest, self.folder)

    def _forward(self, input_ids: Any, attention_mask: Any = None) -> np.ndarray:
        """Run the model on token ids [S] or [B, S] and a mask of the same shape, 0 for padding on any side."""
        ids = id_matrix(input_ids, self._vocab_size)
        mask = any_mask(attention_mask, ids.shape)
        if not mask.any(axis=1).all():
            raise DogeExportError("attention_mask has a row of padding alone: leave the row out")
        if ids.shape[1] > self.max_length:
            raise DogeExportError(
                f"{ids.shape[1]} tokens are more than this export holds ({self.max_length}): "
                "shorten the text, or export again with a larger --max-length"
            )
        return self._model(ids, mask)

    def _each(
        self,
        texts: Any,
        reading: Callable[[np.ndarray], Read],
        truncate: bool,
        batch_size: int,
        on_progress: Advance | None,
    ) -> list[Read]:
        """Run the model on texts in batches, holding the outputs of one batch at a time.

        Args:
            texts: see `prompts.text_rows`; all of them are checked before the first run.
            reading: turns the output of one text, without its padding, into the result.
            truncate: cut texts that are too long.
            batch_size: largest number of texts in a run.
            on_progress: called after each run with the number of texts in that run.

        Returns:
            The result of each text.
        """
        if not is_integer(batch_size) or batch_size < 1:
            raise DogeExportError(f"batch_size is {batch_size!r}, expected 1 or more")
        rows = text_rows(texts, self.tokenizer, self._vocab_size, max_length=self.max_length, truncate=truncate)
        found: dict[int, Read] = {}
        for batch in self._batches(rows, batch_size):
            outputs = self._run([rows[index] for index in batch])
            found |= {index: reading(output) for index, output in zip(batch, outputs, strict=True)}
            if on_progress is not None:
                on_progress(len(batch))
        return [found[index] for index in range(len(rows))]

    def _batches(self, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
        """Yield the indices of rows that run together: long rows first, with those next in length, to pad little."""
        batch: list[int] = []
        for index in sorted(range(len(rows)), key=lambda index: -len(rows[index])):
            if batch:
                longest = rows[batch[0]]
                is_full = len(batch) == batch_size or (len(batch) + 1) * len(longest) ** 2 > PAIRS
                if is_full or self._runs_alone(longest) or self._runs_alone(rows[index]):
                    yield batch
                    batch = []
            batch.append(index)
        if batch:
            yield batch

    def _runs_alone(self, row: Sequence[int]) -> bool:
        """Return whether the row's output would depend on the other rows of a run or on padding.

        It does beyond the chunkable length: with reference CDMoE routing, scaled RoPE, or tokens that see no key.
        """
        return len(row) > self.manifest.chunkable_length

    def _run(self, rows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Run rows together and yield the output of each, without padding."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self._padding, np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        output = self._forward(ids, mask)
        is_per_token = output.ndim == 3
        return (output[index, : len(row)] if is_per_token else output[index] for index, row in enumerate(rows))
