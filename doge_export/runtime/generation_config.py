"""Settings of an answer: the folder's generation_config.json, overridden by the caller's values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.errors import DogeExportError
from doge_export.runtime.files import read_json
from doge_export.runtime.generation_fields import FIELDS, Applied, is_integer, is_number, plain, unsupported

__all__ = ["GenerationConfig", "is_integer", "plain"]

_TURN_SAMPLING_ON = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Settings of an answer.

    Names and defaults are those of transformers, except that the length is bounded by the model and not by 20;
    `generation_fields.FIELDS` says what becomes of every other field that transformers knows.

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
        min_new_tokens: tokens of the answer before which no eos token may come; wins over `min_length`.
        min_length: tokens of prompt and answer before which no eos token may come.
        top_h: fraction of the entropy that the likeliest tokens to draw from may have.
        typical_p: probability that the most typical tokens to draw from add up to; 1 for all.
        epsilon_cutoff: least probability of a token; 0 for all.
        eta_cutoff: least probability of a token, lower where many are likely; 0 for all.
        encoder_repetition_penalty: above 1 makes tokens of the prompt more likely.
        no_repeat_ngram_size: length of the sequences of ids that may come only once; 0 for none.
        encoder_no_repeat_ngram_size: length of the sequences of the prompt that the answer must not have; 0 for none.
        bad_words_ids: sequences of ids that never come.
        sequence_bias: sequences of ids, each with a number added to the score of its last id.
        suppress_tokens: ids that never come.
        begin_suppress_tokens: ids that an answer does not begin with.
        forced_bos_token_id: id after a prompt of one token.
        forced_eos_token_ids: ids of which one ends an answer that reaches its length.
        exponential_decay_length_penalty: new tokens after which an eos token becomes likelier, and the factor.
        remove_invalid_values: replace NaN and infinite logits instead of failing.
        stop_strings: texts before which an answer ends, where the caller names none.
        names_eos: True if `eos_token_ids` was given, even as none; else the tokenizer's counts.
        notes: sentences about fields of the file that are not supported.
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
    min_new_tokens: int = 0
    min_length: int = 0
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_ids: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    stop_strings: tuple[str, ...] = ()
    names_eos: bool = dataclasses.field(default=False, compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int | None = None) -> GenerationConfig:
        """Read the settings of a folder: generation_config.json, and else the eos token of config.json.

        Args:
            folder: an exported folder or a checkpoint.
            vocab_size: number of ids of the model; None to leave ids beyond it to `check_ids`.

        Raises:
            DogeExportError: a file is damaged, or a value is out of range; the message names the file.
        """
        file = folder / "generation_config.json"
        values = read_json(file)
        notes = tuple(f"{file}: {note}; it is ignored" for note in unsupported(values))
        if _is_zero(values.get("temperature")):  # many published configs write greedy choice this way
            values |= {"temperature": None, "do_sample": False}
        known = {name: value for name, value in values.items() if isinstance(FIELDS.get(name), Applied)}
        config = dataclasses.replace(cls(), notes=notes)._from_file(file, known, vocab_size)
        if values.get("eos_token_id") is None:
            model_file = folder / "config.json"
            config = config._from_file(model_file, {"eos_token_id": read_json(model_file).get("eos_token_id")}, None)
        return config

    def override(self, **values: Any) -> GenerationConfig:
        """Return a copy of these settings with the `values` that are not None.

        A temperature, top_k, top_p, min_p or another filter of sampling turns it on unless `do_sample` is given; a
        temperature of 0 is greedy.

        Args:
            values: settings by transformers' names.

        Raises:
            DogeExportError: a value is out of range, or asks for something that is not supported.
            TypeError: there is no setting of that name.
        """
        values = {key: value for key, value in values.items() if value is not None}
        unknown = values.keys() - FIELDS.keys()
        if unknown:
            raise TypeError(f"unknown generation settings: {', '.join(sorted(unknown))}")
        refused = unsupported(values)
        if refused:
            raise DogeExportError(f"{refused[0]}: leave it out")
        if _is_zero(values.get("temperature")):
            values = {**values, "do_sample": False, "temperature": None}
        elif any(name in values for name in _TURN_SAMPLING_ON):
            values.setdefault("do_sample", True)
        return self._replace(values)

    def check_ids(self, vocab_size: int) -> None:
        """Refuse ids that the model does not have where transformers does; others can never come and do no harm.

        Raises:
            DogeExportError: an id of `sequence_bias`, `bad_words_ids` or a forced token is `vocab_size` or more.
        """
        forced_bos = () if self.forced_bos_token_id is None else (self.forced_bos_token_id,)
        for name, ids in (
            ("sequence_bias", [token_id for sequence, _ in self.sequence_bias for token_id in sequence]),
            ("bad_words_ids", [token_id for sequence in self.bad_words_ids for token_id in sequence]),
            ("forced_bos_token_id", forced_bos),
            ("forced_eos_token_id", self.forced_eos_token_ids),
        ):
            largest = max(ids, default=0)
            if largest >= vocab_size:
                raise DogeExportError(f"{name} has token id {largest}: the model has ids from 0 to {vocab_size - 1}")

    def _from_file(self, file: Path, values: Mapping[str, Any], vocab_size: int | None) -> GenerationConfig:
        try:
            config = self._replace(values)
            if vocab_size is not None:
                config.check_ids(vocab_size)
        except DogeExportError as error:
            raise DogeExportError(f"{file}: {error}") from error
        return config

    def _replace(self, values: Mapping[str, Any]) -> GenerationConfig:
        checked: dict[str, Any] = {}
        for name, value in values.items():
            field = FIELDS.get(name)
            if value is None or not isinstance(field, Applied):
                continue
            checked[_RENAMED.get(name, name)] = field.check(name, value)
        if "eos_token_ids" in checked:
            checked["names_eos"] = True
        return dataclasses.replace(self, **checked)


_RENAMED = {"eos_token_id": "eos_token_ids", "forced_eos_token_id": "forced_eos_token_ids"}
"""Fields that hold several ids here; transformers' names are in the singular."""


def _is_zero(value: Any) -> bool:
    return is_number(value) and value == 0
