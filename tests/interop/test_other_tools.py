"""A portable folder, unchanged, in tools of others: their greedy answers are ours, in every precision.

    pytest -m slow tests/interop/test_other_tools.py

Each tool gets an environment of its own, installed by pip or npm.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from doge_export.package import read_manifest
from doge_export.runtime import load

pytestmark = pytest.mark.slow

TEXT, TOKENS = "Once upon a time", 16
PRECISIONS = ("fp32", "fp16", "int8", "int4", "q4f16")
OPTIONS = {"do_sample": False, "max_new_tokens": TOKENS}


def said(command, **options):
    """The JSON that a script prints last."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnxruntime_genai(folder, python, script, precision):
    session = load(folder, precision=precision)
    expected = session.generate(TEXT, **OPTIONS)
    file = read_manifest(folder).graph_of(precision)
    found = said([python("onnxruntime-genai==0.18.*"), script("genai_greedy.py"), folder, file, TOKENS, TEXT])
    assert found["prompt"] == expected.prompt_token_ids
    assert found["answer"] == expected.token_ids and found["text"] == expected.text


@pytest.fixture(scope="module")
def optimum(folder, python, script):
    """Its answers by file."""
    interpreter = python("optimum-onnx[onnxruntime]==0.1.*", "torch>=2.11,<2.14")
    files = [read_manifest(folder).graph_of(precision).removeprefix("onnx/") for precision in PRECISIONS]
    return said([interpreter, script("optimum_greedy.py"), folder, TOKENS, TEXT, *files])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_optimum(folder, optimum, precision):
    expected = load(folder, precision=precision).generate(TEXT, **OPTIONS)
    assert optimum["prompt"] == expected.prompt_token_ids
    assert optimum["answers"][read_manifest(folder).graph_of(precision).removeprefix("onnx/")] == expected.token_ids


@pytest.fixture(scope="module")
def transformers_js(folder, node, script):
    """Its answers by precision, to a text and to a message of a conversation."""
    where = node("@huggingface/transformers@^4.3.2")
    shutil.copy(script("transformers_js.mjs"), where)
    names = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4", "q4f16": "q4f16"}
    command = ["node", "transformers_js.mjs", folder.parent, folder.name, TOKENS, TEXT, *names.values()]
    answers = said(command, cwd=where)
    return {precision: answers[name] for precision, name in names.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_transformers_js(folder, transformers_js, precision):
    session = load(folder, precision=precision)
    assert transformers_js[precision]["plain"] == session.generate(TEXT, **OPTIONS).text
    chat = session.tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], add_generation_prompt=True)
    ids = session.tokenizer.encode(chat, add_special_tokens=False)
    assert transformers_js[precision]["chat"] == session.generate(ids, **OPTIONS).text


@pytest.fixture(scope="module")
def transformers_js_page(node, script):
    """Its answers by precision to a text, in headless Chromium, on one thread of WebAssembly."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    where = node("@huggingface/transformers@^4.3.2", "playwright-core")
    shutil.copy(script("transformers_js_page.mjs"), where)

    def answers(folder, *precisions):
        names = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4", "q4f16": "q4f16"}
        what = [folder.parent, folder.name, TOKENS, TEXT, *(names[precision] for precision in precisions)]
        answered = said(["node", "transformers_js_page.mjs", chromium, *what], cwd=where)
        return {precision: answered[names[precision]] for precision in precisions}

    return answers


def test_transformers_js_in_a_page(folder, transformers_js_page):
    answers = transformers_js_page(folder, *PRECISIONS)
    assert answers == {name: load(folder, precision=name).generate(TEXT, **OPTIONS).text for name in PRECISIONS}


def test_transformers_js_in_a_page_takes_expanded_weights(expanded, transformers_js_page):
    answers = transformers_js_page(expanded, "int8", "int4")
    assert answers == {name: load(expanded, precision=name).generate(TEXT, **OPTIONS).text for name in answers}
