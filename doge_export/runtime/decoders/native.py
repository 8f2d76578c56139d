"""Decoder over the native stack of plugins/cpu, which computes all layers in one call and keeps the caches itself."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np

from doge_export.errors import DogeExportError, RunFailed
from doge_export.runtime.decoders.decoder import Array, Decoder, SequenceLimits, with_window
from doge_export.runtime.native.interface import Call, Kind, NativeError, NativeModel, NativeState, failing_weights
from doge_export.runtime.prediction import BestTokens, Candidates, Prediction

_SCREENED_AFTER = 64
"""Steps after which the head is screened: making the int8 copy takes as long as some tens of them."""
_CONTENT = "native"
"""Name of a state's only array."""
_FEW = 64
"""Candidates that are asked for once a sampler has asked for some."""


class NativeDecoder(Decoder):
    """Decoder over opened native weights.

    Args:
        model: the weights.
        limits: limits of a sequence.
        cache: type of cached keys and values.
        finds_best: the model finds the best tokens in less time than all logits.
        window: see `Decoder.window`.
    """

    backend = "native"

    def __init__(
        self,
        model: NativeModel,
        limits: SequenceLimits,
        cache: Kind = Kind.FLOAT32,
        *,
        finds_best: bool = False,
        window: int | None = None,
    ) -> None:
        super().__init__(limits, model.config.vocab_size)
        self._model, self._cache, self.window = model, cache, window
        # Logits of a run that routes its tokens by one another cannot be had later from its last token.
        self._finds_best = finds_best and not limits.mixes_rows
        self._steps_to_screen = _SCREENED_AFTER
        self._wanted = 1
        self._state: NativeState | None = None
        self._runs = 0
        self.reset()
        _decoders.add(self)

    @property
    def model(self) -> NativeModel:
        """The weights, which other decoders may share."""
        return self._model

    @property
    def computes_by(self) -> str:
        """See `Decoder.computes_by`."""
        return self._model.described

    @property
    def reads_together(self) -> bool:
        """See `Decoder.reads_together`; a router that mixes the tokens of a run would mix those of several decoders."""
        return not self._limits.mixes_rows

    def fork(self) -> Self:
        """See `Decoder.fork`; runs of one model wait for each other, but for those of `predict_together`."""
        return type(self)(self._model, self._limits, self._cache, finds_best=self._finds_best, window=self.window)

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything; the caches are kept if the batch size stays."""
        self._progress.reset(batch_size)
        if self._state is not None and self._state.batch == batch_size:
            self._state.rewind(0)
            return
        self._state = None  # its memory is free before the next one's is taken
        # Before the state, since an interruption in between must not leave less room than a run of the state fills.
        self._logits = np.empty((batch_size, 1, self.vocab_size), np.float32)
        self._state = self._empty_state(batch_size)

    def _empty_state(self, batch_size: int) -> NativeState:
        return self._model.state(batch_size, self._cache, self.max_length, window=self.window)

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
        self._progress.check(input_ids)
        batch, new = input_ids.shape
        keep = min(num_logits_to_keep, new) or new
        logits = np.empty((batch, keep, self.vocab_size), np.float32)
        self._append_and_run(input_ids, attention_mask, Call(logits_to_keep=keep, logits=logits.ctypes.data))
        return logits

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`. Where the best tokens are found in less time, they alone are, unless more is asked."""
        self._progress.check(input_ids)
        call, predictions = self._next_prediction(input_ids)
        self._append_and_run(input_ids, attention_mask, call)
        return predictions()

    @classmethod
    def predict_together(cls, decoders: Sequence[Self], input_ids: Sequence[Array]) -> list[Prediction]:
        """See `Decoder.predict_together`."""
        if len(decoders) < 2 or not decoders[0].reads_together:
            return super().predict_together(decoders, input_ids)
        ids = [np.ascontiguousarray(each, np.int64) for each in input_ids]
        for decoder, each in zip(decoders, ids, strict=True):
            decoder._progress.check(each)
        lengths = [decoder.length for decoder in decoders]
        recorded = 0
        try:
            wanted = [decoder._next_prediction(each) for decoder, each in zip(decoders, ids, strict=True)]
            calls = [call for call, _ in wanted]
            states = []
            for decoder, each, call, length in zip(decoders, ids, calls, lengths, strict=True):
                states.append(decoder._state_behind(length))
                decoder._record(each.shape[1], None)
                recorded += 1
                call.tokens, call.ids = each.shape[1], each.ctypes.data
            with failing_weights():
                NativeState.run_together(states, calls)
        except BaseException:
            for decoder, length in zip(decoders[:recorded], lengths, strict=False):
                decoder._undo(length)
            raise
        return [predictions()[0] for _, predictions in wanted]

    def _next_prediction(self, input_ids: Array) -> tuple[Call, Callable[[], list[Prediction]]]:
        """Return a call that lacks its tokens, and what reads the prediction of each row from it once it has run."""
        batch = len(input_ids)
        count = min(self._wanted, self.vocab_size) if self._finds_best else 0
        if count and self._steps_to_screen:
            self._steps_to_screen -= 1
            if self._steps_to_screen == 0:
                with contextlib.suppress(RunFailed):  # no memory for it: every logit is computed, as before
                    self._model.screen()
        if not count:
            call = Call(logits_to_keep=1, logits=self._logits.ctypes.data)
            return call, lambda: [_Logits(self, row) for row in self._logits[:, 0]]
        tokens, best = np.empty((batch, count), np.int64), np.empty((batch, count), np.float32)

        def found() -> list[Prediction]:
            last = _LastTokens(self, input_ids[:, -1:])
            return [_Best(self, last, row, *pair) for row, pair in enumerate(zip(tokens, best, strict=True))]

        return Call(num_candidates=count, candidates=tokens.ctypes.data, candidate_logits=best.ctypes.data), found

    def _append_and_run(self, input_ids: Array, attention_mask: Array | None, call: Call) -> None:
        past = self.length
        mask = self._record(input_ids.shape[1], attention_mask)
        try:
            self._run(past, input_ids, None if attention_mask is None else mask, call)
        except BaseException:
            self._undo(past)
            raise

    def _record(self, new: int, attention_mask: Array | None) -> Array:
        """Count new tokens as read, and return their mask."""
        return self._progress.append(new, attention_mask)[0]

    def _undo(self, length: int) -> None:
        """Set record and caches back to `length` tokens, behind which a run has failed or was interrupted."""
        self.rewind(length)

    def _run(self, past: int, input_ids: Array, mask: Array | None, call: Call) -> None:
        """Read tokens behind the first `past` ones; `mask` has the shape of `input_ids`, since C relies on it."""
        state = self._state_behind(past)
        ids = np.ascontiguousarray(input_ids, np.int64)
        mask = None if mask is None else np.ascontiguousarray(mask, np.int64)
        call.tokens, call.ids = ids.shape[1], ids.ctypes.data
        call.mask = None if mask is None else mask.ctypes.data
        with failing_weights():
            state.run(call)

    def _state_behind(self, past: int) -> NativeState:
        """Return the caches for a run behind the first `past` tokens; predictions of earlier runs end."""
        state = self._present_state()
        if state.length > past:  # a run before was interrupted
            state.rewind(past)
        self._runs += 1
        return state

    def _logits_again(self, newest: Array) -> Array:
        """Return the logits [B, V] behind the newest token of every row, int64 [B, 1], by reading it again."""
        self._present_state()
        logits = np.empty((len(newest), 1, self.vocab_size), np.float32)
        last = self.length - 1
        mask = self._progress.mask[:, last : self.length]
        try:
            self._run(last, newest, mask, Call(logits_to_keep=1, logits=logits.ctypes.data))
        except BaseException:
            self.rewind(last)  # what is recorded is what the caches hold
            raise
        return logits[:, 0]

    def _present_state(self) -> NativeState:
        if self._state is None:
            raise DogeExportError(
                "there is no cache: the session was closed, or this process was forked from the one that began the "
                "answer; begin another answer, or load the folder again"
            )
        return self._state

    def _forget_other_process(self) -> None:
        """Drop the caches in a forked process, where the threads that fill them are missing."""
        self._state = None
        self._progress.reset(self.batch_size)
        self._steps_to_screen = _SCREENED_AFTER

    @property
    def state_form(self) -> str | None:
        """See `Decoder.state_form`."""
        return with_window(f"native {self._cache.name.lower()}", self.window)

    def state(self) -> dict[str, Array]:
        """See `Decoder.state`: the caches as the native decoder lays them out, uint8."""
        return {_CONTENT: self._present_state().content()}

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        content = state.get(_CONTENT)
        if state.keys() != {_CONTENT} or content is None or content.dtype != np.uint8 or content.ndim != 1:
            raise DogeExportError("the state has other arrays than the native decoder's: it is of another session")
        if length > self.max_length:
            raise DogeExportError(f"the state has {length} tokens, and this folder holds {self.max_length}")
        fresh = self._empty_state(1)
        try:
            fresh.restore(np.ascontiguousarray(content))
        except NativeError as error:
            raise DogeExportError(f"the state is of another session: {error}") from error
        if fresh.length != length:
            raise DogeExportError(f"the state has {length} ids and {fresh.length} tokens: it is of another session")
        self.reset()
        self._state = fresh
        self._record(length, None)

    @property
    def cache_bytes(self) -> int | None:
        """See `Decoder.cache_bytes`."""
        return self._present_state().bytes

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copy the (key, value) cache of every layer, each float32 [B, Hkv, slots, D]."""
        return self._present_state().cache()


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

    def __init__(self, decoder: NativeDecoder, input_ids: Array) -> None:
        self._decoder, self._ids, self._run = decoder, input_ids.copy(), decoder._runs
        self._logits: Array | None = None

    def logits(self) -> Array:
        """Return the logits of all rows, float32 [B, V].

        Raises:
            RuntimeError: the decoder has run again since.
        """
        if self._logits is None:
            if self._decoder._runs != self._run:
                raise RuntimeError("the decoder has run again, and its logits are those of another token")
            self._logits = self._decoder._logits_again(self._ids)
        return self._logits


def _wanted_for(count: int) -> int:
    """Return how many candidates to find for a sampler that chooses among `count`; 0 for all."""
    return _FEW if 0 < count < _FEW else 0


_decoders: weakref.WeakSet[NativeDecoder] = weakref.WeakSet()


def _after_fork() -> None:
    for decoder in _decoders:
        decoder._forget_other_process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
