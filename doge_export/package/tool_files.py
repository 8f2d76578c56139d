"""Files of a portable folder that other tools read, made from the checkpoint's.

Optimum finds the graphs by name; transformers.js reads a few keys more, and onnxruntime-genai a file of its own. Tried
with transformers.js 4.3.2, onnxruntime-genai 0.18 and optimum-onnx 0.1.0, 28 November 2026.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.checkpoint.files import CONFIG, TEMPLATES
from doge_export.json_file import read_object
from doge_export.package.manifest import MODEL, Manifest
from doge_export.regular_file import is_there, read_regular

GENAI = "genai_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

TRANSFORMERS_JS = {"fp32": "fp32", "fp16": "fp16", "int8": "q8", "int4": "q4", "q4f16": "q4f16"}
"""Names of precisions in transformers.js."""

DEVICES = {"wasm": ("fp16", "fp32"), "webgpu": ("fp16", "q4f16", "fp32")}
"""Precisions for each device of transformers.js, best first.

WebAssembly computes fp16 graphs in float32: half the download of fp32 at its speed. Of a 20M, in tokens a second of one
thread: fp32 116, fp16 175, int8 37, int4 24. Expanded int8 weights (`QuantizationRequest.expand_weights`) have the
speed of fp32, too, at a quarter of its download, and come first.
"""


def write_tool_files(folder: Path, manifest: Manifest) -> None:
    """Write them into a folder that is being written; folders of other targets are for our own runtime and get none.

    Running it again, after graphs were added, changes nothing else.

    Raises:
        DogeExportError: a file of the checkpoint is no JSON object.
    """
    if manifest.target != "portable" or manifest.cache == "bounded":  # no tool feeds scores back by itself
        return
    config = read_object(folder / CONFIG)
    if is_there(folder / "tokenizer.json"):
        _write(folder / TOKENIZER_CONFIG, tokenizer_config(folder, config, manifest.max_length))
    config["transformers.js_config"] = transformers_js_config(folder, manifest)
    _write(folder / CONFIG, config)
    if manifest.task == "text-generation" and MODEL in manifest.graphs:
        _write(folder / GENAI, genai_config(manifest, config))


def tokenizer_config(folder: Path, config: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Return tokenizer_config.json with what transformers.js looks for there and nowhere else.

    It reads no chat_template.jinja, and adds the first token of a text only if `add_bos_token` says so, whatever
    tokenizer.json does.

    Args:
        folder: holds the tokenizer's files.
        config: content of config.json.
        max_length: of the export.
    """
    file = folder / TOKENIZER_CONFIG
    found = read_object(file) if is_there(file) else {}
    template = _chat_template(folder)
    if template is not None:
        found["chat_template"] = template
    if adds_bos(read_object(folder / "tokenizer.json"), config.get("bos_token_id")):
        found["add_bos_token"] = True
    else:
        found.pop("add_bos_token", None)
    return found | {"model_max_length": max_length}


def adds_bos(tokenizer: Mapping[str, Any], bos_token_id: object) -> bool:
    """Return whether a tokenizer puts the first token of a text before it.

    Args:
        tokenizer: content of tokenizer.json.
        bos_token_id: id of that token.
    """
    step = tokenizer.get("post_processor")
    steps = step.get("processors") if isinstance(step, dict) and step.get("type") == "Sequence" else [step]
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing" and step.get("single"):
            first = step["single"][0].get("SpecialToken", {}).get("id")
            if step.get("special_tokens", {}).get(first, {}).get("ids") == [bos_token_id]:
                return True
    return False


def transformers_js_config(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the value of `transformers.js_config` in config.json: types of caches, external weights, precisions.

    Args:
        folder: holds the graphs.
        manifest: of the folder.
    """
    files = {graph.precision: name for name, graph in manifest.graphs.items()}
    small = [
        graph.precision
        for graph in manifest.graphs.values()
        if graph.precision == "int8" and (graph.quantization or {}).get("expanded")
    ]
    devices = {**DEVICES, "wasm": (*small, *DEVICES["wasm"])}
    settings: dict[str, Any] = {
        "device_config": {
            device: {"dtype": next(TRANSFORMERS_JS[name] for name in precisions if name in files)}
            for device, precisions in devices.items()
            if not files.keys().isdisjoint(precisions)
        }
    }
    halves = {precision: "float16" for precision in ("fp16", "q4f16") if precision in files}
    if halves and manifest.task == "text-generation":
        settings["kv_cache_dtype"] = halves
    external = {Path(name).name: 1 for name in files.values() if is_there(folder / f"{name}_data")}
    if external:
        settings["use_external_data_format"] = external
    return settings


def genai_config(manifest: Manifest, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return genai_config.json of onnxruntime-genai, for the fp32 graph.

    Its loader takes one graph a configuration; the caller overlays the file name of another, see the model card.

    Args:
        manifest: of the folder.
        config: content of config.json.
    """
    a = manifest.architecture
    ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    decoder = {
        "filename": MODEL,
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "hidden_size": a["hidden_size"],
        "head_size": a["head_dim"],
        "num_attention_heads": a["num_attention_heads"],
        "num_hidden_layers": a["num_hidden_layers"],
        "num_key_value_heads": a["num_key_value_heads"],
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "decoder",
        **{name: number for name, number in ids.items() if number is not None},
        "context_length": manifest.max_length,
        "vocab_size": a["vocab_size"],
        "decoder": decoder,
    }
    return {"model": model, "search": {"max_length": manifest.max_length, "past_present_share_buffer": False}}


def _chat_template(folder: Path) -> str | list[dict[str, str]] | None:
    """Return the template of chat_template.jinja; with named ones beside it all of them; None without any."""
    main = folder / "chat_template.jinja"
    if not is_there(main):
        return None
    default = read_regular(main).decode()
    named = sorted((folder / TEMPLATES).glob("*.jinja"))
    if not named:
        return default
    others = [{"name": file.stem, "template": read_regular(file).decode()} for file in named]
    return [{"name": "default", "template": default}, *others]


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
