"""Base of the decoders that onnxruntime runs."""

from __future__ import annotations

from typing import Self

import onnxruntime

from doge_export.runtime.decoders.decoder import Decoder, SequenceLimits, with_window
from doge_export.runtime.graph import CACHE_TYPES


class GraphDecoder(Decoder):
    """Decoder over an onnxruntime session, with the shapes and cache types read from its inputs."""

    def __init__(self, session: onnxruntime.InferenceSession, limits: SequenceLimits) -> None:
        shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
        super().__init__(limits, shapes["logits"][2])
        self._session, self._shapes = session, shapes
        kinds = {value.name: value.type for value in session.get_inputs()}
        self._cache_types = {name: CACHE_TYPES[kind] for name, kind in kinds.items() if kind in CACHE_TYPES}
        _, self._kv_heads, _, self._head_dim = shapes["past_key_values.0.key"]

    @property
    def state_form(self) -> str | None:
        """See `Decoder.state_form`."""
        return with_window("graph", self.window)

    def fork(self) -> Self:
        """See `Decoder.fork`; runs of one onnxruntime session may overlap."""
        return type(self)(self._session, self._limits)
