"""What the decoders of onnxruntime's targets share."""

from __future__ import annotations

import onnxruntime

from doge_export.runtime.decoders.progress import CountingDecoder, Limits
from doge_export.runtime.graph import CACHE_TYPES


class GraphDecoder(CountingDecoder):
    """A session and its extents."""

    def __init__(self, session: onnxruntime.InferenceSession, limits: Limits) -> None:
        shapes = {value.name: value.shape for value in [*session.get_inputs(), *session.get_outputs()]}
        super().__init__(limits, shapes["logits"][2])
        self._session, self._shapes = session, shapes
        kinds = {value.name: value.type for value in session.get_inputs()}
        self._cache_types = {name: CACHE_TYPES[kind] for name, kind in kinds.items() if kind in CACHE_TYPES}
        _, self._kv_heads, _, self._head_dim = shapes["past_key_values.0.key"]
