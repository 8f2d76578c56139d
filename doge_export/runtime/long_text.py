"""Ids of long texts, encoded in stretches of bounded size: memory and time of the tokenizers library grow with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import tokenizers

from doge_export.errors import DogeExportError
from doge_export.runtime.tokenizer import Tokenizer

STRETCH = 2**16
"""Characters that are encoded at once."""

WHOLE = 2**23
"""Most characters that are encoded at once where a text cannot be cut."""

_WORDS = 16
"""Words at the end of a stretch that are encoded again with the next one, which they may go on in."""

_TRIES = 16
"""Places at which a stretch is tried to be cut."""

_LOOKS_AROUND = re.compile(r"\(\?<|\(\?=|\(\?!(?!\\S\))|\\[AbBGK]|(?<![\[\\])\^")
"""What makes a word depend on text far before or behind it; (?!\\S) looks at one character of white space's end."""


def encoded_stretches(tokenizer: Tokenizer, text: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of a text, without the tokens added to every text, as encoding it whole gives them.

    A stretch ends between two words of the pre-tokenizer, each of which byte-level BPE encodes by itself.

    Yields:
        int64 [N], ids of a stretch; int64 [N, 2], first and last character of each in the whole text, as
        `Encoding.offsets`.

    Raises:
        DogeExportError: the text is too long to be encoded whole, and cannot be cut.
    """
    start, size = 0, STRETCH if len(text) > STRETCH and _can_cut(tokenizer) else len(text)
    while True:
        if size > WHOLE:
            raise DogeExportError(
                f"the text has {len(text)} characters and cannot be encoded in parts: this tokenizer takes at most "
                f"{WHOLE} at once; give a part of the text"
            )
        stretch = text[start : start + size]
        encoding = tokenizer.encoding(stretch, add_special_tokens=False)
        is_last = start + size >= len(text)
        count, characters = (len(encoding.ids), len(stretch)) if is_last else _complete(tokenizer, encoding, stretch)
        if count:
            offsets = np.array(encoding.offsets[:count], np.int64).reshape(-1, 2)
            yield np.array(encoding.ids[:count], np.int64), offsets + start
        if is_last:
            return
        start += characters
        size = STRETCH if count else 2 * size


def _complete(tokenizer: Tokenizer, encoding: tokenizers.Encoding, stretch: str) -> tuple[int, int]:
    """Return how many tokens at the beginning of a stretch, and characters, do not depend on what follows it.

    What is behind them has the same ids when it is encoded by itself: the next stretch begins there.
    """
    added = {
        index: len(token.content.encode()) for index, token in tokenizer.backend.get_added_tokens_decoder().items()
    }
    longest = max(added.values(), default=0)
    ids, word_ids, content = encoding.ids, encoding.word_ids, stretch.encode()
    words, size, tries = 0, 0, 0
    for index in range(len(ids) - 1, 0, -1):
        size += added.get(ids[index]) or len(tokenizer.backend.id_to_token(ids[index]) or "")
        if word_ids[index] == word_ids[index - 1]:
            continue
        words += 1
        if words <= _WORDS or size <= longest or content[-size] & 0xC0 == 0x80:  # the middle of a character
            continue
        behind = content[-size:].decode()
        if tokenizer.encode(behind, add_special_tokens=False) == ids[index:]:
            return index, len(stretch) - len(behind)
        tries += 1
        if tries == _TRIES:
            break
    return 0, 0


def _can_cut(tokenizer: Tokenizer) -> bool:
    """Return whether words are encoded one by one, wherever they stand, and no byte is lost."""
    if not tokenizer.keeps_every_byte():
        return False
    parts = json.loads(tokenizer.backend.to_str())
    steps = parts["pre_tokenizer"]
    steps = steps.get("pretokenizers", [steps])
    looks_around = any(_LOOKS_AROUND.search(step.get("pattern", {}).get("Regex", "")) for step in steps)
    adds_space = any(step.get("add_prefix_space") for step in steps)
    after = parts["post_processor"] or {}
    trims_first = any(  # the first token's offsets are those of a text that a space was put before
        step.get("trim_offsets") and step.get("add_prefix_space") for step in after.get("processors", [after])
    )
    single = any(token["single_word"] for token in parts["added_tokens"])
    return not (looks_around or adds_space or trims_first or single) and parts["model"].get("dropout") is None
