"""Probabilities of logits, and the divergence of two distributions, in NumPy."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits [n], in their dtype."""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis, float64 in the shape of `logits`."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl_divergence(reference: np.ndarray, subject: np.ndarray) -> np.ndarray:
    """Return KL(reference || subject) in nats.

    Args:
        reference: log-probabilities [..., V].
        subject: log-probabilities of the same shape.

    Returns:
        [...], at least 0: rounding may leave the sum just below zero where both are equal.
    """
    return np.maximum((np.exp(reference) * (reference - subject)).sum(-1), 0.0)
