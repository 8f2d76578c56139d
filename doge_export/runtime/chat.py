"""A conversation in several turns, in which no token is read twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from doge_export.errors import DogeExportError
from doge_export.runtime.generate import Generation, Stream
from doge_export.runtime.prompts import need_tokenizer

if TYPE_CHECKING:
    from doge_export.runtime.session import Session


class Chat:
    """A conversation between a user and the assistant.

    Every turn renders the whole conversation, so that its ids are those that the chat template prescribes, and reads
    only the tokens that the cache does not hold yet. A new message, or `reset`, ends an answer that is still being
    written.

    Attributes:
        messages: the conversation so far, dicts with "role" and "content".

    Raises:
        DogeExportError: the folder has no tokenizer or no chat template.
    """

    def __init__(self, session: Session, system: str | None = None) -> None:
        self._session = session
        self._system = system
        self._tokenizer = need_tokenizer(session.tokenizer)
        self._stream: Stream | None = None
        if not self._tokenizer.has_chat_template:
            raise DogeExportError("this model has no chat template: use generate, or export a checkpoint made for chat")
        self.reset()

    def reset(self) -> None:
        """Start over; the system message stays."""
        self._end()
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self._stream = None

    @property
    def generation(self) -> Generation | None:
        """The last answer, as far as it got; None before the first message."""
        return None if self._stream is None else self._stream.generation

    def send(self, text: str, **settings: Any) -> Iterator[str]:
        """Send a message and return an iterator over pieces of the answer.

        When the answer is cut off (the caller takes no more pieces, or Ctrl-C raises KeyboardInterrupt through them),
        the text so far stays as the assistant's turn, and the next turn goes on from there.

        Args:
            text: the user's message.
            settings: those of `Session.generate`.

        Raises:
            DogeExportError: the message is empty, the conversation gets too long or a setting is wrong. Raised by the
                call itself, before the first piece; the conversation is unchanged.
        """
        if not text:
            raise DogeExportError("the message is empty: give at least one character")
        self._end()
        question = {"role": "user", "content": text}
        token_ids = self._tokenizer.encode_chat([*self.messages, question], max_length=self._session.max_length)
        return self._answer(question, self._session.stream_reusing(token_ids, **settings))

    def _answer(self, question: dict[str, str], stream: Stream) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self.messages += [question, answer]
        self._stream = stream
        with stream:
            for piece in stream:
                answer["content"] += piece  # before the yield, which may not return: the text has what was shown
                yield piece

    def _end(self) -> None:
        """Free the session from an answer whose rest nobody asked for."""
        if self._stream is not None:
            self._stream.close()
