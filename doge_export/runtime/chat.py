"""A conversation in several turns, in which no token is read twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from doge_export.errors import DogeExportError
from doge_export.runtime.generate import Generation, Stream
from doge_export.runtime.prompts import need_tokenizer

if TYPE_CHECKING:
    from doge_export.runtime.session import Session

Overflow = Literal["stop", "drop-oldest"]
"""What a chat does when its turns no longer fit."""


class Chat:
    """A conversation between a user and the assistant.

    Every turn renders the whole conversation, so that its ids are those that the chat template prescribes, and reads
    only the tokens that the cache does not hold yet. A new message, or `reset`, ends an answer that is still being
    written.

    Args:
        session: what answers.
        system: system message that the conversation starts with.
        context_overflow: what happens when the conversation gets longer than the export holds. "stop" refuses the
            message; "drop-oldest" forgets the oldest turns, each a question with its answer, and never the system
            message, until there is room for the answer: for `max_new_tokens`, or for a quarter of the length where
            that is not set, but for half of it at most.

    Attributes:
        messages: the conversation so far, dicts with "role" and "content".
        dropped: number of turns that "drop-oldest" has forgotten.

    Raises:
        DogeExportError: the folder has no tokenizer or no chat template, or `context_overflow` is another word.
    """

    def __init__(self, session: Session, system: str | None = None, context_overflow: Overflow = "stop") -> None:
        if context_overflow not in get_args(Overflow):
            raise DogeExportError(
                f"context_overflow is {context_overflow!r}, expected one of {', '.join(get_args(Overflow))}"
            )
        self._session = session
        self._overflow = context_overflow
        self._system = system
        self._tokenizer = need_tokenizer(session.tokenizer)
        self._stream: Stream | None = None
        if not self._tokenizer.has_chat_template:
            raise DogeExportError("this model has no chat template: use generate, or export a checkpoint made for chat")
        self.reset()

    @classmethod
    def of(cls, session: Session, conversation: Mapping[str, Any], context_overflow: Overflow = "stop") -> Self:
        """Return the conversation that `save` wrote beside a state, which the session has restored.

        Raises:
            DogeExportError: it is none.
        """
        messages: Any = conversation.get("messages")
        system = conversation.get("system")
        dropped = conversation.get("dropped", 0)
        is_known = (
            isinstance(dropped, int)
            and isinstance(messages, list)
            and all(
                isinstance(each, dict) and {*map(type, each.values())} <= {str} and {"role", "content"} <= each.keys()
                for each in messages
            )
        )
        if not is_known or not (system is None or isinstance(system, str)):
            raise DogeExportError("this state holds no conversation: it was saved by a session, not by a chat")
        chat = cls(session, system, context_overflow)
        chat.messages, chat.dropped = messages, dropped
        return chat

    def save(self, file: str | Path) -> None:
        """Write the conversation with the state of the session's cache, see `Session.save` and `Session.resume`."""
        self._end()
        said = {"messages": self.messages, "system": self._system, "dropped": self.dropped}
        self._session.save(file, said)

    def reset(self) -> None:
        """Start over; the system message stays."""
        self._end()
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self.dropped = 0
        self._stream = None

    def restart(self, system: str | None) -> None:
        """Start over with another system message, or None without one."""
        self._system = system
        self.reset()

    @property
    def generation(self) -> Generation | None:
        """The last answer, as far as it got; None before the first message."""
        return None if self._stream is None else self._stream.generation

    @property
    def is_full(self) -> bool:
        """True if the last answer ended because prompt and answer are as long as the export holds."""
        last = self.generation
        if last is None or last.finish_reason != "length":
            return False
        return len(last.prompt_token_ids) + len(last.token_ids) >= self._session.max_length

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
        if self._overflow == "stop":
            kept = self.messages
            token_ids = self._tokenizer.encode_chat([*kept, question], max_length=self._session.max_length)
        else:
            kept, token_ids = self._shortened(question, settings.get("max_new_tokens"))
        stream = self._session.stream_reusing(token_ids, **settings)
        self.dropped += _turns(self.messages) - _turns(kept)
        self.messages = [*kept]
        return self._answer(question, stream)

    def _shortened(self, question: dict[str, str], max_new_tokens: object) -> tuple[list[dict[str, str]], list[int]]:
        """Return the messages to keep, without the oldest turns that leave no room, and the ids of the conversation."""
        longest = self._session.max_length
        self._tokenizer.check_length(len(question["content"]), longest)
        room = max_new_tokens or self._session.generation_config.max_new_tokens or longest // 4
        room = min(room, longest // 2) if isinstance(room, int) else longest // 4
        kept = list(self.messages)
        while True:
            token_ids = self._tokenizer.encode_chat([*kept, question])
            start = next((n for n, message in enumerate(kept) if message["role"] != "system"), len(kept))
            if len(token_ids) + room <= longest or start == len(kept):
                return kept, token_ids
            end = next((n for n in range(start + 1, len(kept)) if kept[n]["role"] == "user"), len(kept))
            del kept[start:end]

    def _answer(self, question: dict[str, str], stream: Stream) -> Iterator[str]:
        answer = {"role": "assistant", "content": ""}
        self.messages += [question, answer]
        self._stream = stream
        with stream:
            try:
                for piece in stream:
                    answer["content"] += piece  # before the yield, which may not return: the text has what was shown
                    yield piece
            except Exception:
                if not answer["content"]:  # the question was never answered, and may be asked again
                    self.messages[:] = [each for each in self.messages if each is not question and each is not answer]
                raise

    def _end(self) -> None:
        """Free the session from an answer whose rest nobody asked for."""
        if self._stream is not None:
            self._stream.close()


def _turns(messages: list[dict[str, str]]) -> int:
    return sum(message["role"] == "user" for message in messages)
