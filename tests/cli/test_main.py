import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

import doge_export
from doge_export import console
from doge_export.cli import main
from doge_export.errors import DogeExportError, RunFailed
from doge_export.installing import install_command

README = Path(__file__).parents[2] / "README.md"

COMMANDS = main.list_commands(click.Context(main))


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


@pytest.fixture
def failing():
    """A command `fail` that raises what it is given."""
    raised: list[BaseException] = []

    @main.command("fail")
    def fail() -> None:
        raise raised[0]

    yield raised
    del main.commands["fail"]


def test_the_commands_of_the_issue_are_there():
    assert {"onnx", "generate", "chat", "validate", "inspect", "doctor", "demo", "verify"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name, run):
    assert command(name).help
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
        else:
            assert parameter.make_metavar(click.Context(command(name))) in command(name).get_usage(
                click.Context(command(name))
            )
    assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_short_help_is_not_cut(name):
    assert not command(name).get_short_help_str().endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_in_the_readme(name):
    assert f"doge-export {name}" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_logging_options(name):
    names = [option for parameter in command(name).params for option in parameter.opts]
    assert names.count("--quiet") == names.count("--verbose") == names.count("-q") == names.count("-v") == 1


@pytest.mark.parametrize("name", ["validate", "inspect", "doctor", "verify", "onnx", "generate", "classify", "embed"])
def test_commands_with_json(name):
    assert "--json" in [option for parameter in command(name).params for option in parameter.opts]


def test_help_needs_nothing_heavy_and_is_fast():
    """In processor time, which depends less on what else the machine does."""
    code = """
    import sys, time
    started = time.process_time()
    heavy = ["torch", "transformers", "onnx", "onnxruntime", "numpy", "safetensors", "rich", "huggingface_hub"]
    sys.modules.update(dict.fromkeys(heavy))
    from doge_export.cli import main
    try:
        main(["--help"])
    except SystemExit as end:
        assert end.code == 0
    sys.stderr.write(str(time.process_time() - started))
    """
    command, taken = [sys.executable, "-c", textwrap.dedent(code)], []
    while len(taken) < 8 and min(taken, default=1) >= 0.3:  # a shared core is slower for seconds at a time
        taken.append(float(subprocess.run(command, capture_output=True, check=True).stderr))
    assert min(taken) < 0.3, taken


def test_version(run):
    result = run("--version")
    assert result.exit_code == 0
    assert doge_export.__version__ in result.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["onnx", "model"]])
def test_usage_errors_exit_with_2(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    "arguments", [["generate", "out", "-5 degrees"], ["generate", "out", "-q"], ["embed", "out", "-x"]]
)
def test_a_text_that_begins_with_a_dash_is_told_about(run, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["doge-export", *arguments])
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"A text that begins with a dash goes behind --, after all options: doge-export {arguments[0]}" in (
        " ".join(result.stderr.split())
    )


@pytest.mark.parametrize(("error", "code"), [(DogeExportError, 2), (RunFailed, 1)])
def test_mistakes_are_one_line(run, failing, error, code):
    failing.append(error("saw this,\n expected that"))
    result = run("fail")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == "doge-export: error: saw this, expected that\n"


def test_verbose_shows_where_a_mistake_was_found(run, failing):
    failing.append(DogeExportError("saw this"))
    result = run("-v", "fail")
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("doge-export: error: saw this\n")


def test_bugs_keep_their_traceback(run, failing):
    failing.append(KeyError("bug"))
    with pytest.raises(KeyError):
        run("fail")


def test_missing_extra_is_named_with_its_command(run, failing):
    failing.append(ModuleNotFoundError("No module named 'transformers'", name="transformers.models"))
    result = run("fail")
    assert result.exit_code == 2
    assert result.stderr == (
        "doge-export: error: the package transformers is not installed, and this needs it: "
        f"{install_command('export')}\n"
    )


def test_missing_module_of_nobody_is_a_bug(run, failing):
    failing.append(ModuleNotFoundError("No module named 'doge_export.nonsense'", name="doge_export.nonsense"))
    with pytest.raises(ModuleNotFoundError):
        run("fail")


def test_interruption_exits_with_130(run, failing):
    failing.append(KeyboardInterrupt())
    result = run("fail")
    assert result.exit_code == 130
    assert result.stderr == "\ndoge-export: interrupted\n"


def test_signal_handlers_are_put_back(run):
    before = signal.getsignal(signal.SIGTERM)
    run("doctor")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_signal_in_a_destructor_is_not_lost(name, code):
    """Python drops what a destructor raises, so the exception of a signal that arrives there as well."""
    program = """
    import os, signal, sys, time
    from doge_export.cli import main

    class Torch:
        def __del__(self):
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
            time.sleep(0.01)

    @main.command("wait")
    def wait():
        Torch()
        time.sleep(30)

    main(["wait"])
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "-", name], capture_output=True, text=True
    )
    assert process.returncode == code
    assert process.stderr == ("\ndoge-export: interrupted\n" if name == "SIGINT" else "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_may_not_raise_at_once_ends_the_run_behind(name, code):
    """As in callbacks of TensorRT's builder, where the exception would be dropped."""
    program = """
    import os, signal, sys
    from doge_export import interruption
    from doge_export.cli import main

    @main.command("build")
    def build():
        with interruption.deferred():
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
            print(interruption.pending() == getattr(signal, sys.argv[2]), flush=True)
        print("not reached")

    main(["build"])
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), "-", name], capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (code, "True\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interruption_of_generated_code_exits_as_every_other(tmp_path):
    """Python would kill a module run by -m whose KeyboardInterrupt passed through exec() of a text."""
    program = """
    import os, signal
    from doge_export.cli import main

    @main.command("wait")
    def wait():
        exec("os.kill(os.getpid(), signal.SIGINT)")

    main(["wait"])
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    process = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "\ndoge-export: interrupted\n")


@pytest.mark.parametrize("arguments", [["-q", "doctor"], ["doctor", "-q"]])
def test_quiet_before_and_after_the_command(run, arguments):
    run(*arguments)
    assert console._quiet
    run("doctor")
    assert not console._quiet


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_closed_pipe_is_quiet(start):
    read, write = os.pipe()
    os.close(read)
    process = start("doctor", stdout=write)
    os.close(write)
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""


def test_installed_entry_point():
    script = Path(sys.executable).with_name("doge-export")
    result = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert doge_export.__version__ in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "\udcff", "x"),
        ("onnx", "doge-nano", "\udcff", "--dry-run"),
        ("onnx", "\udcff", "unused", "--dry-run"),
        ("onnx", "doge-nano", "unused", "--dry-run", "--adapter", "\udcff"),
        ("onnx", "doge-nano", "unused", "--dry-run", "--calibration", "nul\0"),
        ("verify", "owner/\udcff"),
        ("inspect", "\udcff"),
        ("bench", "\udcff"),
        ("classify", "nul\0", "x"),
    ],
)
def test_paths_of_other_bytes_are_one_line(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "is not Unicode text" in result.stderr or "NUL" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line != "reading doge-nano"]) == 1


def test_a_byte_order_mark_of_stdin_is_dropped(run, monkeypatch):
    from doge_export.cli import text

    class Input:
        class buffer:
            read = staticmethod(lambda: b"\xef\xbb\xbfOnce\n")

    monkeypatch.setattr(text.sys, "stdin", Input)
    assert text.read_stdin() == "Once"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_of_the_readme(run, shell, monkeypatch):
    assert f"{'_DOGE_EXPORT_COMPLETE=' if shell != 'zsh' else ''}{shell}_source" in README.read_text(encoding="utf-8")
    monkeypatch.setenv("_DOGE_EXPORT_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "doge-export gen")
    monkeypatch.setenv("COMP_CWORD", "gen" if shell == "fish" else "1")
    assert "generate" in run().stdout


@pytest.mark.parametrize("arguments", [["inspect", "/nosuch", "--json"], ["generate", "/nosuch", "x", "--json"]])
def test_an_error_with_json_is_one_line_on_stderr(run, arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("doge-export: error: ") and result.stderr.count("\n") == 1
