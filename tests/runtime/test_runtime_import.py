"""The runtime runs where neither torch nor anything else of the export is installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "safetensors", "huggingface_hub"):
    sys.modules[name] = None  # as if it were not installed
import doge_export
from doge_export.runtime import Generation, Session, load
assert doge_export.load is load
try:
    load("no such folder")
except doge_export.DogeExportError as error:
    assert "no such folder" in str(error)
else:
    raise AssertionError("loaded nothing")
"""


def test_importing_and_loading_need_nothing_of_the_export():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
