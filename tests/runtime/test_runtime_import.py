"""The runtime runs where neither torch nor anything else of the export is installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
for name in ("torch", "transformers", "onnx", "onnxscript", "safetensors", "huggingface_hub"):
    sys.modules[name] = None  # as if it were not installed
import doge_export
from doge_export.runtime import ClassificationSession, FeatureSession, Generation, Session, load
assert doge_export.load is load
for folder, use in zip(sys.argv[1:], ("embed", "classify")):
    assert len(getattr(load(folder), use)(["Hello!", "And a longer text."])) == 2
try:
    load("no such folder")
except doge_export.DogeExportError as error:
    assert "no such folder" in str(error)
else:
    raise AssertionError("loaded nothing")
"""


def test_importing_and_loading_need_nothing_of_the_export(task_export):
    folders = [task_export("feature-extraction").folder, task_export("text-classification", num_labels=3).folder]
    subprocess.run([sys.executable, "-c", PROGRAM, *map(str, folders)], check=True)
