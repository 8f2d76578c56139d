import json
import subprocess
import sys
import textwrap

import pytest
from packaging import markers

from doge_export import installing
from doge_export.installing import Requirement, install_command, requirement_for, requirements


def test_ready(run):
    result = run("doctor")
    assert result.exit_code == 0
    assert "CPUExecutionProvider" in result.stdout
    assert result.stdout.endswith("ready to run exported folders\n")


def test_json(run):
    facts = json.loads(run("doctor", "--json").stdout)
    assert set(facts["extras"]["base"]) == {
        "click",
        "jinja2",
        "numpy",
        "onnxruntime",
        "packaging",
        "rich",
        "safetensors",
        "tokenizers",
    }
    assert facts["extras"]["export"]["torch"]["ok"]
    assert set(facts["bundled"]) == {"doge-nano", "doge-nano-moe"}
    for extra, command in facts["missing"].items():
        assert command == install_command(extra)


def test_base_install_is_ready_and_without_onnxruntime_not():
    """The real command with the import system and the metadata of the packages taken away."""
    code = """
    import importlib.metadata, importlib.util, sys
    missing = sys.argv.pop(1).split(",")
    version, find_spec = importlib.metadata.version, importlib.util.find_spec
    def no_version(name):
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)
    importlib.metadata.version = no_version
    importlib.util.find_spec = lambda name, *rest: None if name in missing else find_spec(name, *rest)
    sys.modules.update(dict.fromkeys(missing))
    from doge_export.cli import main
    main(prog_name="doge-export")
    """

    def doctor(missing):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), missing, "doctor"], capture_output=True, text=True
        )

    result = doctor("torch,transformers,onnx,onnxscript,huggingface_hub,matplotlib,psutil")
    assert result.returncode == 0, result.stderr
    assert f"to export and validate: {install_command('export')}\n" in result.stdout
    result = doctor("onnxruntime")
    assert result.returncode == 1, result.stderr
    assert f"to run an exported folder: {install_command()}\n" in result.stdout
    assert result.stdout.endswith("not ready to run exported folders\n")


@pytest.mark.parametrize(
    ("specifier", "installed", "met"),
    [
        (">=1.23", "1.23.0", True),
        (">=1.23", "1.22.9", False),
        (">=1.23.0", "1.23", True),
        ("<2.14,>=2.11", "2.13.0+cpu", True),
        ("<2.14,>=2.11", "2.14.0", False),
        ("<2.14,>=2.11", "2.9", False),
        ("", "0.1", True),
        (">=1", None, False),
    ],
)
def test_versions(specifier, installed, met):
    assert Requirement("x", specifier, None, installed).met == met


@pytest.mark.parametrize(
    ("machine", "names"),
    [(("linux", "x86_64"), ["a", "b", "d"]), (("win32", "AMD64"), ["a", "b", "c"]), (("darwin", "arm64"), ["a", "b"])],
)
def test_what_another_platform_needs_is_not_missing_here(monkeypatch, machine, names):
    lines = [
        "a>=1",
        "b<2; extra == 'export'",
        "c; (sys_platform == 'win32') and extra == 'export'",
        "d>=3; (sys_platform == 'linux' and platform_machine == 'x86_64') and extra == 'test'",
    ]
    monkeypatch.setattr(installing, "_declared", lambda: (lines, ["export", "test"]))
    there = markers.default_environment() | {"sys_platform": machine[0], "platform_machine": machine[1]}
    monkeypatch.setattr("packaging.markers.default_environment", lambda: dict(there))
    found = {requirement.name: requirement for requirement in requirements()}
    assert [*found] == names
    assert (found["a"].extra, found["b"].extra, found["b"].specifier) == (None, "export", "<2")


def test_every_requirement_can_be_judged():
    found = requirements()
    assert len(found) > 15
    for requirement in found:
        assert requirement.met in (True, False)


def test_extras_of_modules():
    def extra(module):
        return requirement_for(module).extra

    assert extra("torch") == extra("torch.nn") == extra("huggingface_hub") == "export"
    assert extra("tensorrt") == "trt"
    assert extra("numpy") is None
    assert requirement_for("nonsense") is None
