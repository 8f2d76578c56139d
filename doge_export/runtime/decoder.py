"""The network behind a session: token ids in, logits out, with a cache between calls.

Knows no tokenizer and no sampling. `open_decoder` picks the decoder that a folder's target needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.runtime.graph import CACHE_TYPES, graph_file, open_graph

Array = np.ndarray


class Decoder(Protocol):
    """Runs a graph over a growing sequence, one or several rows at a time.

    Attributes:
        max_length: tokens a row may hold, prompt and answer together.
        chunkable_length: up to which length a prompt gives the same logits when it is read in pieces.
        vocab_size: ids run from 0 to vocab_size - 1.
    """

    max_length: int
    chunkable_length: int
    vocab_size: int

    @property
    def batch_size(self) -> int:
        """Rows now in the cache."""

    @property
    def length(self) -> int:
        """Tokens a row now has in the cache, padding included."""

    def reset(self, batch_size: int = 1) -> None:
        """Forget everything and make room for `batch_size` rows."""

    def rewind(self, length: int) -> None:
        """Forget every token from index `length` on."""

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """Append tokens and give their logits.

        Args:
            input_ids: int64 [B, S].
            attention_mask: int64 [B, S] of these tokens alone, 0 = padding; None where none is.
            num_logits_to_keep: how many of the last tokens' logits are wanted; 0 for all.

        Returns:
            float32 [B, S or num_logits_to_keep, V], the caller's own.

        Raises DogeExportError when the sequence outgrows max_length or an id is out of range.
        """

    def cache_snapshot(self) -> list[tuple[Array, Array]]:
        """Copies of the (key, value) cache of every layer, each [B, Hkv, length, D]."""


def open_decoder(
    folder: Path,
    manifest: dict[str, Any],
    *,
    precision: str | None = None,
    threads: int | None = None,
    providers: Sequence[Any] | None = None,
) -> Decoder:
    """The decoder of an exported folder.

    Args:
        folder: as `doge-export onnx` wrote it.
        manifest: its manifest.
        precision: of its graphs; by default float32.
        threads: of onnxruntime; by default what suits the graph's size, see `runtime.threads`.
        providers: onnxruntime's execution providers, CPU by default.

    An engine (target "tensorrt") has one precision, and is asked for neither threads nor providers.
    """
    from doge_export.runtime.canonical_decoder import CanonicalDecoder
    from doge_export.runtime.in_place_decoder import InPlaceDecoder
    from doge_export.runtime.portable_decoder import PortableDecoder

    kinds: dict[Any, Callable[[onnxruntime.InferenceSession, Limits], Decoder]] = {
        "onnxruntime": InPlaceDecoder,
        "portable": PortableDecoder,
        "canonical": CanonicalDecoder,
    }
    target = manifest.get("target")
    file = graph_file(folder, manifest, precision)
    if target == "tensorrt":
        from doge_export.trt.decoder import open_engine_decoder

        return open_engine_decoder(folder, manifest)
    if target not in kinds:
        raise DogeExportError(f"{folder} is for target {target!r}; this version runs {', '.join(kinds)}, tensorrt")
    graph = open_graph(folder, file, threads=threads, providers=providers)
    return kinds[target](graph, Limits.of(manifest))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a graph cannot tell of itself.

    `mixes_rows` is reference CDMoE routing, where the tokens that are read together route one another.
    """

    max_length: int
    chunkable_length: int
    mixes_rows: bool = False

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Limits:
        """As the export recorded them."""
        return cls(manifest["max_length"], manifest["chunkable_length"], manifest["cdmoe_routing"] == "reference")


class Progress:
    """Which tokens the cache holds: lengths, padding, and the positions that follow from them."""

    def __init__(self, max_length: int, vocab_size: int) -> None:
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.mask = np.zeros((0, max_length), dtype=np.int64)
        self.reset(1)

    def reset(self, batch_size: int) -> None:
        """An empty sequence of `batch_size` rows; `mask` stays the same array where they are as many as before."""
        self.batch_size, self.length = batch_size, 0
        if len(self.mask) == batch_size:
            self.mask[...] = 0
        else:
            self.mask = np.zeros((batch_size, self.max_length), dtype=np.int64)
        self.tokens = np.zeros((batch_size, 1), dtype=np.int64)

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        self.length = length
        self.tokens = self.mask[:, :length].sum(axis=1, keepdims=True)

    def check(self, input_ids: Array) -> None:
        """Raises DogeExportError unless the tokens fit behind the cached ones and are in the vocabulary."""
        batch, new = input_ids.shape
        if batch != self.batch_size:
            raise ValueError(f"{batch} rows given, the cache holds {self.batch_size}: reset first")
        if self.length + new > self.max_length:
            raise DogeExportError(
                f"{self.length + new} tokens are more than this export holds ({self.max_length}): "
                "shorten the prompt, or export again with a larger --max-length"
            )
        low, high = (int(input_ids[0, 0]),) * 2 if input_ids.size == 1 else (int(input_ids.min()), int(input_ids.max()))
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise DogeExportError(f"token id {wrong} is out of range: this model has ids 0 to {self.vocab_size - 1}")

    def append(self, new: int, attention_mask: Array | None) -> tuple[Array, Array]:
        """Count `new` tokens in. Gives their mask and positions, int64 [B, new]; a position counts real tokens."""
        mask = self.mask[:, self.length : self.length + new]
        mask[...] = 1 if attention_mask is None else attention_mask
        if new == 1 and attention_mask is None:  # every step of decoding: nothing to count
            self.length += 1
            positions = self.tokens
            self.tokens = positions + 1
            return mask, positions
        counted = self.tokens + np.cumsum(mask, axis=1)
        self.length += new
        self.tokens = counted[:, -1:]
        return np.ascontiguousarray(mask), np.maximum(counted - 1, 0)


class GraphDecoder:
    """What the decoders of all targets share: a session, its extents, and what the cache holds."""

    def __init__(self, session: onnxruntime.InferenceSession, limits: Limits) -> None:
        shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
        self._session, self._shapes = session, shapes
        kinds = {value.name: value.type for value in session.get_inputs()}
        self._cache_types = {name: CACHE_TYPES[kind] for name, kind in kinds.items() if kind in CACHE_TYPES}
        _, self._kv_heads, _, self._head_dim = shapes["past_key_values.0.key"]
        self.max_length, self.chunkable_length = limits.max_length, limits.chunkable_length
        self.vocab_size: int = shapes["logits"][2]
        self._progress = Progress(self.max_length, self.vocab_size)

    @property
    def batch_size(self) -> int:
        """Rows now in the cache."""
        return self._progress.batch_size

    @property
    def length(self) -> int:
        """Tokens a row now has in the cache."""
        return self._progress.length
