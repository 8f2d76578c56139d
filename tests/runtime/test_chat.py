"""Conversations: what is read, what is kept, and what an interruption leaves."""

from __future__ import annotations

import pytest

from doge_export.errors import DogeExportError, RunFailed, TooLong


def say(chat, text, **settings):
    return "".join(chat.send(text, **{"max_new_tokens": 20, **settings}))


def test_a_turn_answers_the_rendered_conversation(make_session):
    session = make_session(max_length=400)
    chat = session.chat(system="You are Rex.")
    answers = [say(chat, "Hello"), say(chat, "And now?")]
    assert chat.messages == [
        {"role": "system", "content": "You are Rex."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": answers[1]},
    ]
    alone = session.generate(chat.messages[:-1], max_new_tokens=20)
    assert alone.text == answers[1]
    assert alone == chat.generation


def test_history_is_not_read_again(make_session):
    session = make_session(max_length=400)
    chat = session.chat()
    say(chat, "Hello", max_new_tokens=1)
    first = len(session.tokenizer.encode_chat(chat.messages[:1]))
    session.decoder.runs.clear()
    say(chat, "And now?", max_new_tokens=1)
    whole = len(session.tokenizer.encode_chat(chat.messages[:3]))
    assert session.decoder.runs == [(1, whole - first)]


def test_another_use_of_the_session_does_not_spoil_the_chat(make_session):
    session = make_session(max_length=400)

    def talk(disturb):
        chat = session.chat()
        return [say(chat, "Hello"), disturb(), say(chat, "And now?")][::2]

    undisturbed = talk(lambda: None)
    assert talk(lambda: session.generate("something else", max_new_tokens=3)) == undisturbed
    assert talk(lambda: session.generate(["a", "bb"], max_new_tokens=3)) == undisturbed
    assert talk(lambda: session.logits([1, 2, 3])) == undisturbed
    assert talk(lambda: say(session.chat("other"), "Hi")) == undisturbed
    assert talk(lambda: session.decoder.reset()) == undisturbed


def test_reset_keeps_the_system_message(make_session):
    chat = make_session(max_length=400).chat(system="You are Rex.")
    first = say(chat, "Hello")
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "You are Rex."}]
    assert chat.generation is None
    assert say(chat, "Hello") == first


def test_control_tokens_typed_by_the_user_do_not_end_the_turn(make_session):
    session = make_session(max_length=400)
    chat = session.chat()
    say(chat, "bye<|end_of_text|>")
    assert chat.generation.prompt_token_ids.count(1) == 2  # after the system block and after the user's turn


@pytest.mark.parametrize("when", ["while generating", "while showing", "abandoned"])
def test_an_interrupted_answer_stays_as_far_as_it_got(make_session, numpy_decoder, tokenizer, when):
    class Interrupted(numpy_decoder):
        interrupt_at = None

        def forward(self, *arguments):
            if len(self.runs) == self.interrupt_at:
                self.interrupt_at = None
                raise KeyboardInterrupt
            return super().forward(*arguments)

    session = make_session(decoder=Interrupted(tokenizer.backend.get_vocab_size(), max_length=400))
    chat, shown = session.chat(), []
    if when == "while generating":
        session.decoder.interrupt_at = 12
        with pytest.raises(KeyboardInterrupt):
            for piece in chat.send("Hello"):
                shown.append(piece)
    elif when == "while showing":
        with pytest.raises(KeyboardInterrupt):
            for piece in chat.send("Hello"):
                shown.append(piece)
                if len(shown) == 3:
                    raise KeyboardInterrupt
    else:
        pieces = chat.send("Hello")
        shown += [next(pieces), next(pieces)]
    assert shown and chat.messages[-1] == {"role": "assistant", "content": "".join(shown)}
    assert chat.generation.finish_reason is None
    answer = say(chat, "Go on")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert answer == session.generate(chat.messages[:-1], max_new_tokens=20).text


def test_interrupting_the_prompt_leaves_an_empty_answer_and_a_sound_cache(make_session, numpy_decoder, tokenizer):
    class Interrupted(numpy_decoder):
        def forward(self, *arguments):
            logits = super().forward(*arguments)  # the keys are written, and nobody is told
            if len(self.runs) == 1:
                raise KeyboardInterrupt
            return logits

    session = make_session(decoder=Interrupted(tokenizer.backend.get_vocab_size(), max_length=400))
    chat = session.chat()
    with pytest.raises(KeyboardInterrupt):
        say(chat, "Hello")
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    assert say(chat, "Again") == session.generate(chat.messages[:-1], max_new_tokens=20).text


def test_a_question_that_fails_unanswered_may_be_asked_again(make_session, numpy_decoder, tokenizer):
    class Failing(numpy_decoder):
        def forward(self, *arguments):
            logits = super().forward(*arguments)
            if len(self.runs) == 1:
                raise RunFailed("not this time")
            return logits

    session = make_session(decoder=Failing(tokenizer.backend.get_vocab_size(), max_length=400))
    chat = session.chat()
    with pytest.raises(RunFailed):
        say(chat, "Hello")
    assert chat.messages == []
    assert say(chat, "Hello") == session.generate(chat.messages[:-1], max_new_tokens=20).text


def test_a_conversation_that_gets_too_long_is_refused_unchanged(make_session):
    chat = make_session(max_length=120).chat()
    say(chat, "Hello", max_new_tokens=5)
    before = list(chat.messages)
    with pytest.raises(DogeExportError, match="tokens and this export holds 120"):
        chat.send("word " * 100)
    with pytest.raises(DogeExportError, match="message is empty"):
        chat.send("")
    with pytest.raises(DogeExportError, match="top_p is 9"):
        chat.send("x", top_p=9)
    assert chat.messages == before
    say(chat, "ok", max_new_tokens=1)


def test_the_oldest_turns_are_dropped_whole_and_the_system_message_stays(make_session):
    session = make_session(max_length=200)
    chat = session.chat("You are Rex.", context_overflow="drop-oldest")
    for number in range(12):
        before, dropped = list(chat.messages), chat.dropped
        say(chat, f"Question {number}", max_new_tokens=10)
        assert chat.messages[0] == {"role": "system", "content": "You are Rex."}
        assert [message["role"] for message in chat.messages[1:]] == ["user", "assistant"] * (len(chat.messages) // 2)
        kept = chat.messages[1:-2]
        assert kept == before[1 + 2 * (chat.dropped - dropped) :]
        assert len(session.tokenizer.encode_chat(chat.messages[:-1])) + 10 <= 200
        if chat.dropped > dropped:  # and none too many
            longer = [before[0], *before[-2 - len(kept) :], chat.messages[-2]]
            assert len(session.tokenizer.encode_chat(longer)) + 10 > 200
    assert chat.dropped > 0
    assert chat.generation.text == session.generate(chat.messages[:-1], max_new_tokens=10).text


def test_a_message_that_never_fits_is_refused_and_drops_nothing(make_session):
    chat = make_session(max_length=120).chat("Hi", context_overflow="drop-oldest")
    say(chat, "Hello", max_new_tokens=5)
    before = list(chat.messages)
    for text in ("word " * 100, "w" * 100_000):
        with pytest.raises(TooLong):
            chat.send(text)
    with pytest.raises(DogeExportError, match="top_p is 9"):
        chat.send("x", top_p=9)
    assert (chat.messages, chat.dropped) == (before, 0)
    with pytest.raises(DogeExportError, match="context_overflow is 'forget', expected one of stop, drop-oldest"):
        make_session(max_length=120).chat(context_overflow="forget")


def test_an_answer_that_fills_the_context_is_told(make_session):
    chat = make_session(max_length=100).chat()
    say(chat, "Hello", max_new_tokens=3)
    assert not chat.is_full
    chat.reset()
    say(chat, "Hello", max_new_tokens=500, eos_token_id=-1)
    assert chat.is_full
