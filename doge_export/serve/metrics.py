"""Numbers of a server, in the text format of Prometheus."""

from __future__ import annotations

import bisect
import collections
from collections.abc import Iterator, Mapping

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms' buckets."""


class Counter:
    """A number for each set of labels, that only grows.

    Args:
        name: as Prometheus reads it.
        help: one line.
        labels: names of the labels.
    """

    def __init__(self, name: str, help: str, *labels: str) -> None:
        self._name, self._help, self._labels = name, help, labels
        self._values: dict[tuple[str, ...], int] = collections.defaultdict(int, {} if labels else {(): 0})

    def add(self, *labels: object, more: int = 1) -> None:
        """Count."""
        self._values[tuple(map(str, labels))] += more

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        yield from _head(self._name, self._help, "counter")
        for values, number in sorted(self._values.items()):
            yield f"{self._name}{_labels(dict(zip(self._labels, values, strict=True)))} {number}"


class Histogram:
    """Seconds that something took.

    Args:
        name: as Prometheus reads it.
        help: one line.
    """

    def __init__(self, name: str, help: str) -> None:
        self._name, self._help = name, help
        self._counts = [0] * (len(SECONDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count a time."""
        self._counts[bisect.bisect_left(SECONDS, seconds)] += 1
        self._sum += seconds

    def lines(self) -> Iterator[str]:
        """Yield the lines."""
        yield from _head(self._name, self._help, "histogram")
        below = 0
        for bound, count in zip([*map(str, SECONDS), "+Inf"], self._counts, strict=True):
            below += count
            yield f'{self._name}_bucket{{le="{bound}"}} {below}'
        yield f"{self._name}_sum {self._sum:.6f}"
        yield f"{self._name}_count {below}"


class Metrics:
    """What is counted; used by the event loop's thread alone.

    Attributes:
        requests: answered requests by path and status; 499 for clients that went away before an answer.
        request_seconds: time from a request's head to the end of its answer.
        first_token_seconds: time from a request's head to its first token.
        prompt_tokens: tokens read.
        written_tokens: tokens written.
        answers: answers by what ended them.
    """

    def __init__(self) -> None:
        self.requests = Counter("doge_requests_total", "Requests by path and status.", "path", "status")
        self.request_seconds = Histogram("doge_request_seconds", "Time from a request's head to its answer's end.")
        self.first_token_seconds = Histogram(
            "doge_first_token_seconds", "Time from a request's head to its first token."
        )
        self.prompt_tokens = Counter("doge_prompt_tokens_total", "Tokens of prompts.")
        self.written_tokens = Counter("doge_tokens_written_total", "Tokens of answers.")
        self.answers = Counter("doge_answers_total", "Answers by what ended them.", "ended")

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return all lines.

        Args:
            gauges: further numbers by name: help and value.
        """
        lines: list[str] = []
        for name, (help, value) in gauges.items():
            lines += [*_head(name, help, "gauge"), f"{name} {value}"]
        for each in vars(self).values():
            lines += each.lines()
        return "\n".join(lines) + "\n"


def _head(name: str, help: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _labels(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in values.items()) + "}" if values else ""
