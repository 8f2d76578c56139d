"""The difference between a graph and the float32 one, on text that neither was calibrated with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from doge_export.numerics import kl_divergence, log_softmax
from doge_export.quantization.texts import Texts
from doge_export.quantization.whole import WholeTexts


@dataclasses.dataclass(frozen=True)
class Quality:
    """The quality of a graph, measured against the float32 graph.

    Attributes:
        text: origin of the text.
        positions: number of tokens (for classification, of texts) that were compared.
        kl_mean: mean Kullback-Leibler divergence of the next token, in nats, float32 || this file. For hidden states,
            which are no distribution, 1 - cosine takes its place.
        kl_p99: its 99th percentile.
        kl_standard_error: standard error of `kl_mean`.
        argmax_agreement: share of positions with the same argmax; None for hidden states.
        perplexity: of the text, by this file; None where the graph is no language model.
        perplexity_ratio: `perplexity` divided by that of the float32 file.
        limit: largest `kl_mean` that passes.
    """

    text: str
    positions: int
    kl_mean: float
    kl_p99: float
    kl_standard_error: float
    argmax_agreement: float | None
    perplexity: float | None
    perplexity_ratio: float | None
    limit: float

    @property
    def passed(self) -> bool:
        """Return whether the limit is kept; NaN never is."""
        return self.kl_mean <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; infinity and NaN become None."""
        values = dataclasses.asdict(self)
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}

    def summary_line(self) -> str:
        """Return the numbers in one line for people."""
        parts = [f"KL {self.kl_mean:.3g} ± {self.kl_standard_error:.1g} (limit {self.limit:g}), 99 % {self.kl_p99:.3g}"]
        if self.argmax_agreement is None:
            parts[0] = parts[0].replace("KL", "1 - cosine", 1)
        else:
            parts.append(f"same argmax {self.argmax_agreement:.2%}")
        if self.perplexity_ratio is not None:
            parts.append(f"perplexity {self.perplexity_ratio - 1:+.2%}")
        return f"{', '.join(parts)}; {self.positions} positions, {self.text}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """Measurements of one text.

    Attributes:
        kl: divergence at each position, float64 [S].
        same: equal argmax, bool [S].
        reference_nll: negative log-likelihood of each next token by the float32 file, [S - 1]; empty if nothing is
            predicted.
        nll: the same by the measured file.
    """

    kl: np.ndarray
    same: np.ndarray
    reference_nll: np.ndarray
    nll: np.ndarray


def measure(
    reference: WholeTexts,
    subject: WholeTexts,
    texts: Texts,
    limit: float,
    on_progress: Callable[[int], object] | None = None,
) -> Quality:
    """Run both graphs over the texts and compare them.

    Args:
        reference: the float32 graph.
        subject: the graph to measure.
        texts: the texts.
        limit: largest mean divergence that passes.
        on_progress: called with 1 after each text.
    """
    compare = _hidden_row if reference.output == "last_hidden_state" else _logits_row
    rows = []
    for ids in texts.rows:
        (expected,), (found,) = reference.run(ids), subject.run(ids)
        rows.append(compare(np.atleast_2d(expected[0]), np.atleast_2d(found[0]), ids))
        if on_progress is not None:
            on_progress(1)
    return _summed(rows, texts, limit, ranked=reference.output != "last_hidden_state")


def _summed(rows: Sequence[_Row], texts: Texts, limit: float, *, ranked: bool) -> Quality:
    kl, same, reference_nll, nll = (
        np.concatenate([getattr(row, field.name) for row in rows]) for field in dataclasses.fields(_Row)
    )
    finite = bool(np.isfinite(kl).all())
    predicts = nll.size > 0
    return Quality(
        text=texts.origin,
        positions=int(kl.size),
        kl_mean=float(kl.mean()) if finite else math.nan,
        kl_p99=float(np.quantile(kl, 0.99)) if finite else math.nan,
        kl_standard_error=float(kl.std(ddof=1) / math.sqrt(kl.size)) if finite and kl.size > 1 else math.nan,
        argmax_agreement=float(same.mean()) if ranked else None,
        perplexity=float(np.exp(nll.mean())) if predicts else None,
        perplexity_ratio=float(np.exp(nll.mean() - reference_nll.mean())) if predicts else None,
        limit=limit,
    )


def _logits_row(expected: np.ndarray, found: np.ndarray, ids: np.ndarray) -> _Row:
    """Compare logits [S, V] of a text, or logits [1, labels] of its class."""
    p, q = log_softmax(expected), log_softmax(found)
    kl = kl_divergence(p, q)
    predicts = len(p) == len(ids) and len(ids) > 1
    here, following = np.arange(len(ids) - 1 if predicts else 0), ids[1:] if predicts else ids[:0]
    return _Row(kl, p.argmax(-1) == q.argmax(-1), -p[here, following], -q[here, following])


def _hidden_row(expected: np.ndarray, found: np.ndarray, ids: np.ndarray) -> _Row:
    """Compare hidden states [S, H]."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    none = np.empty(0)
    return _Row(np.maximum(1 - cosine, 0), np.ones(len(a), bool), none, none)
