"""Requests of /v1/embeddings."""

from __future__ import annotations

import base64
import dataclasses
import threading
from typing import Any

from doge_export.runtime.feature_session import FeatureSession
from doge_export.runtime.prompts import text_rows
from doge_export.serve.api_error import ApiError
from doge_export.serve.fields import Fields

MOST = 2048
"""Texts of a request."""


@dataclasses.dataclass(frozen=True)
class EmbeddingRequest:
    """A request for vectors.

    Attributes:
        model: name of the model.
        texts: a text, token ids, or a list of those.
        is_base64: give each vector as the base64 of its little-endian float32 values, not as a list.
    """

    model: str
    texts: Any
    is_base64: bool


def embedding_request(body: Any) -> EmbeddingRequest:
    """Read a body of /v1/embeddings."""
    fields = Fields(body)
    model = fields.model()
    texts = fields.of((str, list), "input", "a text, token ids, or a list of those")
    if not texts:
        raise ApiError(400, "input is missing or empty: give at least one text", "invalid_value", "input")
    if isinstance(texts, list) and isinstance(texts[0], (str, list)) and len(texts) > MOST:
        raise ApiError(400, f"input has {len(texts)} texts, expected {MOST} at most", "invalid_value", "input")
    encoding = fields.any("encoding_format")
    fields.only("encoding_format", "float", "base64")
    fields.only("dimensions")
    fields.finish()
    return EmbeddingRequest(model, texts, encoding == "base64")


class Cancelled(Exception):
    """Nobody waits for the vectors."""


def embedded(session: FeatureSession, request: EmbeddingRequest, is_cancelled: threading.Event) -> dict[str, Any]:
    """Return the answer's object.

    Raises:
        Cancelled: `is_cancelled` was set before the end.
        DogeExportError: a text is empty or too long, or an id is out of range.
    """
    vocabulary = session.manifest.architecture["vocab_size"]
    rows = text_rows(request.texts, session.tokenizer, vocabulary, max_length=session.max_length, truncate=False)

    def progress(*_: Any) -> None:
        if is_cancelled.is_set():
            raise Cancelled

    vectors = session.embed(rows, on_progress=progress).astype("<f4", copy=False)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if request.is_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, rows))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "model": request.model, "data": data, "usage": usage}
