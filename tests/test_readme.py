"""What the README tells a newcomer to do is done here, word for word."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doge_export.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SAMPLES = sorted(path.parent for path in (ROOT / "samples").glob("*/README.md"))


def blocks(text: str, language: str) -> dict[str, str]:
    """Code blocks of a language by the heading they stand under."""
    found = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        code = re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        if code:
            found[section.splitlines()[0]] = "".join(code)
    return found


def run(script: str, folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


def test_set_up_is_two_commands_and_the_rest_one_each():
    commands = {heading: code.strip().splitlines() for heading, code in blocks(README, "bash").items()}
    assert len(commands["Set up"]) == 2
    assert len(commands["See it work"]) == len(commands["Run the tests"]) == 1
    # These two are run by .ci/run, in an environment of their own.
    assert commands["Set up"][0].startswith("python -m venv")
    assert commands["Run the tests"][0].startswith("pytest")


@pytest.mark.parametrize("heading", ["See it work", "Use it"])
def test_commands(heading, tmp_path):
    done = run(blocks(README, "bash")[heading], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "PASSED" in done.stdout


def test_python(tmp_path):
    code = blocks(README, "python")["From Python"]
    done = run(f"{sys.executable} - <<'END'\n{code}\nassert logits.shape[:2] == (1, 4)\nEND", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(", ")  # the story goes on: "Once upon a time, ..."


def test_every_block_belongs_to_a_test():
    assert set(blocks(README, "bash")) == {"Set up", "See it work", "Run the tests", "Use it"}
    assert set(blocks(README, "python")) == {"From Python"}


@pytest.mark.parametrize("name", sorted(main.list_commands(None)))
def test_every_command_is_in_the_readme(name):
    assert f"doge-export {name}" in README


def test_folder_layout_is_what_an_export_writes(nano_folder):
    listed = set(re.findall(r"[\w./]+\.(?:onnx|json|md)\b", blocks(README, "text")["What a folder holds"]))
    written = {path.relative_to(nano_folder).as_posix() for path in nano_folder.rglob("*") if path.is_file()}
    assert listed <= written
    assert written - listed <= {"special_tokens_map.json", "chat_template.jinja"}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_sample_has_its_three_headings(sample):
    headings = re.findall(r"^## (.*)$", (sample / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings == ["What it shows", "Run it", "What you should see"]


def test_benchmark_sample_runs(tmp_path):
    script = blocks((ROOT / "samples/benchmark/README.md").read_text(encoding="utf-8"), "bash")["Run it"]
    for file in (ROOT / "samples/benchmark").glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    # The same lines with a tenth of the work: whether they run is what is asked here, not how fast.
    script = script.replace("--rounds 1", "--rounds 1 --new-tokens 8 --prefill-length 32")
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ratio" in done.stdout
