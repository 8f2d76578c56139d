"""What a client may take of the server: seconds, bytes, connections."""

from __future__ import annotations

import dataclasses

LARGEST_BODY = 4 * 2**20
"""Bytes of a request's body."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        request_seconds: most seconds of a request, from its body to the end of its answer.
        head_seconds: seconds in which the head of a request must have come, from its first byte or the connection on.
        body_seconds: seconds in which a body must have come, and in which a client must take a part of a stream.
        idle_seconds: seconds that a connection is kept for a next request.
        body_bytes: bytes of a body. 16 times as many are read of a larger one, so that its sender sees the refusal.
        connections: connections at once.
    """

    request_seconds: float = 600
    head_seconds: float = 15
    body_seconds: float = 30
    idle_seconds: int = 30
    body_bytes: int = LARGEST_BODY
    connections: int = 512
