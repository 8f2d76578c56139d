"""Native decoder whose caches drop every key that no later token may see: its memory does not grow with the length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.decoder import Array, SequenceLimits
from doge_export.runtime.decoders.marks import Mark, Marks, no_way_back
from doge_export.runtime.decoders.native import NativeDecoder
from doge_export.runtime.decoders.progress import Lengths
from doge_export.runtime.native.interface import Kind, NativeModel, NativeState

_CUT_OFF = "this answer was cut off, and its cache holds other tokens: begin another answer, or read the tokens again"


class BoundedNativeDecoder(NativeDecoder):
    """Native decoder over slots. It is set back to where no key had been dropped, or to a length that was marked.

    It computes all logits of every step: those of the last token cannot be had again by reading it once more.
    """

    _record_type = Lengths
    _progress: Lengths

    def __init__(
        self, model: NativeModel, limits: SequenceLimits, cache: Kind = Kind.FLOAT32, *, window: int | None = None
    ) -> None:
        self._marks: Marks[Array] = Marks()
        super().__init__(model, limits, cache, window=window)
        self._before = self._progress.tokens

    def fork(self) -> Self:
        """See `Decoder.fork`."""
        return type(self)(self._model, self._limits, self._cache, window=self.window)

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything."""
        self._marks.clear()
        super().reset(batch_size)

    @property
    def slots(self) -> int:
        """Keys that each layer and head now holds."""
        return self._present_state().slots

    def mark(self) -> None:
        """See `Decoder.mark`. It copies the slots."""
        state = self._present_state()
        self._marks.add(Mark(self.length, self._progress.tokens, state.slots == state.length, state.content()))

    def recallable(self, length: int) -> int:
        """See `Decoder.recallable`."""
        if length == 0 or self._state is None:
            return 0
        if self._holds_all(length) or (length == self.length and self._is_as_recorded):
            return length
        return self._marks.recallable(length)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on.

        Raises:
            DogeExportError: keys of the first `length` tokens were dropped, and no state of that length is kept.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache has read {self.length} tokens")
        if length == self.length and self._is_as_recorded:
            return
        mark = self._marks.of(length)
        tokens = self._progress.tokens - (self.length - length)
        state = self._present_state()
        if self._holds_all(length) or length == 0:
            state.rewind(length)
        elif mark is not None:
            state.restore(mark.content)
            state.rewind(length)
            tokens = mark.tokens - (mark.length - length)
        else:
            raise no_way_back(state.length, length)
        self._progress.restore(length, tokens.clip(0))  # padding is on the left
        self._marks.forget_behind(length)

    def _holds_all(self, length: int) -> bool:
        """Return whether the caches hold every key of the first `length` tokens and of those behind them."""
        state = self._present_state()
        return state.slots == state.length >= length

    @property
    def _is_as_recorded(self) -> bool:
        """False after a run that failed or was interrupted, if the caches now hold other tokens than are recorded."""
        return self._present_state().length == self.length

    def state(self) -> dict[str, Array]:
        """See `Decoder.state`."""
        if not self._is_as_recorded:
            raise DogeExportError(_CUT_OFF)
        return super().state()

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        super().restore(state, length)
        self.mark()

    def _empty_state(self, batch_size: int) -> NativeState:
        return self._model.state(batch_size, self._cache, self.max_length, bounded=True, window=self.window)

    def _record(self, new: int, attention_mask: Array | None) -> Array:
        self._before = self._progress.tokens
        mask, _, tokens = self._progress.after(new, attention_mask)
        self._progress.restore(self.length + new, tokens)
        return mask

    def _undo(self, length: int) -> None:
        self._progress.restore(length, self._before)
        if self._state is not None and self._holds_all(length):
            self._state.rewind(length)

    def _state_behind(self, past: int) -> NativeState:
        state = self._present_state()
        if state.length != past and not self._holds_all(past):
            raise DogeExportError(_CUT_OFF)
        return super()._state_behind(past)

    def _forget_other_process(self) -> None:
        super()._forget_other_process()
        self._marks.clear()
