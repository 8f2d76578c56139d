"""Class names in a classifier's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doge_export.checkpoint.fields import shown
from doge_export.errors import DogeExportError


def parse_labels(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Read the names of the `count` classes in order: `id2label`, or LABEL_0, LABEL_1, ... as in transformers.

    Raises:
        DogeExportError: id2label does not name every class exactly once.
    """
    named = config.get("id2label")
    if named is None:
        return tuple(f"LABEL_{index}" for index in range(count))
    indices = {str(index): index for index in range(count)}
    if not isinstance(named, Mapping) or named.keys() != indices.keys():
        seen = f"{len(named)} names" if isinstance(named, Mapping) else shown(named)
        raise DogeExportError(
            f"config.json: id2label has {seen}, expected one for each of the {count} rows of the classification head"
        )
    if not all(isinstance(label, str) for label in named.values()):
        raise DogeExportError(f"config.json: id2label is {shown(named)}, expected texts")
    return tuple(named[index] for index in indices)
