"""Sessions in several threads: calls on one wait for each other, forks answer side by side, and no answer is wrong."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import doge_export
from doge_export.runtime import SessionBusy, load, turns

THREADS = 8
COUNTS = [6, pytest.param(50, marks=pytest.mark.slow)]
"""Answers of each thread."""


@pytest.fixture
def impatient(monkeypatch):
    """A thread learns at once that it waits for itself."""
    monkeypatch.setattr(turns, "STANDSTILL", 0.05)


def in_threads(work, arguments, threads=THREADS):
    """The results of `work` in order, from threads that all start together."""
    barrier = threading.Barrier(threads)
    with ThreadPoolExecutor(threads, initializer=barrier.wait) as pool:
        return list(pool.map(work, arguments))


def prompts(count, vocab_size=320):
    random = np.random.default_rng(0)
    return [random.integers(3, vocab_size, random.integers(1, 12)).tolist() for _ in range(count)]


@pytest.fixture(scope="module", params=["onnxruntime", "portable"])
def session(exported, request):
    """Caches in place, and caches that grow."""
    return load(exported(target=request.param), threads=1)


SETTINGS = {"max_new_tokens": 6, "eos_token_id": []}


class TestOneSession:
    @pytest.mark.parametrize("count", COUNTS)
    def test_answers_eight_threads(self, session, count):
        asked = prompts(THREADS * count)
        expected = [session.generate(prompt, **SETTINGS) for prompt in asked]
        assert in_threads(lambda prompt: session.generate(prompt, **SETTINGS), asked) == expected

    def test_answers_batches_and_logits_side_by_side(self, session):
        asked = prompts(40)

        def use(number):
            prompt = asked[number]
            if number % 3 == 0:
                return session.generate([prompt, prompt[:1]], **SETTINGS)
            if number % 3 == 1:
                return session.logits(prompt).tobytes()
            return session.generate(prompt, temperature=1.2, seed=number, **SETTINGS)

        expected = list(map(use, range(40)))
        assert in_threads(use, range(40), 4) == expected

    def test_streams_and_chats(self, make_session):
        session = make_session(max_length=400)

        def talk(number):
            if number % 2:
                return "".join(session.stream(f"text {number}", max_new_tokens=9))
            chat = session.chat()
            return ["".join(chat.send(f"{turn} {number}", max_new_tokens=9)) for turn in ("Hello", "And now")]

        expected = list(map(talk, range(24)))
        assert in_threads(talk, range(24)) == expected

    def test_perplexity_beside_answers(self, make_session):
        session = make_session()

        def use(number):
            if number % 2:
                return session.generate(f"text {number}", max_new_tokens=9)
            return doge_export.evaluate_text(session, "Rex was happy, and the ball was red. " * 9)

        expected = list(map(use, range(12)))
        assert in_threads(use, range(12), 4) == expected


class TestStreamHoldsTheTurn:
    def waiting(self, session):
        """A thread that asks for an answer while a stream is open, and waits."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(session.generate("two", max_new_tokens=2)))
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive() and not answers
        return thread

    @pytest.mark.parametrize("end", ["close", "exhaust", "with", "collect"])
    def test_until_it_ends(self, make_session, end):
        session = make_session()
        stream = session.stream("one", max_new_tokens=30)
        next(stream)
        thread = self.waiting(session)
        if end == "close":
            stream.close()
            assert list(stream) == [] and stream.generation.finish_reason is None
        elif end == "exhaust":
            list(stream)
            assert stream.generation.finish_reason == "length"
        elif end == "with":
            with stream:
                next(stream)
        else:
            circle = [stream]
            circle.append(circle)
            del stream, circle
            gc.collect()
        thread.join(10)
        assert not thread.is_alive()

    def test_only_from_its_first_piece_on(self, make_session):
        session = make_session()
        first, second = session.stream("one", max_new_tokens=9), session.stream("two", max_new_tokens=9)
        assert ("".join(second), "".join(first)) == (second.generation.text, first.generation.text)
        session.stream("three").close()

    def test_its_own_thread_is_refused_and_the_stream_goes_on(self, make_session, impatient):
        session = make_session()
        whole = session.generate("one", max_new_tokens=30).text
        stream = session.stream("one", max_new_tokens=30)
        first = next(stream)
        for use in (
            lambda: session.generate("two"),
            lambda: next(session.stream("two")),
            lambda: list(session.chat().send("two")),
            lambda: session.logits([1, 2]),
            session.reset,
        ):
            with pytest.raises(SessionBusy, match=r"open in this thread, and .* one answer at a time.*close\(\).*fork"):
                use()
        assert first + "".join(stream) == whole
        assert session.generate("one", max_new_tokens=30).text == whole

    def test_threads_may_take_turns_at_it(self, make_session, impatient):
        """A thread pool asks each piece in any thread; a thread that asked for one may get another request."""
        session = make_session()
        whole = session.generate("one", max_new_tokens=40).text
        stream = session.stream("one", max_new_tokens=40)
        pieces = [next(stream)]

        def rest():
            for piece in stream:
                pieces.append(piece)
                time.sleep(0.01)

        thread = threading.Thread(target=rest)
        thread.start()
        assert session.generate("two", max_new_tokens=2).finish_reason == "length"
        thread.join()
        assert "".join(pieces) == whole

    def test_who_must_not_wait_is_told(self, make_session, exported):
        session = make_session()
        session._turns.wait = 0.1
        stream = session.stream("one", max_new_tokens=30)
        next(stream)
        with ThreadPoolExecutor(1) as pool, pytest.raises(SessionBusy, match=r"waits 0\.1 s at most"):
            pool.submit(session.generate, "two").result(10)
        patient = load(exported(), threads=1, wait=0)
        assert (patient.wait, patient.fork().wait) == (0, 0)
        for wrong in (-1, float("nan"), float("inf"), "1"):
            with pytest.raises(doge_export.DogeExportError, match="wait is"):
                load(exported(), wait=wrong)

    def test_closing_the_session_ends_it(self, exported):
        with load(exported(), threads=1) as session:
            answer = session._rows([5, 6], max_new_tokens=20, eos_token_id=[])[0][0]
            session._turns._take()
            session._turns.rest()
        assert answer.finish_reason is None
        session._turns._give_back()
        with pytest.raises(doge_export.DogeExportError, match="session was closed"):
            session.generate([5, 6])

    def test_closing_a_stream_ends_the_wait_of_another_thread(self, make_session):
        """The thread that closes it may be the one whose stream is waited for."""
        session = make_session()
        mine, other = session.stream("one", max_new_tokens=9), session.stream("two", max_new_tokens=9)
        next(mine)
        found = []
        thread = threading.Thread(target=lambda: found.append(list(other)), daemon=True)
        thread.start()
        time.sleep(0.1)
        closing = threading.Thread(target=other.close, daemon=True)
        closing.start()
        closing.join(5)
        thread.join(5)
        assert found == [[]] and not closing.is_alive()
        assert list(other) == [] and "".join(mine)

    def test_a_stream_that_another_thread_waits_with_is_refused_beside_ones_own(self, make_session, impatient):
        session = make_session()
        mine, other = session.stream("one", max_new_tokens=9), session.stream("two", max_new_tokens=9)
        next(mine)
        thread = threading.Thread(target=lambda: list(other), daemon=True)
        thread.start()
        time.sleep(0.1)
        with pytest.raises(SessionBusy, match="open in this thread"):
            next(other)
        mine.close()
        thread.join(10)
        assert not thread.is_alive()

    def test_a_thread_that_advanced_the_stream_of_another_waits_for_it(self, make_session, impatient):
        session = make_session()
        stream = session.stream("one", max_new_tokens=9)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(next, stream).result(10)
            answer = pool.submit(session.generate, "two", max_new_tokens=2)
            time.sleep(0.3)  # a slow client: no piece is asked for, and then the rest by this thread
            assert not answer.done()
            list(stream)
            assert answer.result(10).finish_reason == "length"

    def test_no_stream_goes_on_beside_a_session_that_closes(self, exported):
        session = load(exported(), threads=1)
        session._turns._take()
        session._turns.rest()
        with session._turns.ended(), pytest.raises(doge_export.DogeExportError, match="session was closed"):
            session._turns.moved()
        session._turns._give_back()
        with pytest.raises(doge_export.DogeExportError, match="session was closed"):
            session.generate([5, 6])
        session.close()

    def test_who_waits_is_told_that_the_session_was_closed_beside_a_stream(self, exported, impatient):
        session = load(exported(), threads=1)
        session._turns._take()
        session._turns.rest()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(session.generate, [5, 6], max_new_tokens=1)
            time.sleep(0.1)
            session.close()
            try:
                with pytest.raises(doge_export.DogeExportError, match="session was closed"):
                    waiting.result(2)
            finally:
                session._turns._give_back()

    def test_a_stream_that_begins_in_another_thread_is_not_its_makers(self):
        """Its maker, which waits, looks at the stream just when it has taken the turn."""
        shared, mark = turns.Turns(), turns.this_thread()
        shared._going_on.acquire()  # the stream stops where it is about to say that it moved
        thread = threading.Thread(target=lambda: shared._take(owner=mark), daemon=True)
        thread.start()
        time.sleep(0.05)
        assert shared._is_own() and not shared._stands_still(0.0)
        shared._going_on.release()
        thread.join(5)
        assert not shared._is_own()

    def test_a_session_that_closes_waits_for_a_stream_that_goes_on(self, exported, impatient):
        session = load(exported(), threads=1)
        session._turns._take()
        session._turns.rest()
        session._turns.moved()
        with ThreadPoolExecutor(1) as pool:
            closing = pool.submit(session.close)
            time.sleep(0.3)
            assert not closing.done()
            session._turns._give_back()
            closing.result(10)

    def test_an_error_in_an_answer_frees_the_session(self, make_session):
        session = make_session()
        forward, session.decoder.forward = session.decoder.forward, None
        with pytest.raises(TypeError):
            session.generate("one")
        session.decoder.forward = forward
        assert session.generate("one", max_new_tokens=2).finish_reason == "length"


class TestForks:
    @pytest.mark.parametrize("count", COUNTS)
    def test_answer_at_the_same_time(self, session, count):
        asked = prompts(THREADS * count)
        expected = [session.generate(prompt, **SETTINGS) for prompt in asked]
        forks = [session.fork() for _ in range(THREADS)]

        def answers(number):
            return [forks[number].generate(prompt, **SETTINGS) for prompt in asked[number::THREADS]]

        found = in_threads(answers, range(THREADS))
        assert [found[index % THREADS][index // THREADS] for index in range(len(asked))] == expected

    def test_are_independent(self, session):
        first = session.fork()
        streams = [each.fork() for each in (session, first)]
        opened = [each._context.read([[5, 6, 7]])[1] for each in streams]
        first.close()
        for each, turn in zip(streams, opened, strict=True):
            each._context.append(turn, np.array([[8]]))
        shared = "_model" if session.decoder.backend == "native" else "_session"
        assert getattr(streams[0].decoder, shared) is getattr(session.decoder, shared)
        assert streams[0].tokenizer is session.tokenizer
        assert session.generate([5, 6], max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize(("task", "use"), [("feature-extraction", "embed"), ("text-classification", "classify")])
def test_features_and_classes_in_threads(task_export, task, use):
    session = load(task_export(task).folder, threads=1)
    sessions = [session, session.fork()]
    texts = [f"text {number} " * (number % 9 + 1) for number in range(60)]
    expected = [getattr(session, use)(text) for text in texts]
    found = in_threads(lambda index: getattr(sessions[index % 2], use)(texts[index]), range(60))
    for ours, alone in zip(found, expected, strict=True):
        np.testing.assert_equal(ours, alone)


def test_a_tokenizer_in_threads(tokenizer):
    texts = [f"Rex was happy {number}, and the ball was red. " * 5 for number in range(400)]
    expected = [tokenizer.encode(text) for text in texts]

    def use(index):
        if index % 2:
            return tokenizer.encode_cut(texts[index], 4)
        return tokenizer.encode(texts[index])

    found = in_threads(use, range(400))
    assert found == [ids[:4] if index % 2 else ids for index, ids in enumerate(expected)]
