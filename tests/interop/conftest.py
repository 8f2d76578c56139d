"""A portable folder, and environments of other tools that run it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from doge_export.errors import DogeExportError
from doge_export.pipeline.onnx import export
from doge_export.plugin.cpu_library import build_cpu


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """doge-nano in every precision that a portable folder may have."""
    folder = tmp_path_factory.mktemp("portable") / "nano"
    export("doge-nano", folder, target="portable", precisions=("int8", "int4", "fp16", "q4f16"), validate=False)
    return folder


@pytest.fixture(scope="session")
def expanded(tmp_path_factory):
    """doge-nano, with weights that onnxruntime expands as it loads a graph."""
    folder = tmp_path_factory.mktemp("expanded") / "nano"
    options = {"target": "portable", "precisions": ("int8", "int4"), "expand_weights": True}
    export("doge-nano", folder, **options, validate=False)
    return folder


@pytest.fixture(scope="session")
def native_folder(native_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("native") / "nano"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOGE_EXPORT_CPU_LIBRARY", str(native_file))
        export("doge-nano", folder, target="native", precisions=("int8", "int4"), validate=False)
    return folder


@pytest.fixture
def native(native_folder, native_library):
    """doge-nano for the native decoder, which is there, in every precision that it has."""
    return native_folder


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """The interpreter of an environment of its own, with these requirements."""
    made = {}

    def of(*requirements):
        if requirements not in made:
            environment = tmp_path_factory.mktemp("environment")
            subprocess.run([sys.executable, "-m", "venv", environment], check=True)
            made[requirements] = environment / "bin" / "python"
            command = [made[requirements], "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
            if subprocess.run(command, check=False).returncode != 0:
                pytest.skip(f"{' '.join(requirements)} cannot be installed here")
        return made[requirements]

    return of


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A folder with npm packages in which node runs."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    made = {}

    def of(*packages):
        if packages not in made:
            made[packages] = folder = tmp_path_factory.mktemp("node")
            (folder / "package.json").write_text('{"private": true, "type": "module"}')
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages]
            if subprocess.run(command, cwd=folder, check=False, capture_output=True).returncode != 0:
                pytest.skip(f"{' '.join(packages)} cannot be installed here")
        return made[packages]

    return of


@pytest.fixture(scope="session")
def script():
    """The path of a script in this folder."""
    return lambda name: Path(__file__).with_name(name)


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    """A folder with the WebAssembly modules of the native decoder."""
    try:
        return build_cpu(tmp_path_factory.mktemp("wasm") / "native", target="wasm").path.parent
    except DogeExportError as error:
        pytest.skip(str(error))
