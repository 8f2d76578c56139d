"""Settings of an answer: the folder's generation_config.json, overridden by the caller's values."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError
from doge_export.runtime.files import read_json


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Settings of an answer.

    Names and defaults are those of transformers, except that the length is bounded by the model and not by 20.

    Attributes:
        do_sample: draw tokens at random; False takes the likeliest one.
        temperature: divisor of the logits, above 0.
        top_k: number of likeliest tokens to draw from; 0 for all.
        top_p: probability that the likeliest tokens to draw from add up to; 1 for all.
        min_p: least probability of a token, as a factor of the largest one; 0 for all.
        repetition_penalty: above 1 makes tokens seen before less likely; 1 changes nothing.
        max_new_tokens: most tokens of the answer; None for up to `max_length`.
        max_length: most tokens of prompt and answer together; None for as many as the export holds.
        eos_token_ids: ids that end an answer.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    max_length: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_folder(cls, folder: Path) -> GenerationConfig:
        """Read the settings of an exported folder: generation_config.json, and else the eos token of config.json.

        Raises:
            DogeExportError: a file is damaged, or a value is out of range.
        """
        file = folder / "generation_config.json"
        values = read_json(file)
        if values.get("eos_token_id") is None:
            values["eos_token_id"] = read_json(folder / "config.json").get("eos_token_id")
        if values.get("temperature") == 0:  # many published configs write greedy choice this way
            values |= {"temperature": None, "do_sample": False}
        known = {field.name for field in dataclasses.fields(cls)} | {"eos_token_id"}
        try:
            return cls()._replace({key: value for key, value in values.items() if key in known})
        except DogeExportError as error:
            raise DogeExportError(f"{file}: {error}") from error

    def override(self, **values: Any) -> GenerationConfig:
        """Return a copy of these settings with the `values` that are not None.

        A temperature, top_k, top_p or min_p turns sampling on unless `do_sample` is given; a temperature of 0 is
        greedy.

        Raises:
            DogeExportError: a value is out of range.
            TypeError: there is no setting of that name.
        """
        values = {key: value for key, value in values.items() if value is not None}
        unknown = values.keys() - {field.name for field in dataclasses.fields(self)} - {"eos_token_id"}
        if unknown:
            raise TypeError(f"unknown generation settings: {', '.join(sorted(unknown))}")
        if values.get("temperature") == 0 and not isinstance(values["temperature"], bool):
            values = {**values, "do_sample": False, "temperature": None}
        elif values.keys() & {"temperature", "top_k", "top_p", "min_p"}:
            values.setdefault("do_sample", True)
        return self._replace(values)

    def _replace(self, values: Mapping[str, Any]) -> GenerationConfig:
        values = {key: value for key, value in values.items() if value is not None}
        if "eos_token_id" in values:
            values["eos_token_ids"] = _ids(values.pop("eos_token_id"))
        config = dataclasses.replace(self, **values)
        config._check()
        return config

    def _check(self) -> None:
        _expect("do_sample", self.do_sample, isinstance(self.do_sample, bool), "true or false")
        _expect_number("temperature", self.temperature, 0, math.inf, "above 0", open_low=True)
        _expect_integer("top_k", self.top_k, 0, "0 (all) or more")
        _expect_number("top_p", self.top_p, 0, 1, "from 0 to 1")
        _expect_number("min_p", self.min_p, 0, 1, "from 0 to 1")
        _expect_number("repetition_penalty", self.repetition_penalty, 0, math.inf, "above 0", open_low=True)
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            if value is not None:
                _expect_integer(name, value, 1, "1 or more")


def is_integer(value: Any) -> bool:
    """Return whether `value` is an int or a NumPy integer; a bool is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Return an array or tensor as (nested) lists, one without axes as a number, and anything else as it is."""
    return np.asarray(value).tolist() if hasattr(value, "__array__") else value


def _ids(value: Any) -> tuple[int, ...]:
    value = plain(value)
    ids = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    for token_id in ids:
        _expect_integer("eos_token_id", token_id, 0, "a token id or a list of them")
    return tuple(int(token_id) for token_id in ids)


def _expect(name: str, value: Any, condition: bool, expected: str) -> None:
    if not condition:
        raise DogeExportError(f"{name} is {value!r}, expected {expected}")


def _expect_integer(name: str, value: Any, low: int, expected: str) -> None:
    _expect(name, value, is_integer(value) and value >= low, expected)


def _expect_number(name: str, value: Any, low: float, high: float, expected: str, open_low: bool = False) -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    _expect(name, value, is_number and (low < value if open_low else low <= value) and value <= high, expected)
