"""The difference between a graph and the float32 one, on text that neither was calibrated with."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from doge_export.numerics import kl_divergence, log_softmax
from doge_export.quantization.stretches import Limits, Stretch, stretches
from doge_export.quantization.texts import Texts
from doge_export.quantization.whole import WholeTexts

_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Quality:
    """The quality of a graph, measured against the float32 graph.

    Divergences are Kullback-Leibler's of the next token, in nats, float32 || this file. For hidden states, which are no
    distribution, 1 - cosine takes its place.

    Attributes:
        text: origin of the text.
        positions: number of tokens (for classification, of texts) that were compared.
        kl_mean: mean divergence in the stretch where it is largest.
        kl_p99: its 99th percentile there.
        kl_standard_error: standard error of `kl_mean`.
        argmax_agreement: share of positions with the same argmax; None for hidden states.
        perplexity: of the text, by this file; None where the graph is no language model.
        perplexity_ratio: `perplexity` divided by that of the float32 file.
        limit: largest `kl_mean` that passes there.
        stretches: divergences by position, for texts of each length.
        max_length: tokens that the folder holds; None where that is not known.
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
    stretches: tuple[Stretch, ...] = ()
    max_length: int | None = None

    @property
    def judged_length(self) -> int:
        """Tokens of the longest text: nothing is known of positions behind it."""
        return max((stretch.length for stretch in self.stretches), default=0)

    @property
    def passed(self) -> bool:
        """Return whether every stretch keeps its limit; NaN never does."""
        return all(stretch.passed for stretch in self.stretches)

    @property
    def failed(self) -> Stretch | None:
        """The stretch that is furthest beyond its limit; None if all keep theirs."""
        failed = [stretch for stretch in self.stretches if not stretch.passed]
        return max(failed, key=_excess) if failed else None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; infinity and NaN become None."""
        values = _finite(dataclasses.asdict(self))
        parts = [_finite(dataclasses.asdict(stretch)) for stretch in self.stretches]
        return values | {"stretches": parts, "judged_length": self.judged_length}

    def summary_line(self) -> str:
        """Return the numbers in one line for people."""
        worst = max(self.stretches, key=_divergence)
        parts = [
            f"KL {self.kl_mean:.3g} ± {self.kl_standard_error:.1g} at tokens {worst.first}-{worst.end - 1} "
            f"(limit {self.limit:g}), 99 % {self.kl_p99:.3g}"
        ]
        if self.argmax_agreement is None:
            parts[0] = parts[0].replace("KL", "1 - cosine", 1)
        else:
            parts.append(f"same argmax {self.argmax_agreement:.2%}")
        if self.perplexity_ratio is not None:
            parts.append(f"perplexity {self.perplexity_ratio - 1:+.2%}")
        reach = ""
        if self.max_length is not None and self.judged_length < self.max_length:
            reach = f"; judged up to token {self.judged_length} of {self.max_length}"
        return f"{', '.join(parts)}; {self.stretch_lines()[-1]}{reach}; {self.positions} positions, {self.text}"

    def stretch_lines(self) -> list[str]:
        """Return the divergences by position for people, a line for each length of texts."""
        lines = []
        for length, group in itertools.groupby(self.stretches, lambda stretch: stretch.length):
            by_position = ", ".join(f"{part.first}-{part.end - 1} {part.kl_mean:.2g}" for part in group)
            lines.append(f"texts of {length} tokens, mean at tokens {by_position}")
        return lines


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


def _divergence(stretch: Stretch) -> float:
    return math.inf if math.isnan(stretch.kl_mean) else stretch.kl_mean


def _excess(stretch: Stretch) -> float:
    return _divergence(stretch) / max(stretch.limit, 1e-30)


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """Measurements of one text.

    Attributes:
        tokens: number of tokens.
        kl: divergence at each position, float64 [S].
        same: equal argmax, bool [S].
        reference_nll: negative log-likelihood of each next token by the float32 file, [S - 1]; empty if nothing is
            predicted.
        nll: the same by the measured file.
    """

    tokens: int
    kl: np.ndarray
    same: np.ndarray
    reference_nll: np.ndarray
    nll: np.ndarray


def measure(
    reference: WholeTexts,
    subject: WholeTexts,
    texts: Texts | Sequence[Texts],
    limit: float | Limits,
    on_progress: Callable[[int], object] | None = None,
) -> Quality:
    """Run both graphs over the texts and compare them.

    Args:
        reference: the float32 graph.
        subject: the graph to measure.
        texts: the texts, or texts of several lengths, of which each has its own stretches.
        limit: largest mean divergence of a stretch that passes.
        on_progress: called with 1 after each text.
    """
    compare = _hidden_row if reference.output == "last_hidden_state" else _logits_row
    limits = limit if isinstance(limit, Limits) else Limits(limit, limit)
    groups: list[list[_Row]] = []
    for group in [texts] if isinstance(texts, Texts) else texts:
        groups.append([])
        for ids in group.rows:
            (expected,), (found,) = reference.run(ids), subject.run(ids)
            groups[-1].append(compare(np.atleast_2d(expected[0]), np.atleast_2d(found[0]), ids))
            if on_progress is not None:
                on_progress(1)
    origin = (texts if isinstance(texts, Texts) else texts[0]).origin
    return _summed(groups, origin, limits, ranked=reference.output != "last_hidden_state")


def _summed(groups: Sequence[Sequence[_Row]], origin: str, limits: Limits, *, ranked: bool) -> Quality:
    same, reference_nll, nll = (
        np.concatenate([getattr(row, name) for rows in groups for row in rows])
        for name in ("same", "reference_nll", "nll")
    )
    parts = [
        part
        for rows in groups
        for part in stretches([(row.tokens, row.kl, row.nll - row.reference_nll) for row in rows], limits)
    ]
    worst = max(parts, key=_divergence)
    return Quality(
        text=origin,
        positions=len(same),
        kl_mean=worst.kl_mean,
        kl_p99=worst.kl_p99,
        kl_standard_error=worst.kl_standard_error,
        argmax_agreement=float(same.mean()) if ranked else None,
        perplexity=float(np.exp(nll.mean())) if nll.size else None,
        perplexity_ratio=float(np.exp(nll.mean() - reference_nll.mean())) if nll.size else None,
        limit=worst.limit,
        stretches=tuple(parts),
    )


def _logits_row(expected: np.ndarray, found: np.ndarray, ids: np.ndarray) -> _Row:
    """Compare logits [S, V] of a text, or logits [1, labels] of its class."""
    predicts = len(expected) == len(ids) and len(ids) > 1
    kls, same, reference_nll, nll = [], [], [], []
    for start in range(0, len(expected), _CHUNK):  # float64, and several times: by rows, since vocabularies are large
        p, q = log_softmax(expected[start : start + _CHUNK]), log_softmax(found[start : start + _CHUNK])
        kls.append(kl_divergence(p, q))
        same.append(p.argmax(-1) == q.argmax(-1))
        following = ids[start + 1 : start + 1 + len(p)] if predicts else ids[:0]
        here = np.arange(len(following))
        reference_nll.append(-p[here, following])
        nll.append(-q[here, following])
    return _Row(len(ids), *(np.concatenate(parts) for parts in (kls, same, reference_nll, nll)))


def _hidden_row(expected: np.ndarray, found: np.ndarray, ids: np.ndarray) -> _Row:
    """Compare hidden states [S, H]."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    none = np.empty(0)
    return _Row(len(ids), np.maximum(1 - cosine, 0), np.ones(len(a), bool), none, none)
