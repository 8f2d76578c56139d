"""The network behind a session: token ids in, logits out, with a cache between calls.

Knows no tokenizer and no sampling. `open_decoder` picks the decoder that a folder's target needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.runtime.decoders.progress import Array, Limits
from doge_export.runtime.graph import graph_file, open_graph
from doge_export.runtime.prediction import Prediction


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

    def predict(self, input_ids: Array, attention_mask: Array | None = None) -> list[Prediction]:
        """Append tokens as `forward` does; what comes behind the last one of each row."""


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
    from doge_export.runtime.decoders.canonical import CanonicalDecoder
    from doge_export.runtime.decoders.growing import PortableDecoder
    from doge_export.runtime.decoders.in_place import InPlaceDecoder

    kinds: dict[Any, Callable[[onnxruntime.InferenceSession, Limits], Decoder]] = {
        "onnxruntime": InPlaceDecoder,
        "portable": PortableDecoder,
        "canonical": CanonicalDecoder,
    }
    target = manifest.get("target")
    file = graph_file(folder, manifest, precision)
    if target == "tensorrt":
        from doge_export.runtime.engine.engine_decoder import open_engine_decoder

        return open_engine_decoder(folder, manifest)
    if target not in kinds:
        raise DogeExportError(f"{folder} is for target {target!r}; this version runs {', '.join(kinds)}, tensorrt")
    graph = open_graph(folder, file, threads=threads, providers=providers)
    return kinds[target](graph, Limits.of(manifest))
