"""Files that commands write, streams that take nothing, and signals, as a user meets them."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

needs_posix = pytest.mark.skipif(os.name == "nt", reason="POSIX shell and signals")


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text('{"question": "Who?", "choices": ["a", "b"], "answer": 0}\n')
    return file


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_details_do_not_overwrite_the_questions(run, tmp_path, questions, link):
    details = questions
    if link is not None:
        details = tmp_path / "link"
        getattr(details, link)(questions)
    before = questions.read_bytes()
    result = run("eval", tmp_path / "folder", "--choices", questions, "--details", details)
    assert result.exit_code == 2
    assert "is --choices of the same command; name another place" in result.stderr
    assert questions.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "FOLDER", "--choices", "QUESTIONS", "--details", "FOLDER/doge_export.json"],
        ["eval", "FOLDER", "--choices", "QUESTIONS", "--details", "FOLDER/new"],
        ["embed", "FOLDER", "text", "--output", "FOLDER/new.npy"],
        ["bench", "FOLDER", "--plot", "FOLDER/new.svg"],
        ["trt", "FOLDER", "--dry-run", "--timing-cache", "FOLDER/onnx/model.onnx"],
        ["trt", "FOLDER", "--dry-run", "--save-results", "FOLDER/new"],
    ],
)
def test_nothing_is_written_into_a_folder_that_is_read(run, tmp_path, questions, arguments):
    folder = tmp_path / "folder"
    (folder / "onnx").mkdir(parents=True)
    names = {"FOLDER": str(folder), "QUESTIONS": str(questions)}
    result = run(*(names.get(word, word.replace("FOLDER", str(folder))) for word in arguments))
    assert result.exit_code == 2, result.stderr
    assert "would lie in" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["onnx"]


SHELL = """
import sys
from doge_export.__main__ import run
sys.argv[0] = "doge-export"
run()
"""


def shell(arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with redirections in a shell."""
    line = f"{sys.executable} -c {chr(39)}{SHELL}{chr(39)} {arguments}"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, stdin=subprocess.DEVNULL)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
@pytest.mark.parametrize("arguments", ["--help", "plugin info"])
def test_a_full_stdout_is_one_line(arguments):
    result = shell(f"{arguments} >/dev/full")
    assert result.returncode == 1
    assert result.stderr == "doge-export: error: cannot write: no space left on device; make room there\n"


@needs_posix
def test_closed_streams():
    result = shell("plugin info <&- >&- 2>&-")
    assert result.returncode == 0
    result = shell("verify /nonexistent >&- <&-")
    assert result.returncode == 2
    assert result.stderr.startswith("doge-export: error: folder /nonexistent does not exist")


@needs_posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_the_command_line_is_imported(name, code):
    program = """
    import os, signal, sys
    from doge_export.__main__ import run

    class Interrupt:
        def find_spec(self, name, path=None, target=None):
            if name == "click":
                os.kill(os.getpid(), getattr(signal, sys.argv[1]))

    sys.meta_path.insert(0, Interrupt())
    run()
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program), name], capture_output=True, text=True)
    assert result.returncode == code
    assert result.stderr == ("\ndoge-export: interrupted\n" if name == "SIGINT" else "")


@needs_posix
def test_an_interruption_that_a_library_turns_into_its_own_error(run):
    from doge_export.cli import main

    @main.command("torch")
    def torch() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("KeyboardInterrupt: <EMPTY MESSAGE>") from None

    try:
        result = run("torch")
    finally:
        del main.commands["torch"]
    assert result.exit_code == 130
    assert result.stderr == "\ndoge-export: interrupted\n"


def test_out_of_memory_is_one_line(run):
    from doge_export.cli import main

    @main.command("large")
    def large() -> None:
        raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory, std::bad_alloc")

    try:
        result = run("large")
    finally:
        del main.commands["large"]
    assert result.exit_code == 1
    assert result.stderr.startswith("doge-export: error: there is not enough memory for this")
