"""classify and embed, and what the commands of one task say of a folder of another."""

import json
import os

import numpy as np
import pytest

import doge_export

TEXTS = ["Once upon a time", "Hey!", "What is the colour of the ball?"]


@pytest.fixture(scope="module")
def features(task_export):
    return task_export("feature-extraction").folder


@pytest.fixture(scope="module")
def classes(task_export):
    return task_export("text-classification", num_labels=3).folder


@pytest.fixture
def lines(tmp_path):
    """A file with a text a line."""
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return file


class TestClassify:
    def test_table(self, run, classes):
        result = run("classify", classes, *TEXTS)
        expected = doge_export.load(classes).classify(TEXTS)
        rows = [f"{found['label']}  {found['score']:.4f}  {text}" for text, found in zip(TEXTS, expected, strict=True)]
        assert (result.exit_code, result.stdout, result.stderr) == (0, "\n".join(rows) + "\n", "")

    def test_table_of_several_labels_names_each_text_once(self, run, classes):
        result = run("classify", classes, *TEXTS[:2], "--top-k", 3)
        rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
        assert [row[2] if len(row) == 3 else None for row in rows] == [TEXTS[0], None, None, TEXTS[1], None, None]
        assert len({row[0] for row in rows[:3]}) == 3
        assert [row[1] for row in rows[:3]] == sorted((row[1] for row in rows[:3]), reverse=True)

    @pytest.mark.parametrize("way", ["stdin", "file", "dash", "crlf", "no last line break"])
    def test_lines(self, run, classes, lines, way):
        expected = run("classify", classes, *TEXTS).stdout
        text = lines.read_text(encoding="utf-8")
        arguments, stdin = {
            "stdin": ([], text),
            "file": (["--file", lines], None),
            "dash": (["--file", "-"], text),
            "crlf": ([], text.replace("\n", "\r\n")),
            "no last line break": ([], text[:-1]),
        }[way]
        assert run("classify", classes, *arguments, stdin=stdin).stdout == expected

    def test_json(self, run, classes):
        result = run("classify", classes, *TEXTS, "--top-k", 2, "--json")
        expected = doge_export.load(classes).classify(TEXTS, top_k=2)
        found = json.loads(result.stdout)["results"]
        assert found == [{"text": text, "labels": labels} for text, labels in zip(TEXTS, expected, strict=True)]
        assert (
            json.loads(run("classify", classes, TEXTS[0], "--json").stdout)["results"][0]["labels"] == expected[0][:1]
        )

    def test_no_lines_are_no_results(self, run, classes):
        assert run("classify", classes, stdin="").stdout == ""
        assert json.loads(run("classify", classes, "--json", stdin="").stdout) == {"results": []}

    def test_a_text_cannot_move_the_cursor(self, run, classes):
        result = run("classify", classes, "red \x1b[31m\r\nand\ttab " + "word " * 20)
        (line,) = result.stdout.splitlines()
        assert "\x1b" not in line and "\t" not in line
        assert line.endswith("…") and "red \ufffd[31m and tab" in line

    def test_many_lines(self, run, classes):
        """More than one batch, in order."""
        texts = [f"{'word ' * (index % 9)}{index}" for index in range(100)]
        result = run("classify", classes, "--json", "--batch-size", 8, stdin="\n".join(texts))
        found = json.loads(result.stdout)["results"]
        assert [entry["text"] for entry in found] == texts
        for text, entry in list(zip(texts, found, strict=True))[::17]:
            alone = doge_export.load(classes).classify(text)
            assert entry["labels"][0]["label"] == alone[0]["label"]
            assert entry["labels"][0]["score"] == pytest.approx(alone[0]["score"], abs=1e-4)


class TestEmbed:
    @pytest.mark.parametrize("options", [[], ["--pooling", "last"], ["--normalize"]], ids=str)
    def test_one_vector_a_line(self, run, features, options):
        result = run("embed", features, *TEXTS, *options)
        settings = {"pooling": "last" if "last" in options else "mean", "normalize": "--normalize" in options}
        expected = doge_export.load(features).embed(TEXTS, **settings)
        found = np.array([line.split() for line in result.stdout.splitlines()]).astype(np.float32)
        np.testing.assert_array_equal(found, expected)  # every digit is there
        assert (result.exit_code, result.stderr) == (0, "")

    def test_json(self, run, features):
        expected = doge_export.load(features).embed(TEXTS)
        result = run("embed", features, *TEXTS, "--json")
        found = json.loads(result.stdout)["results"]
        assert [entry["text"] for entry in found] == TEXTS
        np.testing.assert_array_equal(np.array([entry["vector"] for entry in found], np.float32), expected)

    def test_every_token(self, run, features):
        session = doge_export.load(features)
        found = json.loads(run("embed", features, *TEXTS, "--pooling", "none", "--json").stdout)["results"]
        for entry, states in zip(found, session.embed(TEXTS, pooling="none"), strict=True):
            np.testing.assert_array_equal(np.array(entry["vectors"], np.float32), states)

    def test_output(self, run, features, lines, tmp_path):
        file = tmp_path / "vectors.npy"
        result = run("embed", features, "--file", lines, "--output", file)
        vectors = np.load(file)
        assert result.stdout == f"{file}  float32 [3, 64]\n"
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, doge_export.load(features).embed(TEXTS))
        run("embed", features, "--output", file, stdin="")
        assert np.load(file).shape == (0, 64)


def test_bad_requests_are_one_line_and_write_nothing(run, features, classes, tmp_path):
    long = "word " * 200
    for folder, arguments, message in [
        (features, ["embed", ""], "text 1: the prompt is empty"),
        (classes, ["classify", "a", ""], "text 2: the prompt is empty"),
        (classes, ["classify", long], "more than this export holds (72)"),
        (features, ["embed", "a", long], "text 2: "),
        (features, ["embed", "a", "--output", tmp_path / "x.txt"], "does not end in .npy"),
        (features, ["embed", "a", "--output", tmp_path / "none" / "x.npy"], "its folder does not exist"),
        (features, ["embed", "--file", tmp_path / "none.txt"], "cannot read"),
        (features, ["embed", "--file", tmp_path], "cannot read"),
        (features, ["embed", "a", "--threads", "0"], "threads is 0"),
    ]:
        result = run(arguments[0], folder, *arguments[1:])
        assert result.exit_code == 2, arguments
        assert result.stdout == ""
        assert message in result.stderr
        assert result.stderr.startswith("doge-export: error: ") and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert run("classify", classes, long, "--truncate").exit_code == 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_disk_that_fills_up_at_the_last_bytes(run, features, tmp_path):
    import resource

    file = tmp_path / "x.npy"
    file.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        result = run("embed", features, "a", "b", "--output", file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1 and "--output cannot be written" in result.stderr
    assert file.read_bytes() == b"old" and [*tmp_path.iterdir()] == [file]


def test_an_output_that_is_a_folder(run, features, tmp_path):
    (tmp_path / "x.npy").mkdir()
    result = run("embed", features, "a", "--output", tmp_path / "x.npy")
    assert result.exit_code == 2 and "is a folder" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pooling", "none", "a"],
        ["--json", "--output", "x.npy", "a"],
        ["--file", "x.txt", "a"],
        ["--batch-size", "0", "a"],
        ["--pooling", "max", "a"],
    ],
)
def test_options_that_do_not_go_together(run, features, arguments):
    result = run("embed", features, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


def test_lines_that_are_not_text(run, classes, tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    result = run("classify", classes, "--file", tmp_path / "latin")
    assert result.exit_code == 2
    assert f"{tmp_path / 'latin'} is not UTF-8 text" in result.stderr and result.stderr.count("\n") == 1
    assert "stdin is not UTF-8 text" in run("classify", classes, stdin=b"\xff\n").stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "openpty"), reason="POSIX terminals")
@pytest.mark.parametrize("command", ["embed", "classify"])
def test_a_bar_on_a_terminal_and_nothing_to_read_is_said(start, features, classes, lines, command):
    import os

    folder = features if command == "embed" else classes
    controller, terminal = os.openpty()
    process = start(command, folder, stdin=terminal)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and b"give at least one TEXT" in stderr
    process = start(command, folder, "--file", lines, stderr=terminal)
    os.close(terminal)
    stdout, _ = process.communicate(timeout=60)
    shown = b""
    try:
        while chunk := os.read(controller, 4096):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(controller)
    assert process.returncode == 0
    assert (b"embedding" if command == "embed" else b"classifying") in shown
    assert stdout.count(b"\n") == 3 and b"embedding" not in stdout and b"classifying" not in stdout


@pytest.mark.parametrize("task", ["text-generation", "feature-extraction", "text-classification"])
def test_commands_of_other_tasks_are_one_line(run, task_export, task, tmp_path):
    folder = task_export(task).folder
    commands = {
        "generate": (["a"], "text-generation"),
        "chat": ([], "text-generation"),
        "bench": ([], "text-generation"),
        "embed": (["a"], "feature-extraction"),
        "classify": (["a"], "text-classification"),
    }
    own = {"text-generation": "generate", "feature-extraction": "embed", "text-classification": "classify"}[task]
    for command, (arguments, needed) in commands.items():
        if needed == task:
            continue
        result = run(command, folder, *arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr == (
            f"doge-export: error: {command} needs a folder exported for {needed}, and {folder} was exported for {task}"
            f": use `doge-export {own}`, or export the checkpoint with --task {needed}\n"
        )


@pytest.mark.parametrize("command", ["embed", "classify"])
def test_folders_that_are_none(run, tmp_path, command):
    for folder, message in [(tmp_path / "nothing", "does not exist"), (tmp_path, "is not an exported folder")]:
        result = run(command, folder, "Hello")
        assert result.exit_code == 2
        assert message in result.stderr and result.stderr.count("\n") == 1
