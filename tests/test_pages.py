"""Every code block of every page is run here, word for word, or compared with what it speaks of."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pages import BLOCKS, PAGES, ROOT, block

from doge_export.cli import main
from doge_export.quantization import texts

README = PAGES["README.md"]
SAMPLES = sorted(path.parent for path in (ROOT / "samples").glob("*/README.md"))

RUN = {
    ("README.md", "Start", "bash"): ".ci/run, in an environment of its own",
    ("README.md", "How it works", "text"): "test_the_picture_names_the_stages",
    ("README.md", "Use it", "bash"): "test_commands",
    ("README.md", "From Python", "python"): "test_python",
    ("doge_export/README.md", "Add a pass", "python"): "test_the_example_of_a_pass",
    ("doge_export/package/README.md", "What a folder holds", "text"): "test_folder_layout_is_what_an_export_writes",
    ("samples/benchmark/README.md", "Run it", "bash"): "test_benchmark_sample_runs",
}
"""Blocks that are run or compared by a test of their own; of all others each line is compared."""


def run(script: str) -> str:
    """Run the lines of a block in this process, which has torch imported, as a shell would; their output.

    A line calls doge-export or a Python program of the current folder; it may read `echo TEXT |` and write `> FILE`.
    """
    output = ""
    for line in script.replace("\\\n", " ").splitlines():
        words, given, written = shlex.split(line, comments=True), "", None
        if words[0] == "echo":
            bar = words.index("|")
            given, words = " ".join(words[1:bar]) + "\n", words[bar + 1 :]
        if ">" in words:
            *words, _, written = words
        if words[0] == "python":
            said = _run_program(words[1:])
        else:
            assert words[0] == "doge-export", line
            result = CliRunner().invoke(main, words[1:], input=given, catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"
            said = result.stdout
        if written:
            Path(written).write_text(said, encoding="utf-8")
        else:
            output += said
    return output


def _run_program(words: list[str]) -> str:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(".")
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as exit:
            assert not exit.code, words
    return said.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that a block is run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_is_short_and_starts_with_two_commands():
    assert len(README.splitlines()) <= 130
    starts = [each.code.strip().splitlines() for each in BLOCKS if (each.page, each.heading) == ("README.md", "Start")]
    assert [len(lines) for lines in starts] == [1, 1]
    first, second = (lines[0] for lines in starts)
    assert first.startswith("python -m venv") and '".[export]"' in first and "doge-export onnx doge-nano" in first
    assert second.startswith("python -m venv") and '".[test]"' in second and "-m pytest" in second


@pytest.mark.usefixtures("shared_references")
def test_commands(folder, monkeypatch):
    monkeypatch.setattr(texts, "TOKENS", {"calibration": 200, "evaluation": 200})  # as many would take most of the time
    assert "PASSED" in run(block("README.md", "Use it"))


def test_python(folder, capsys):
    space: dict[str, object] = {}
    exec(block("README.md", "From Python", "python"), space)
    assert space["logits"].shape[:2] == (1, 4)
    assert space["vectors"].shape[0] == 2
    assert capsys.readouterr().out.startswith(", ")  # the story goes on: "Once upon a time, ..."


def test_the_example_of_a_pass():
    import onnx
    import onnx_ir as ir

    space: dict[str, object] = {}
    exec(block("doge_export/README.md", "Add a pass", "python"), space)
    model = ir.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (float[2] y) { a = Identity (x) y = Neg (a) }'
        )
    )
    assert space["DropIdentity"]()(model).modified
    (negation,) = [node for node in model.graph if node.op_type == "Neg"]
    assert negation.inputs[0] is model.graph.inputs[0]


def test_the_picture_names_the_stages():
    stages = block("README.md", "How it works", "text").splitlines()[0].replace("─", "").replace(">", "").split()
    assert stages == ["checkpoint", "model", "graph", "targets", "package", "runtime"]
    assert all((ROOT / "doge_export" / stage).is_dir() for stage in stages)


@pytest.mark.parametrize("each", [each for each in BLOCKS if each[:3] not in RUN], ids=str)
def test_every_line_of_other_blocks_is_true(each):
    """Commands and options exist, files are there; what needs a GPU or minutes cannot be run here."""
    lines = [line for line in each.code.replace("\\\n", " ").splitlines() if line]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words and words[0] in CHECKS, f"{each}: nothing checks {line!r}"
        CHECKS[words[0]](words)


def _check_command(words: list[str]) -> None:
    command, rest = main, words[1:]
    while isinstance(command, click.Group):
        command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
    assert command is not None, words
    options = {option for parameter in command.params for option in parameter.opts}
    for word in rest:
        if word in ("|", "&&", ">"):
            return
        assert not word.startswith("--") or word.split("=")[0] in options, f"{words} has no {word}"


def _check_file(name: str) -> None:
    assert (ROOT / name).is_file(), name


def _check_extra(words: list[str]) -> None:
    (extras,) = [match[1] for word in words if (match := re.search(r"\[([\w,]+)\]", word))]
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE), extra


BUILD_FILES = "plugins/*/CMakeLists.txt"


def _check_cmake(words: list[str]) -> None:
    if "--target" in words:
        target = words[words.index("--target") + 1]
        assert any(f"add_executable({target} " in file.read_text(encoding="utf-8") for file in ROOT.glob(BUILD_FILES))
        return
    source = ROOT / words[words.index("-S") + 1]
    text = "".join(file.read_text(encoding="utf-8") for file in source.rglob("CMakeLists.txt"))
    for word in words:
        if word.startswith("-DDOGE"):
            assert word[2:].split("=")[0] in text, word


def _check_cmake_target(sample: str, name: str) -> None:
    assert f"add_executable({name} " in (ROOT / "samples" / sample / "CMakeLists.txt").read_text(encoding="utf-8")


def _check_packages(words: list[str]) -> None:
    """Names of Debian packages, as the build file that needs them says them."""
    build_files = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "samples").rglob("CMakeLists.txt"))
    for word in words[2:]:
        assert word in ("cmake", "g++") or word in build_files, word


def _check_import(words: list[str]) -> None:
    exec(" ".join(words), {})


CHECKS = {
    "doge-export": _check_command,
    "python": lambda words: _check_file(words[-1] if words[1:3] == ["-m", "pytest"] else words[1]),
    "pip": _check_extra,
    "node": lambda words: _check_file(words[1]),  # run by tests/interop
    "npm": lambda words: _check_file(f"{words[words.index('--prefix') + 1]}/package.json"),
    "cmake": _check_cmake,
    "polygraphy": lambda words: None,  # run by tests/trt/test_command.py
    "trtexec": lambda words: None,  # its options were looked up in its source; TensorRT is not here
    "tritonserver": lambda words: None,  # Triton is not here
    "apt": _check_packages,
    "build/doge_generate": lambda words: _check_cmake_target("trt_cpp", "doge_generate"),
    "from": _check_import,
    "register()": lambda words: None,  # what that import gives; called by tests/plugins/test_torch_ops.py
}


def test_blocks_with_tests_of_their_own_are_there():
    assert RUN.keys() <= {each[:3] for each in BLOCKS}


def test_code_stands_in_fences():
    """An indented block would be run by nobody."""
    for page, text in PAGES.items():
        outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        indented = re.findall(r"^\n {4,}(?:doge-export|python|pip|cmake|from|pytest) ", outside, re.MULTILINE)
        assert not indented, page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", sorted(main.list_commands(None)))
def test_every_command_is_in_the_readme(name):
    assert f"doge-export {name}" in README


def test_options_named_on_the_page_of_a_folder_exist():
    command = main.get_command(click.Context(main), "onnx")
    options = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    table = PAGES["doge_export/package/README.md"].split("## Options of `onnx`")[1].split("##")[0]
    named = set(re.findall(r"`(--[\w-]+)", table))
    assert named and named <= options


def test_files_and_tests_named_by_the_steps_exist():
    """A name in capitals stands for a file to be written."""
    steps = PAGES["doge_export/README.md"].split("## Add a target")[1]
    tests, files = re.findall(r"tests/[\w/]+\.py", steps), re.findall(r"`([a-z\d_/]+\.py)`", steps)
    assert len(tests) > 10 and len(files) > 10
    assert [name for name in tests if not (ROOT / name).is_file()] == []
    assert [name for name in files if not (ROOT / "doge_export" / name).is_file()] == []


def test_folder_layout_is_what_an_export_writes(nano_folder):
    text = block("doge_export/package/README.md", "What a folder holds", "text")
    listed = set(re.findall(r"[\w./]+\.(?:onnx|json|md)\b", text))
    written = {path.relative_to(nano_folder).as_posix() for path in nano_folder.rglob("*") if path.is_file()}
    assert listed <= written
    assert written - listed <= {"special_tokens_map.json", "chat_template.jinja"}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_sample_has_its_three_headings(sample):
    headings = re.findall(r"^## (.*)$", (sample / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings == ["What it shows", "Run it", "What you should see"]
    assert f"{sample.name}/README.md" in PAGES["samples/README.md"]


def test_benchmark_sample_runs(folder):
    script = block("samples/benchmark/README.md", "Run it")
    # The same lines with a hundredth of the work: whether they run is what is asked here, not how fast.
    smaller = {'"20M": (256, 512, 8,': '"20M": (256, 512, 2,', '"vocab_size": 32768': '"vocab_size": 1024'}
    for file in (ROOT / "samples/benchmark").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        for size, small in smaller.items():
            assert file.name != "published.py" or size in text
            text = text.replace(size, small)
        (folder / file.name).write_text(text, encoding="utf-8")
    script = script.replace("--rounds 1", "--rounds 1 --new-tokens 8 --prefill-length 32")
    assert "ratio" in run(script)
