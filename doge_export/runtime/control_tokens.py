"""Protection of control tokens: inside a message they stay text.

A chat template writes control tokens such as `<|end_of_text|>` around every message. When a message itself contains
that text, encoding the rendered conversation as a whole would turn it into the control token, and the writer of the
message could end the turn or speak as the system. So the control tokens inside messages are wrapped in two private-use
markers before rendering; afterwards the text between markers is encoded as plain text and everything else as usual.
A conversation without such text has no markers, so its ids are those of the plain rendering.

The ids equal those of transformers' `apply_chat_template(..., sanitize_control_tokens=True)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

START = "\U000f0000"
END = "\U000f0001"


class ControlTokens:
    """Finder of control tokens in texts; a token wins over a shorter one inside it.

    Args:
        texts: the texts of all control tokens.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(texts, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"  # (?!) never matches
        self._token = re.compile(alternatives)
        self._marked = re.compile(f"{START}({alternatives}){END}|[{START}{END}]")

    def mark(self, value: Any) -> Any:
        """Return a copy of a text, or of lists and dicts of texts, with every control token wrapped in markers."""
        if isinstance(value, str):
            # Markers that are already there are dropped, so that a message cannot forge one.
            value = value.replace(START, "").replace(END, "")
            return self._token.sub(f"{START}\\g<0>{END}", value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Split a marked text at its markers.

        A lone marker (the template cut a text in two) separates too, so that its neighbours cannot join into a token.

        Returns:
            Pieces without markers, none of them empty, each with True for a control token that was marked.
        """
        pieces = self._marked.split(text)  # text, marked or None, text, marked or None, ..., text
        return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]
