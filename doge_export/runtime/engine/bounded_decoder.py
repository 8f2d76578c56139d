"""The decoder of an engine with bounded caches: memory and time of a token do not depend on the length of the text.

A run changes the caches for good once they are full: the key that it drops is gone. So a step cannot be forgotten, nor
the same tokens be read twice; whoever wants either needs a copy of the slots, which lies in the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.decoder import Array, SequenceLimits
from doge_export.runtime.decoders.marks import Mark, Marks, no_way_back
from doge_export.runtime.decoders.progress import Lengths
from doge_export.runtime.engine.engine_decoder import EngineDecoder, Packed
from doge_export.runtime.engine.open_engine import open_engine
from doge_export.runtime.engine.runner import Runner
from doge_export.runtime.prediction import Prediction


class BoundedEngineDecoder(EngineDecoder):
    """Decoder over slots; it is set back to a length up to which no key was dropped, or to one that was marked."""

    _record_type = Lengths
    _progress: Lengths

    def __init__(self, runner: Runner, limits: SequenceLimits) -> None:
        super().__init__(runner, limits)
        self._marks: Marks[Mapping[str, Array]] = Marks()

    @property
    def slots(self) -> int:
        """Keys that each layer and head now holds."""
        return min(self._most_tokens, self._slots)

    def reset(self, batch_size: int = 1) -> None:
        """See `EngineDecoder.reset`."""
        super().reset(batch_size)
        self._marks.clear()

    def mark(self) -> None:
        """See `Decoder.mark`. Costs a copy of the slots to the host."""
        if self.batch_size == 1:
            caches = self._runner.buffers.caches(1)
            self._marks.add(Mark(self.length, self._progress.tokens, self._holds_all, caches))

    def recallable(self, length: int) -> int:
        """See `Decoder.recallable`."""
        return length if length == self.length or self._holds_all else self._marks.recallable(length)

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on; slots are in the order of the text until the first key leaves.

        Raises:
            DogeExportError: keys of the first `length` tokens were dropped, and no state of that length is kept.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache has read {self.length} tokens")
        if length == self.length:
            return
        if not self._holds_all and length:
            mark = self._marks.of(length)
            if mark is None:
                raise no_way_back(self.length, length)
            self._runner.buffers.write_caches(mark.content)
        self._best_next = None
        padding = self.length - self._progress.tokens  # on the left of each row
        self._progress.restore(length, (length - padding).clip(min=0))
        self._marks.forget_behind(length)

    def _cache(self, name: str) -> Array:
        if self._holds_all and self.length <= self._slots:
            return super()._cache(name)
        # Once a key was dropped, slots are in no order of the text: nothing says which token they are of.
        return self._runner.buffers.cache(f"past_key_values.{name}", self.batch_size)[:, :, : self.slots].copy()

    def restore(self, state: Mapping[str, Array], length: int) -> None:
        """See `Decoder.restore`."""
        super().restore(state, length)
        self.mark()

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        self._check_whole(input_ids.shape[1])
        return super().forward(input_ids, attention_mask, num_logits_to_keep)

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """See `Decoder.predict`."""
        self._check_whole(input_ids.shape[1])
        return super().predict(input_ids, attention_mask)

    def _check_whole(self, new: int) -> None:
        """Refuse a prompt that must be read whole, and is longer than a run."""
        longest = self._runner.buffers.longest
        if new > longest and self.length + new > self.chunkable_length:
            raise DogeExportError(
                f"{new} tokens are more than this engine reads at a time ({longest}), and beyond "
                f"{self.chunkable_length} tokens a prompt of this model must be read whole: shorten it, or build again "
                f"with --max-prompt {new}"
            )

    @property
    def _most_tokens(self) -> int:
        return int(self._progress.tokens.max())

    @property
    def _holds_all(self) -> bool:
        """True if no key has been dropped yet."""
        return self._most_tokens <= self._slots

    @property
    def _may_look_ahead(self) -> bool:
        return self._most_tokens < self._slots and super()._may_look_ahead

    def _append(self, new: int, attention_mask: Array | None) -> Array:
        mask, _, tokens = self._progress.after(new, attention_mask)
        self._progress.restore(self.length + new, tokens)
        return mask

    def _before_again(self, rows: Packed) -> Callable[[], None] | None:
        """See `EngineDecoder._before_again`: as long as there are free slots, new keys take the same ones again."""
        if not rows.past.any() or (rows.past + rows.new).max() <= self._slots:
            return None
        buffers = self._runner.buffers
        before = buffers.caches(len(rows.past))
        return lambda: buffers.write_caches(before)


def open_engine_decoder(folder: Path, limits: SequenceLimits, allow_host_code: bool = False) -> EngineDecoder:
    """Open the decoder of a folder that `doge-export trt` wrote. Raises what `open_engine` raises."""
    runner = Runner(open_engine(folder, allow_host_code))
    return (BoundedEngineDecoder if runner.sidecar.is_bounded else EngineDecoder)(runner, limits)
