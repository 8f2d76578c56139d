"""Decoder over the native stack of plugins/cpu, which computes all layers in one call and keeps the caches itself."""

from __future__ import annotations

from typing import Self

import numpy as np

from doge_export.errors import DogeExportError, RunFailed
from doge_export.runtime.decoders.decoder import Array, Decoder, SequenceLimits
from doge_export.runtime.native.interface import Call, Kind, NativeError, NativeModel, NativeState, Status
from doge_export.runtime.prediction import BestTokens, Candidates, Prediction

_SCREENED_AFTER = 64
"""Steps after which the head is screened: making the int8 copy takes as long as some tens of them."""
_FEW = 64
"""Candidates that are asked for once a sampler has asked for some."""


class NativeDecoder(Decoder):
    """Decoder over opened native weights.

    Args:
        model: the weights.
        limits: limits of a sequence.
        cache: type of cached keys and values.
        finds_best: the model finds the best tokens in less time than all logits.
    """

    backend = "native"

    def __init__(
        self, model: NativeModel, limits: SequenceLimits, cache: Kind = Kind.FLOAT32, *, finds_best: bool = False
    ) -> None:
        super().__init__(limits, model.config.vocab_size)
        self._model, self._cache = model, cache
        # Logits of a run that routes its tokens by one another cannot be had later from its last token.
        self._finds_best = finds_best and not limits.mixes_rows
        self._steps_to_screen = _SCREENED_AFTER
        self._wanted = 1
        self._state: NativeState | None = None
        self.reset()

    @property
    def computes_by(self) -> str:
        """See `Decoder.computes_by`."""
        threads = f"{self._model.threads} thread" + "s" * (self._model.threads > 1)
        return f"native decoder, {self._model.instruction_set}, {threads}"

    def fork(self) -> Self:
        """See `Decoder.fork`; runs of one model wait for each other."""
        return type(self)(self._model, self._limits, self._cache, finds_best=self._finds_best)

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything; the caches are kept if the batch size stays."""
        self._progress.reset(batch_size)
        if self._state is not None and self._state.batch == batch_size:
            self._state.rewind(0)
            return
        self._state = None  # its memory is free before the next one's is taken
        self._state = self._model.state(batch_size, self._cache, self.max_length)
        self._logits = np.empty((batch_size, 1, self.vocab_size), np.float32)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""
        self._progress.rewind(length)
        if self._state is not None and self._state.length > length:
            self._state.rewind(length)

    def close(self) -> None:
        """Free the caches."""
        super().close()
        self._state = None

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        batch, new = input_ids.shape
        keep = min(num_logits_to_keep, new) or new
        logits = np.empty((batch, keep, self.vocab_size), np.float32)
        self._append_and_run(input_ids, attention_mask, Call(logits_to_keep=keep, logits=logits.ctypes.data))
        return logits

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`. Where the best tokens are found in less time, they alone are, unless more is asked."""
        batch = len(input_ids)
        count = min(self._wanted, self.vocab_size) if self._finds_best else 0
        if count and self._steps_to_screen:
            self._steps_to_screen -= 1
            if self._steps_to_screen == 0:
                self._model.screen()
        if not count:
            self._append_and_run(input_ids, attention_mask, Call(logits_to_keep=1, logits=self._logits.ctypes.data))
            return [_Logits(self, row) for row in self._logits[:, 0]]
        tokens, best = np.empty((batch, count), np.int64), np.empty((batch, count), np.float32)
        call = Call(num_candidates=count, candidates=tokens.ctypes.data, candidate_logits=best.ctypes.data)
        self._append_and_run(input_ids, attention_mask, call)
        last = _LastTokens(self, input_ids[:, -1:], None if attention_mask is None else attention_mask[:, -1:])
        return [_Best(self, last, row, *pair) for row, pair in enumerate(zip(tokens, best, strict=True))]

    def _append_and_run(self, input_ids: Array, attention_mask: Array | None, call: Call) -> None:
        self._progress.check(input_ids)
        past = self.length
        self._progress.append(input_ids.shape[1], attention_mask)
        try:
            self._run(past, input_ids, attention_mask, call)
        except BaseException:
            self.rewind(past)
            raise

    def _run(self, past: int, input_ids: Array, attention_mask: Array | None, call: Call) -> None:
        state = self._state
        if state is None:
            raise DogeExportError("this session was closed; load its folder again")
        if state.length > past:  # a run before was interrupted
            state.rewind(past)
        ids = np.ascontiguousarray(input_ids, np.int64)
        mask = None if attention_mask is None else np.ascontiguousarray(attention_mask, np.int64)
        call.tokens, call.ids = ids.shape[1], ids.ctypes.data
        call.mask = None if mask is None else mask.ctypes.data
        try:
            state.run(call)
        except NativeError as error:
            if error.status == Status.BAD_FILE:
                raise RunFailed(f"the native decoder fails on these weights ({error}); use --backend graph") from error
            raise

    def _logits_again(self, input_ids: Array, attention_mask: Array | None) -> Array:
        """Return the logits [B, V] of the tokens that were read last, by reading them again."""
        logits = np.empty((len(input_ids), 1, self.vocab_size), np.float32)
        self._run(self.length - 1, input_ids, attention_mask, Call(logits_to_keep=1, logits=logits.ctypes.data))
        return logits[:, 0]

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copy the (key, value) cache of every layer, each float32 [B, Hkv, length, D]."""
        if self._state is None:
            raise DogeExportError("this session was closed; load its folder again")
        return self._state.cache()


class _Logits(Prediction):
    """Prediction from all logits, which lie in memory that the next step overwrites."""

    def __init__(self, decoder: NativeDecoder, logits: Array) -> None:
        super().__init__(logits)
        self._decoder = decoder

    def argmax(self) -> int:
        """See `Prediction.argmax`."""
        self._decoder._wanted = 1
        return super().argmax()

    def candidates(self, count: int) -> Candidates:
        """See `Prediction.candidates`."""
        self._decoder._wanted = _wanted_for(count)
        return super().candidates(count)


class _Best(BestTokens):
    """Prediction from the best tokens; whatever is asked of it is what the next run finds."""

    def __init__(self, decoder: NativeDecoder, last: _LastTokens, row: int, tokens: Array, best: Array) -> None:
        super().__init__(tokens, best, lambda: last.logits()[row])
        self._decoder = decoder

    def argmax(self) -> int:
        """See `Prediction.argmax`."""
        self._decoder._wanted = min(self._decoder._wanted, 1)
        return super().argmax()

    def logits(self) -> Array:
        """See `Prediction.logits`."""
        self._decoder._wanted = 0
        return super().logits()

    def candidates(self, count: int) -> Candidates:
        """See `Prediction.candidates`."""
        found = super().candidates(count)
        self._decoder._wanted = _wanted_for(count)
        return found


class _LastTokens:
    """The newest token of every row, whose logits are computed once, when the first row is asked for."""

    def __init__(self, decoder: NativeDecoder, input_ids: Array, attention_mask: Array | None) -> None:
        self._decoder, self._ids, self._mask = decoder, input_ids.copy(), attention_mask
        self._length = decoder.length
        self._logits: Array | None = None

    def logits(self) -> Array:
        """Return the logits of all rows, float32 [B, V].

        Raises:
            RuntimeError: the decoder has run again since.
        """
        if self._logits is None:
            if self._decoder.length != self._length:
                raise RuntimeError("the decoder has run again, and its logits are those of another token")
            self._logits = self._decoder._logits_again(self._ids, self._mask)
        return self._logits


def _wanted_for(count: int) -> int:
    """Return how many candidates to find for a sampler that chooses among `count`; 0 for all."""
    return _FEW if 0 < count < _FEW else 0
