"""Checks that turn the prompts, texts, token ids and masks of a caller into arrays and lists of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from doge_export.errors import DogeExportError, TooLong
from doge_export.runtime.chat_messages import is_message
from doge_export.runtime.generation_config import is_integer, plain
from doge_export.runtime.tokenizer import Tokenizer

_BYTES = (bytes, bytearray, memoryview)


def prompt_rows(
    prompt: Any, tokenizer: Tokenizer | None, vocab_size: int, max_length: int
) -> tuple[list[list[int]], bool]:
    """Turn one prompt or a batch of prompts into token ids.

    Args:
        prompt: a text, a conversation (list of dicts) or token ids (list of int or an array [S]); a batch is a list of
            those, or an array [B, S].
        tokenizer: for texts and conversations; None if the folder has none.
        vocab_size: number of ids of the model.
        max_length: most tokens of a prompt; a text that cannot be so short is refused without encoding it.

    Returns:
        The ids of each prompt, and True for a batch.

    Raises:
        DogeExportError: a prompt is empty, much too long or of another type, an id is out of range, or a text comes
            without tokenizer.
    """
    prompt = plain(prompt)
    if isinstance(prompt, _BYTES) or _is_single(prompt):
        return [_row(prompt, tokenizer, vocab_size, max_length)], False
    if not isinstance(prompt, Sequence):
        raise _no_prompt(prompt)
    return [_row(item, tokenizer, vocab_size, max_length) for item in prompt], True


def is_single_text(texts: Any) -> bool:
    """Return whether `texts` is a single text (a str, or token ids as a list of int or an array [S])."""
    texts = plain(texts)
    return isinstance(texts, (str, *_BYTES)) or (
        isinstance(texts, Sequence) and len(texts) > 0 and is_integer(texts[0])
    )


def text_rows(
    texts: Any, tokenizer: Tokenizer | None, vocab_size: int, *, max_length: int, truncate: bool
) -> list[list[int]]:
    """Turn one text or several into token ids, for tasks that read a text and write none.

    Args:
        texts: a text as `is_single_text` describes it, a list of such texts, or an array [B, S].
        tokenizer: for texts; None if the folder has none.
        vocab_size: number of ids of the model.
        max_length: most tokens of a text.
        truncate: cut longer texts as transformers cuts them, instead of refusing them.

    Returns:
        The ids of each text.

    Raises:
        DogeExportError: a text is empty, too long or of another type, or an id is out of range; of several texts, the
            message names the number of the wrong one, from 1.
    """
    texts = plain(texts)
    if is_single_text(texts):
        return [_text_row(texts, tokenizer, vocab_size, max_length, truncate)]
    if not isinstance(texts, Sequence):
        raise DogeExportError(f"expected a text, token ids, or a list of those, not {type(texts).__name__}")
    rows = []
    for number, text in enumerate(texts, 1):
        try:
            rows.append(_text_row(text, tokenizer, vocab_size, max_length, truncate))
        except DogeExportError as error:
            raise DogeExportError(f"text {number}: {error}") from error
    return rows


def _text_row(text: Any, tokenizer: Tokenizer | None, vocab_size: int, max_length: int, truncate: bool) -> list[int]:
    text = plain(text)
    if isinstance(text, Mapping) or (isinstance(text, Sequence) and len(text) > 0 and isinstance(text[0], Mapping)):
        raise DogeExportError(
            "chat messages are for text-generation: give the text that `tokenizer.apply_chat_template` makes of them"
        )
    if truncate and isinstance(text, str) and text:
        ids = need_tokenizer(tokenizer).encode_cut(text, max_length)
        return _row(ids, tokenizer, vocab_size, max_length) if ids else _row(text, tokenizer, vocab_size, max_length)
    ids = _row(text, tokenizer, vocab_size, max_length)
    if len(ids) > max_length and not truncate:
        raise TooLong(
            f"{len(ids)} tokens are more than this export holds ({max_length}): shorten the text, cut it with "
            "truncate=True (--truncate), or export again with a larger --max-length"
        )
    return ids[:max_length]


def _is_single(prompt: Any) -> bool:
    if isinstance(prompt, str) or (isinstance(prompt, Sequence) and not prompt):
        return True
    return isinstance(prompt, Sequence) and (is_integer(prompt[0]) or is_message(prompt[0]))


def _row(prompt: Any, tokenizer: Tokenizer | None, vocab_size: int, max_length: int) -> list[int]:
    prompt = plain(prompt)
    if isinstance(prompt, _BYTES):  # would pass as a sequence of integers below
        raise _no_prompt(prompt)
    if isinstance(prompt, (str, Sequence)) and not prompt:
        raise DogeExportError("the prompt is empty: give at least one character, token id or message")
    if isinstance(prompt, str):
        need_tokenizer(tokenizer).check_length(len(prompt), max_length)
        ids = need_tokenizer(tokenizer).encode(prompt)
    elif isinstance(prompt, Sequence) and is_message(prompt[0]):
        ids = need_tokenizer(tokenizer).encode_chat(prompt, max_length=max_length)
    elif isinstance(prompt, Sequence):
        ids = list(prompt)
    else:
        raise _no_prompt(prompt)
    if not ids:
        raise DogeExportError("the prompt has no tokens: the tokenizer leaves nothing of its text")
    return [_checked_id(token_id, vocab_size) for token_id in ids]


def _no_prompt(prompt: Any) -> DogeExportError:
    hint = ": decode them into a text" if isinstance(prompt, _BYTES) else ""
    return DogeExportError(f"a prompt is a text, token ids or chat messages, not {type(prompt).__name__}{hint}")


def _checked_id(token_id: Any, vocab_size: int) -> int:
    if not is_integer(token_id):
        raise DogeExportError(f"{token_id!r} is not a token id: expected integers from 0 to {vocab_size - 1}")
    if not 0 <= token_id < vocab_size:
        raise DogeExportError(f"token id {token_id} is out of range: the model has ids from 0 to {vocab_size - 1}")
    return int(token_id)


def need_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """Return the tokenizer.

    Raises:
        DogeExportError: the folder has none.
    """
    if tokenizer is None:
        raise DogeExportError(
            "this folder has no tokenizer.json, since its export had none to copy: export a checkpoint with one, or "
            "from Python use token ids instead of text"
        )
    return tokenizer


def id_matrix(input_ids: Any, vocab_size: int) -> np.ndarray:
    """Return token ids as int64 [B, S].

    Args:
        input_ids: nested lists or an array, [S] or [B, S].
        vocab_size: number of ids of the model.

    Raises:
        DogeExportError: `input_ids` is empty or of another shape or type, or an id is out of range.
    """
    try:
        ids = np.asarray(input_ids)
    except ValueError as error:
        raise DogeExportError("input_ids has rows of different lengths: pad them on the left, with a mask") from error
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.size == 0:
        raise DogeExportError(f"input_ids has shape {list(np.shape(input_ids))}, expected [S] or [B, S], not empty")
    if not np.issubdtype(ids.dtype, np.integer):
        raise DogeExportError(f"input_ids holds {ids.dtype} values, expected integer token ids")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise DogeExportError(f"token id {outside[0]} is out of range: the model has ids from 0 to {vocab_size - 1}")
    return ids.astype(np.int64)


def mask_matrix(attention_mask: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a mask with padding on the left as int64 [B, S], 0 for padding; None if nothing is padded.

    Args:
        attention_mask: nested lists or an array, [S] or [B, S]; None without padding.
        shape: shape of the token ids, [B, S].

    Raises:
        DogeExportError: the mask has another shape or other values, or padding that is not on the left.
    """
    mask = any_mask(attention_mask, shape)
    if (np.diff(mask, axis=1) < 0).any() or not mask[:, -1].all():
        raise DogeExportError(
            "attention_mask has a 0 after a 1: only padding on the left is possible, since every row goes on at its end"
        )
    return None if mask.all() else mask


def any_mask(attention_mask: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask with padding anywhere as int64 [B, S], 0 for padding; all 1 for None.

    Args:
        attention_mask: nested lists or an array, [S] or [B, S]; None without padding.
        shape: shape of the token ids, [B, S].

    Raises:
        DogeExportError: the mask has another shape or other values.
    """
    if attention_mask is None:
        return np.ones(shape, np.int64)
    try:
        mask = np.asarray(attention_mask)
    except ValueError as error:
        raise DogeExportError("attention_mask has rows of different lengths") from error
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != shape:
        raise DogeExportError(f"attention_mask has shape {list(mask.shape)}, expected that of input_ids, {list(shape)}")
    if not np.isin(mask, (0, 1)).all():
        raise DogeExportError("attention_mask holds other values than 0 (padding) and 1 (token)")
    return mask.astype(np.int64)
