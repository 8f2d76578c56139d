"""Every test of ctest is a test here: passed, failed, or skipped with its reason."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from doge_export.plugin.sources import plugin_sources

_LOOP = re.compile(r"foreach\((\w+) ([^)]*)\)(.*?)endforeach\(\)", re.DOTALL)
_ADDED = re.compile(r"^\s*doge_(?:add|skip)_test\(\s*NAME (\w+)|^\s*doge_add_(emulated)_test\((\w+)", re.MULTILINE)


def written_tests() -> list[str]:
    """Names in the CMakeLists.txt, so that listing tests compiles nothing."""
    found: set[str] = set()
    for file in (plugin_sources() / "tests").rglob("CMakeLists.txt"):
        unrolled = _LOOP.sub(unroll, file.read_text(encoding="utf-8"))
        found |= {name or f"{emulated}_{program}" for name, emulated, program in _ADDED.findall(unrolled)}
    return sorted(found)


def unroll(loop: re.Match[str]) -> str:
    """The body of a foreach, once for each value."""
    variable, values, body = loop.groups()
    return "\n".join(body.replace(f"${{{variable}}}", value) for value in values.split())


def ctest(tree: Path, *arguments: object) -> str:
    command = ["ctest", "--test-dir", tree, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="session")
def there(cpu_tree):
    """Names that ctest knows, and the label of each."""
    tests = json.loads(ctest(cpu_tree, "--show-only=json-v1"))["tests"]
    properties = {test["name"]: {entry["name"]: entry["value"] for entry in test["properties"]} for test in tests}
    return {name: values.get("LABELS") for name, values in properties.items()}


def test_no_test_of_ctest_is_overlooked(there):
    assert sorted(there) == written_tests()


def test_every_test_says_what_it_needs(there):
    assert {label for labels in there.values() for label in labels} <= {"cpu", "gpu"}


NEED_KERNELS = {
    **{name: "emulated" for name in written_tests() if name.startswith("emulated_")},
    **{"gpu_kernels": "gpu_kernels", "resources": "doge_kernels"},
    **{"trt_gpu": "trt_gpu", "trt_host_kernels": "trt_host_kernels"},
}
"""Tests of the build with kernels, where there is nvcc, and what must be compiled for each."""


@pytest.fixture
def tree(name, cpu_tree, compiled, compiled_with_kernels, toolchain):
    built_with_kernels = name in NEED_KERNELS and toolchain.nvcc.path
    if name == "emulated_ptx" and not built_with_kernels:
        return compiled(target=name)
    return compiled_with_kernels(NEED_KERNELS[name]) if built_with_kernels else cpu_tree


@pytest.mark.parametrize("name", written_tests())
def test_ctest(name, tree, tmp_path):
    run(name, tree, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gpu_kernels", "resources", "emulated_attention_decode", "emulated_attention_prefill"]
)
def test_with_kernels_for_every_gpu_and_head_size(name, compiled, tmp_path):
    """Compiled with warnings as errors; the limits of resources hold on each."""
    run(name, compiled("80", "86", "89", "90", target=NEED_KERNELS[name]), tmp_path)


def run(name, tree, tmp_path):
    report = tmp_path / "report.xml"
    printed = ctest(tree, "-R", f"^{name}$", "--output-junit", report)
    case = ElementTree.parse(report).find("testcase")
    assert case is not None, printed
    output = case.findtext("system-out") or ""
    skipped = case.find("skipped")
    if skipped is not None:
        assert skipped.get("message") == "SKIP_RETURN_CODE=77", skipped.get("message")
        pytest.skip(output.strip())
    assert case.get("status") == "run", output
