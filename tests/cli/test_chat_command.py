import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest

import doge_export

OPTIONS = ["--max-new-tokens", 12, "--greedy"]


def answers(session, *messages, system=None):
    chat = session.chat(system)
    return ["".join(chat.send(text, max_new_tokens=12, do_sample=False)) for text in messages]


@pytest.fixture(scope="module")
def session(nano_folder):
    return doge_export.load(nano_folder)


def test_piped_lines_get_answers_and_nothing_else(run, nano_folder, session):
    result = run("chat", nano_folder, *OPTIONS, stdin="Hello!\n\n  Who are you?  \n")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == "".join(f"{answer}\n" for answer in answers(session, "Hello!", "Who are you?"))


def test_exit_ends_before_the_next_message(run, nano_folder, session):
    result = run("chat", nano_folder, *OPTIONS, stdin="Hello!\n/exit\nWho are you?\n")
    assert result.stdout == f"{answers(session, 'Hello!')[0]}\n"


def test_reset_forgets_the_conversation_and_keeps_the_system_message(run, nano_folder, session):
    result = run("chat", nano_folder, *OPTIONS, "--system", "Be kind.", stdin="Hello!\n/reset\nHello!\n")
    answer = answers(session, "Hello!", system="Be kind.")[0]
    assert result.stdout == f"{answer}\n{answer}\n"


def test_system_starts_over(run, nano_folder, session):
    result = run("chat", nano_folder, *OPTIONS, stdin="Hello!\n/system Be kind.\nHello!\n/system\nHello!\n")
    plain, kind = answers(session, "Hello!")[0], answers(session, "Hello!", system="Be kind.")[0]
    assert result.stdout == f"{plain}\n{kind}\n{plain}\n"


def test_help_and_unknown_commands_stay_off_stdout(run, nano_folder):
    result = run("chat", nano_folder, stdin="/help\n/nonsense\n")
    assert result.stdout == ""
    assert "/reset" in result.stderr
    assert "there is no command /nonsense" in result.stderr


def test_conversation_too_long_is_one_line(run, nano_folder):
    result = run("chat", nano_folder, stdin="word " * 3000)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_lines_that_begin_with_a_slash_are_messages_unless_they_are_meant_as_commands(run, nano_folder, session):
    lines = ["/etc/passwd is a file", "//reset is a word", "/ 2"]
    result = run("chat", nano_folder, *OPTIONS, stdin="\n".join(lines))
    assert result.exit_code == 0
    expected = answers(session, lines[0], lines[1][1:], lines[2])
    assert result.stdout == "".join(f"{answer}\n" for answer in expected)
    result = run("chat", nano_folder, *OPTIONS, stdin="Hello!\n/sytem Be kind.\nHello!\n")
    assert result.exit_code == 2
    assert result.stdout == f"{answers(session, 'Hello!')[0]}\n"
    assert result.stderr == (
        "doge-export: error: line 2: there is no command /sytem; /help lists them, and // begins a message with /\n"
    )


def test_a_full_chat_in_a_pipe_stops_with_its_line_or_forgets_aloud(run, nano_folder, session):
    message = "word " * 25
    options = ["--max-new-tokens", 4, "--greedy"]
    per_turn = len(session.tokenizer.encode_chat([{"role": "user", "content": message.strip()}]))
    count = session.max_length // per_turn + 4
    stdin = f"{message}\n" * count
    result = run("chat", nano_folder, *options, stdin=stdin)
    assert result.exit_code == 2
    line = int(re.search(r"error: line (\d+): the prompt has ", result.stderr)[1])
    assert 1 < line <= count
    settings = {"max_new_tokens": 4, "do_sample": False}
    chat = session.chat()
    expected = ["".join(chat.send(message.strip(), **settings)) for _ in range(line - 1)]
    assert result.stdout == "".join(f"{answer}\n" for answer in expected)
    assert result.stderr.endswith("(/reset starts over, --context-overflow drop-oldest forgets old turns)\n")
    result = run("chat", nano_folder, *options, "--context-overflow", "drop-oldest", stdin=stdin)
    assert result.exit_code == 0
    chat = session.chat(context_overflow="drop-oldest")
    expected = ["".join(chat.send(message.strip(), **settings)) for _ in range(count)]
    assert result.stdout == "".join(f"{answer}\n" for answer in expected)
    assert "note: the conversation is too long: forgot the oldest " in result.stderr


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *arguments):
        import pty

        self.end, far = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "doge_export", *map(str, arguments)],
            stdin=far,
            stdout=far,
            stderr=far,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"},
        )
        os.close(far)
        self.seen = ""

    def until(self, text: str) -> str:
        """What came up to and with `text`; for an empty one, whatever comes next."""
        end = time.monotonic() + 60
        while not self.seen or text not in self.seen:
            assert select.select([self.end], [], [], max(0, end - time.monotonic()))[0], self.seen
            self.seen += os.read(self.end, 4096).decode(errors="replace")
        length = self.seen.index(text) + len(text)
        found, self.seen = self.seen[:length], self.seen[length:]
        return found

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(*arguments):
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
class TestAtATerminal:
    def test_conversation(self, terminal, nano_folder, session):
        chat = terminal("chat", nano_folder, *OPTIONS)
        chat.until("> ")
        chat.type("Hello!\n")
        shown = chat.until("> ").replace("\r\n", "\n")
        assert shown.endswith(f"Hello!\n{answers(session, 'Hello!')[0]}\n> ")
        chat.type("\x04")
        assert chat.process.wait(timeout=60) == 0

    def test_ctrl_c_stops_the_answer_and_then_leaves(self, terminal, nano_folder, session):
        settings = {"temperature": 100.0, "top_k": 0, "max_new_tokens": 180}
        seed = next(seed for seed in range(20) if len([*session.chat().send("Hello!", seed=seed, **settings)]) > 100)
        options = ["--temperature", 100, "--top-k", 0, "--max-new-tokens", 180]
        chat = terminal("chat", nano_folder, *options, "--seed", seed)
        chat.until("> ")
        chat.type("Hello!\n")
        chat.until("Hello!\r\n")
        chat.until("")
        chat.process.send_signal(signal.SIGINT)
        chat.until("(stopped)\r\n> ")
        for _ in range(12):
            # One that falls between the prompt and readline's wait is seen only at the next key, so press again.
            chat.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                chat.process.wait(timeout=5)
                break
        assert chat.process.returncode == 0

    def test_mistakes_do_not_end_the_conversation(self, terminal, nano_folder, session):
        chat = terminal("chat", nano_folder, *OPTIONS)
        chat.until("> ")
        chat.type("word " * 600 + "\n")
        chat.until("(/reset starts over)\r\n> ")
        chat.type("/reset\n")
        chat.until("> ")
        chat.type("Hello!\n")
        assert chat.until("> ").replace("\r\n", "\n").endswith(f"Hello!\n{answers(session, 'Hello!')[0]}\n> ")
