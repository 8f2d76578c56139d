"""Decoder of the `canonical` target, whose graph is the one that was traced: it exists to prove that graph."""

from __future__ import annotations

from doge_export.runtime.decoders.growing import PortableDecoder
from doge_export.runtime.decoders.progress import Array


class CanonicalDecoder(PortableDecoder):
    """See `runtime.decoder.Decoder`.

    Beside keys and values, the scores of the cached tokens go in and come out, and padding among them is in those
    scores: the graph is told which of the new tokens are padding, and computes the logits of all of them.
    """

    def forward(self, input_ids: Array, attention_mask: Array | None = None, num_logits_to_keep: int = 0) -> Array:
        """See `Decoder.forward`."""
        return super().forward(input_ids, attention_mask)[:, -num_logits_to_keep:]

    def _masks(self, mask: Array, num_logits_to_keep: int) -> dict[str, Array]:
        return {"attention_mask": mask}
