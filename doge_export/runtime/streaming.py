"""Text of token ids while they arrive: never half a character or half a stop string, in time linear in the length.

The joined pieces equal `tokenizer.decode(ids, skip_special_tokens=True)`, up to the first stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

import tokenizers.decoders

from doge_export.runtime.tokenizer import Tokenizer


class Detokenizer(Protocol):
    """Converter of ids into text, one id at a time."""

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty in the middle of a character."""

    def flush(self) -> str:
        """Return the text still held back, after the last id."""


def open_detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    """Return the fast detokenizer for a byte-level tokenizer, as all of Doge's are, and the general one for others."""
    if isinstance(tokenizer.backend.decoder, tokenizers.decoders.ByteLevel):
        return ByteLevelDetokenizer(tokenizer)
    return WindowDetokenizer(tokenizer)


def _byte_of_character() -> dict[str, int]:
    """Map the alphabet of byte-level BPE to bytes: printable ones are written as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_of_character()


class ByteLevelDetokenizer:
    """Detokenizer for byte-level tokenizers: the bytes of each token, through an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """See `Detokenizer.push`."""
        known = self._tokenizer.token_bytes
        token = known.get(token_id)
        if token is None:
            token = known[token_id] = self._bytes(token_id)
        return self._utf8.decode(token)

    def flush(self) -> str:
        """Return U+FFFD if the last character is unfinished."""
        return self._utf8.decode(b"", final=True)

    def _bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.backend.id_to_token(token_id)
        if token is None or token_id in self._tokenizer.special_ids:
            return b""
        try:
            return bytes(_BYTES[character] for character in token)
        except KeyError:  # an added token is not written in the alphabet: it stands for itself
            return token.encode("utf-8")


class WindowDetokenizer:
    """Detokenizer for any tokenizer: decodes again the ids since the last complete text, with that text as context."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0  # number of ids of the window whose text was returned

    def push(self, token_id: int) -> str:
        """See `Detokenizer.push`."""
        self._window.append(token_id)
        before, text = self._texts()
        if len(text) <= len(before) or text.endswith("\ufffd"):
            return ""
        self._window = self._window[self._shown :]
        self._shown = len(self._window)
        return text[len(before) :]

    def flush(self) -> str:
        """Return the rest of the text, with U+FFFD for an unfinished character."""
        before, text = self._texts()
        self._shown = len(self._window)
        return text[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._window[: self._shown], True), decode(self._window, True)


class StopStrings:
    """Filter that lets text through up to the first stop string, and holds back an ending that may become one.

    Attributes:
        found: True once a stop string was met.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Return the part of the held-back text and `text` that is safe to show; sets `found` at a stop string."""
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return the text still held back, which became no stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest ending of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
