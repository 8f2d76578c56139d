"""References that tests share: what PyTorch says of a checkpoint and a batch is computed once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from doge_export.validation.oracle import Oracle


@pytest.fixture(autouse=True)
def load_oracle_anew(shared_references: Callable[..., Oracle]) -> Callable[..., Oracle]:
    """The real `load_oracle`; many tests spoil the subject and validate it against the same checkpoint and batches."""
    return shared_references
