"""A conversation in several turns that reads nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from doge_export.errors import DogeExportError
from doge_export.runtime.generate import Generation, Stream
from doge_export.runtime.prompts import need_tokenizer

if TYPE_CHECKING:
    from doge_export.runtime.session import Session


class Chat:
    """Turns of a user and the assistant.

    Every turn renders the whole conversation, so that its ids are those the template prescribes, and reads only what
    comes after the part the cache already holds.

    messages: the conversation so far, dicts with "role" and "content".
    """

    def __init__(self, session: Session, system: str | None = None) -> None:
        self._session = session
        self._system = system
        self._tokenizer = need_tokenizer(session.tokenizer)
        if not self._tokenizer.has_chat_template:
            raise DogeExportError("this model has no chat template: use generate, or export a checkpoint made for chat")
        self.reset()

    def reset(self) -> None:
        """Starts over; the system message stays."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self._stream: Stream | None = None

    @property
    def generation(self) -> Generation | None:
        """The last answer, as far as it got; None before the first."""
        return None if self._stream is None else self._stream.generation

    def send(self, text: str, **settings: Any) -> Iterator[str]:
        """Pieces of the answer to `text`; `settings` are those of `Session.generate`.

        Raises DogeExportError at once, with the conversation unchanged, when it gets too long or a setting is wrong.
        When the answer is cut off (nobody asks for more pieces, or Ctrl-C raises KeyboardInterrupt through them), what
        was said so far stays as the assistant's turn, and the next turn goes on from there.
        """
        if not text:
            raise DogeExportError("the message is empty: give at least one character")
        question = {"role": "user", "content": text}
        token_ids = self._tokenizer.encode_chat([*self.messages, question])
        return self._answer(question, self._session.stream_reusing(token_ids, **settings))

    def _answer(self, question: dict[str, str], stream: Stream) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self.messages += [question, answer]
        self._stream = stream
        for piece in stream:
            answer["content"] += piece  # before it is shown: an interruption finds the conversation whole
            yield piece
