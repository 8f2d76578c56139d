"""An exported folder runs where nothing of the export is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

PROGRAM = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not installed")

BLOCKED = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub", "psutil",
           "matplotlib"}
sys.meta_path.insert(0, Refuse())
import doge_export

session = doge_export.load(sys.argv[1], threads=1)
answer = session.generate([1, 5, 9], max_new_tokens=3, do_sample=False, eos_token_id=[])
text = "".join(session.stream("Once", max_new_tokens=3, do_sample=False))
logits = session.logits([1, 5, 9], chunks=[2, 1])
print(json.dumps({
    "ids": answer.token_ids, "text": text, "shape": logits.shape, "loaded": sorted(BLOCKED & set(sys.modules)),
}))
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_generation_needs_nothing_of_the_export(nano_folder):
    result = run(nano_folder)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["ids"]) == 3
    assert found["text"]
    assert found["shape"][:2] == [1, 3]
    assert found["loaded"] == []


def test_what_needs_them_says_so_in_its_own_words(nano_folder):
    """The blocking itself works: an export must fail there."""
    program = PROGRAM.split("session =")[0] + f"doge_export.export({str(nano_folder)!r}, 'nowhere')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "is not installed" in result.stderr


def test_quantizing_needs_no_torch(nano_folder, tmp_path):
    """The folder is enough: neither its checkpoint nor what traced it."""
    shutil.copytree(nano_folder, tmp_path / "out")
    text = tmp_path / "text.txt"  # short: else the model writes thousands of tokens to be judged by
    text.write_text("Once upon a time, there was a little boy who had a dog. " * 4)
    program = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # as if they were not installed
import doge_export
print(*doge_export.quantize({str(tmp_path / "out")!r}, ["fp16"], eval_text={str(text)!r}).qualities)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "onnx/model_fp16.onnx"
