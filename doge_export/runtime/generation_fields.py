"""What becomes of every field of transformers' GenerationConfig, in one table.

A field is applied (with a check of its value), or is without effect on which tokens are written here, or is not
supported, in which case a value other than its neutral ones is refused from a caller and told of a file. A field that
transformers does not know either is ignored, as it ignores it.

-1 is taken as others mean it: transformers, vLLM and llama.cpp write it for "none", "all" or "no limit".
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError

Check = Callable[[str, Any], Any]
"""Takes the name and the value of a field, returns the value as `GenerationConfig` holds it, or raises."""

LARGEST_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Applied:
    """A field that is applied as transformers applies it."""

    check: Check


@dataclasses.dataclass(frozen=True)
class NoEffect:
    """A field that changes no token here."""

    why: str


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """A field whose other values than `neutral` would change the answer, in a way that is not supported."""

    neutral: tuple[Any, ...]
    without: str


def is_integer(value: Any) -> bool:
    """Return whether `value` is an int or a NumPy integer; a bool is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number, of Python or NumPy; a bool is not."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def plain(value: Any) -> Any:
    """Return an array or tensor as (nested) lists, one without axes as a number, and anything else as it is."""
    return np.asarray(value).tolist() if hasattr(value, "__array__") else value


def wrong(name: str, value: Any, expected: str) -> DogeExportError:
    """Return the error for a value; a long value is shortened."""
    return DogeExportError(f"{name} is {_shown(value)}, expected {expected}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    return reprlib.repr(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise wrong(name, value, "true or false")
    return bool(value)


def _integer(low: int, expected: str, minus_one: int | None) -> Check:
    def check(name: str, value: Any) -> int | None:
        if is_integer(value) and value == -1:
            return minus_one
        if not is_integer(value) or value < low:
            raise wrong(name, value, expected)
        return int(value)

    return check


def _number(low: float, high: float, expected: str, *, open_low: bool = False) -> Check:
    def check(name: str, value: Any) -> float:
        if not is_number(value) or not (low < value if open_low else low <= value) or value > high:
            raise wrong(name, value, expected)
        return float(value)

    return check


def _penalty(name: str, value: Any) -> float:
    smallest, largest = map(float, (np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max))
    if not is_number(value) or not smallest <= value <= largest:  # it divides and multiplies float32 numbers
        raise wrong(name, value, "above 0 (1 changes nothing)")
    return float(value)


def _id_list(name: str, value: Any, expected: str, *, drop_minus_one: bool = False) -> tuple[int, ...]:
    value = plain(value)
    ids = value if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    if drop_minus_one:
        ids = [token_id for token_id in ids if not (is_integer(token_id) and token_id == -1)]
    if not all(is_integer(token_id) and 0 <= token_id <= LARGEST_ID for token_id in ids):
        raise wrong(name, value, expected)
    return tuple(int(token_id) for token_id in ids)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    value = plain(value)
    if is_integer(value) and value == -1:
        return ()
    return _id_list(name, value, "a token id or a list of them, or -1 for none")


def _suppressed(name: str, value: Any) -> tuple[int, ...]:
    return _id_list(name, value, "a list of token ids", drop_minus_one=True)  # -1 is the id of no token


def _id(name: str, value: Any) -> int | None:
    value = plain(value)
    if is_integer(value) and value == -1:
        return None
    if not is_integer(value) or not 0 <= value <= LARGEST_ID:
        raise wrong(name, value, "a token id, or -1 for none")
    return int(value)


def _sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    expected = "a list of lists of token ids, none of them empty"
    value = plain(value)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise wrong(name, value, expected)
    return tuple(_sequence(name, ids, value, expected) for ids in value)


def _sequence(name: str, ids: Any, value: Any, expected: str) -> tuple[int, ...]:
    ids = plain(ids)
    if not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)) or not ids:
        raise wrong(name, value, expected)
    return _id_list(name, ids, expected)


def _biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    expected = "a list of [token ids, bias] with biases that are numbers"
    pairs = list(value.items()) if isinstance(value, Mapping) else plain(value)
    if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)):
        raise wrong(name, value, expected)
    found: dict[tuple[int, ...], float] = {}
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, (str, bytes)) or len(pair) != 2:
            raise wrong(name, value, expected)
        ids, bias = pair
        is_minus_infinity = isinstance(bias, float) and bias == -math.inf
        if not is_minus_infinity and not (is_number(bias) and abs(bias) <= float(np.finfo(np.float32).max)):
            raise wrong(name, value, expected)
        found[_sequence(name, ids, value, expected)] = float(bias)
    return tuple(found.items())


def _decay(name: str, value: Any) -> tuple[int, float]:
    value = plain(value)
    is_pair = isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) == 2
    if not is_pair or not is_integer(value[0]) or not is_number(value[1]) or value[0] < 0 or value[1] <= 0:
        raise wrong(name, value, "[number of new tokens after which it begins, factor above 0]")
    return int(value[0]), float(value[1])


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise wrong(name, value, "a text or a list of texts, none of them empty")
    return tuple(texts)


_SPEED = NoEffect("speed or memory of transformers' own run")
_OUTPUT = NoEffect("what transformers' generate returns beside the tokens")
_BEAMS = NoEffect("only beam search reads it")
_ID = NoEffect("prompts come with their tokens, and rows of a batch are padded by the runtime")
_DRAFT = NoEffect("speculative decoding: the same tokens, sooner")

FIELDS: Mapping[str, Applied | NoEffect | Unsupported] = {
    # length
    "max_length": Applied(_integer(1, "1 or more", None)),
    "max_new_tokens": Applied(_integer(1, "1 or more", None)),
    "min_length": Applied(_integer(0, "0 or more", 0)),
    "min_new_tokens": Applied(_integer(0, "0 or more", 0)),
    "stop_strings": Applied(_texts),
    "early_stopping": _BEAMS,
    "length_penalty": _BEAMS,
    "max_time": Unsupported((), "a limit on time"),
    # strategy
    "do_sample": Applied(_flag),
    "num_beams": Unsupported((1,), "beam search"),
    "num_beam_groups": Unsupported((1,), "beam search"),
    "diversity_penalty": Unsupported((0,), "beam search"),
    "constraints": Unsupported(([],), "constrained beam search"),
    "force_words_ids": Unsupported(([],), "constrained beam search"),
    "num_return_sequences": Unsupported((1,), "several answers to a prompt; give the prompt several times"),
    "penalty_alpha": Unsupported((0,), "contrastive search"),
    "dola_layers": Unsupported((), "DoLa, which reads the layers in between"),
    "guidance_scale": Unsupported((1,), "classifier-free guidance, which needs a second run of the model"),
    "token_healing": Unsupported((False,), "token healing"),
    "watermarking_config": Unsupported((), "watermarks, which are drawn from PyTorch's random numbers"),
    # scores
    "temperature": Applied(_number(0, math.inf, "above 0 (0 is greedy)", open_low=True)),
    "top_k": Applied(_integer(0, "0 (all) or more", 0)),
    "top_p": Applied(_number(0, 1, "from 0 to 1")),
    "min_p": Applied(_number(0, 1, "from 0 to 1")),
    "top_h": Applied(_number(0, 1, "above 0, up to 1", open_low=True)),
    "typical_p": Applied(_number(0, 1, "above 0, up to 1 (off)", open_low=True)),
    "epsilon_cutoff": Applied(_number(0, 1, "from 0 (off) to 1")),
    "eta_cutoff": Applied(_number(0, 1, "from 0 (off) to 1")),
    "repetition_penalty": Applied(_penalty),
    "encoder_repetition_penalty": Applied(_penalty),
    "no_repeat_ngram_size": Applied(_integer(0, "0 (off) or more", 0)),
    "encoder_no_repeat_ngram_size": Applied(_integer(0, "0 (off) or more", 0)),
    "bad_words_ids": Applied(_sequences),
    "sequence_bias": Applied(_biases),
    "suppress_tokens": Applied(_suppressed),
    "begin_suppress_tokens": Applied(_suppressed),
    "forced_bos_token_id": Applied(_id),
    "forced_eos_token_id": Applied(_ids),
    "exponential_decay_length_penalty": Applied(_decay),
    "remove_invalid_values": Applied(_flag),
    "renormalize_logits": NoEffect("it scales probabilities that are normalised anyway"),
    # ids
    "eos_token_id": Applied(_ids),
    "bos_token_id": _ID,
    "pad_token_id": _ID,
    "decoder_start_token_id": NoEffect("only encoder-decoder models read it"),
    # speed, memory, output
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), _OUTPUT),
    "return_dict_in_generate": _OUTPUT,
    **dict.fromkeys(("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"), _SPEED),
    **dict.fromkeys(("compile_config", "disable_compile", "prefill_chunk_size", "continuous_batching_config"), _SPEED),
    **dict.fromkeys(("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"), _DRAFT),
    **dict.fromkeys(("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"), _DRAFT),
    **dict.fromkeys(("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "speculation_type"), _DRAFT),
    "assistant_ensemble_weight": NoEffect("only a caller's assistant model makes it mean something"),
    "transformers_version": NoEffect("a record"),
}
"""Field -> what becomes of it."""


def unsupported(values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every one of `values` that asks for something that is not supported."""
    found = []
    for name, value in values.items():
        field = FIELDS.get(name)
        if not isinstance(field, Unsupported) or value is None or any(_same(value, each) for each in field.neutral):
            continue
        found.append(f"{name} is {_shown(value)}, and this runtime is without {field.without}")
    return found


def _same(value: Any, neutral: Any) -> bool:
    return (
        type(value) in (bool, int, float, list)
        and isinstance(value, bool) == isinstance(neutral, bool)
        and bool(value == neutral)
    )
