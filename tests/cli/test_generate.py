import json
import os
import shutil
import signal
import time

import pytest

import doge_export

needs_signals = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def expected(nano_folder):
    """What Python says to PROMPT."""
    return doge_export.load(nano_folder).generate(PROMPT, max_new_tokens=20, do_sample=False)


@pytest.fixture(scope="module")
def long_answer(nano_folder):
    """Options of an answer in more than a hundred pieces."""
    session = doge_export.load(nano_folder)
    settings = {"temperature": 100.0, "top_k": 0, "max_new_tokens": 180}
    seed = next(seed for seed in range(20) if len([*session.stream(PROMPT, seed=seed, **settings)]) > 100)
    return ["--temperature", 100, "--top-k", 0, "--max-new-tokens", 180, "--seed", seed]


@pytest.mark.parametrize("option", ["--stream", "--no-stream"])
def test_only_the_new_text_is_printed(run, nano_folder, expected, option):
    result = run("generate", nano_folder, PROMPT, "--max-new-tokens", 20, "--greedy", option)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{expected.text}\n", "")


def test_an_empty_answer_is_told(run, nano_folder):
    """The bundled model takes a question outside its template for the end of a text."""
    result = run("generate", nano_folder, "Hey how are you doing?", "--greedy")
    assert (result.exit_code, result.stdout) == (0, "\n")
    assert result.stderr == (
        "the answer is empty: the model ended it at once; --chat puts the prompt into the chat template\n"
    )
    assert run("generate", nano_folder, "Hey how are you doing?", "--greedy", "--chat").stderr == ""
    assert run("generate", nano_folder, PROMPT, "--greedy", "--stop", ",").stderr == ""


def test_prompt_from_stdin(run, nano_folder, expected):
    result = run("generate", nano_folder, "-", "--max-new-tokens", 20, "--greedy", stdin=f"{PROMPT}\n")
    assert result.stdout == f"{expected.text}\n"


def test_json(run, nano_folder, expected):
    result = run("generate", nano_folder, PROMPT, "--max-new-tokens", 20, "--greedy", "--json")
    assert json.loads(result.stdout) == {
        "text": expected.text,
        "token_ids": expected.token_ids,
        "prompt_token_ids": expected.prompt_token_ids,
        "finish_reason": expected.finish_reason,
    }


def test_seed_repeats_a_drawn_text(run, nano_folder):
    def draw(seed):
        return run("generate", nano_folder, PROMPT, "--max-new-tokens", 30, "--temperature", 1.5, "--seed", seed).stdout

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_every_setting_reaches_the_session(run, nano_folder):
    settings = {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 7}
    options = [item for name, value in settings.items() for item in (f"--{name.replace('_', '-')}", value)]
    result = run("generate", nano_folder, PROMPT, "--sample", "--max-new-tokens", 30, *options)
    session = doge_export.load(nano_folder)
    expected = session.generate(PROMPT, do_sample=True, max_new_tokens=30, **settings)
    assert result.stdout == f"{expected.text}\n"


def test_stop(run, nano_folder, expected):
    first, second = expected.text[2], expected.text[5:7]
    result = run("generate", nano_folder, PROMPT, "--max-new-tokens", 20, "--greedy", "--stop", second, "--stop", first)
    end = min(expected.text.index(first), expected.text.index(second))
    assert result.stdout == f"{expected.text[:end]}\n"


def test_chat_template(run, nano_folder):
    session = doge_export.load(nano_folder)
    user = {"role": "user", "content": "Hello!"}
    for options, messages in [
        (["--chat"], [user]),
        (["--system", "Be kind."], [{"role": "system", "content": "Be kind."}, user]),
    ]:
        result = run("generate", nano_folder, "Hello!", "--max-new-tokens", 20, "--greedy", "--json", *options)
        expected = session.generate(messages, max_new_tokens=20, do_sample=False)
        assert json.loads(result.stdout)["prompt_token_ids"] == expected.prompt_token_ids
        assert json.loads(result.stdout)["text"] == expected.text


def test_verbose_counts_tokens(run, nano_folder):
    result = run("generate", nano_folder, PROMPT, "--max-new-tokens", 3, "--greedy", "-v")
    assert "3 written in" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--greedy"], "prompt is empty"),
        (["word " * 1000], "tokens and this export holds"),
        (["word " * 3000], "characters: more tokens than this export holds"),
        ([PROMPT, "--temperature", "-1"], "temperature is -1.0"),
        ([PROMPT, "--top-p", "2"], "top_p is 2.0"),
        ([PROMPT, "--max-new-tokens", "0"], "max_new_tokens is 0"),
        ([PROMPT, "--threads", "0"], "threads is 0"),
        ([PROMPT, "--stop", ""], "stop is"),
    ],
)
def test_bad_requests_are_one_line(run, nano_folder, arguments, message):
    result = run("generate", nano_folder, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("doge-export: error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("option", [["--temperature", "nan"], ["--top-k", "-2"], ["--min-p", "inf"]], ids=str)
def test_wrong_settings_are_told_before_a_model_is_loaded(run, tmp_path, command, option):
    prompt = [PROMPT] if command == "generate" else []
    result = run(command, tmp_path / "nothing", *prompt, *option)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"doge-export: error: {option[0][2:].replace('-', '_')} is ")


def test_a_folders_wrong_and_unsupported_settings_are_told(run, nano_folder, tmp_path):
    folder = shutil.copytree(nano_folder, tmp_path / "out")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"num_beams": 4, "do_sample": False, "max_new_tokens": 2, "min_new_tokens": 2}))
    result = run("generate", folder, PROMPT)
    note = f"note: {file}: num_beams is 4, and this runtime is without beam search; it is ignored"
    assert (result.exit_code, result.stderr) == (0, f"{note}\n")
    file.write_text(json.dumps({"top_k": 50.0}))
    result = run("generate", folder, PROMPT)
    assert result.exit_code == 2
    assert result.stderr == f"doge-export: error: {file}: top_k is 50.0, expected 0 (all) or more\n"


def test_a_temperature_near_zero_is_greedy(run, nano_folder, expected):
    for temperature in ("5e-324", "1e-45", "1e-20"):
        result = run("generate", nano_folder, PROMPT, "--max-new-tokens", 20, "--temperature", temperature)
        assert result.stdout == f"{expected.text}\n"


def test_stdin_that_is_not_text(run, nano_folder):
    result = run("generate", nano_folder, "-", stdin=b"\xff\xfe")
    assert result.exit_code == 2
    assert result.stderr == "doge-export: error: stdin is not UTF-8 text: invalid start byte at byte 0\n"


@pytest.mark.skipif(os.name == "nt", reason="arguments are bytes on POSIX only")
def test_argument_that_is_not_text(start, nano_folder):
    _, stderr = (process := start("generate", nano_folder, os.fsdecode(b"caf\xe9"))).communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", ["generate", "chat", "validate", "verify"])
def test_folders_that_are_none(run, tmp_path, command):
    for folder, message in [(tmp_path / "nothing", "does not exist"), (tmp_path, "is not an exported folder")]:
        result = run(command, folder, *(["Hello"] if command == "generate" else []))
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@needs_signals
def test_ctrl_c_ends_the_line_and_exits_with_130(start, nano_folder, long_answer):
    process = start("generate", nano_folder, PROMPT, *long_answer)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (first + rest).endswith(b"\n")
    assert stderr == b"\ndoge-export: interrupted\n"


@needs_signals
def test_closed_pipe_is_quiet(start, nano_folder, long_answer):
    process = start("generate", nano_folder, PROMPT, *long_answer)
    process.stdout.read(1)
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr.read() == b""


def test_text_comes_while_it_is_made(start, nano_folder, long_answer):
    process = start("generate", nano_folder, PROMPT, *long_answer)
    arrivals = []
    while process.stdout.read1(64):
        arrivals.append(time.monotonic())
    assert len(arrivals) > 5
    assert arrivals[-1] > arrivals[0]
