"""Tiny random checkpoints of every generation, with its own tensor names and config keys.

Names and shapes are those of samples/benchmark/spelling.py, written down from the published code without a look at
doge_export's own tables.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SAMPLE = Path(__file__).parents[1] / "samples" / "benchmark"
sys.path.insert(0, str(SAMPLE))
try:  # the sample's modules import each other by bare name, as a script's neighbours do
    import make_checkpoint
    import published
    import spelling
finally:
    sys.path.remove(str(SAMPLE))

PUBLISHED = published.PUBLISHED
TINY = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
INNER = {
    "num_inner_values": 8,
    "num_inner_value_heads": 2,
    "num_value_per_head": 3,
    "inner_values_retrieval_size": 8,
    "private_expert_retrieval_size": 8,
}
# Keys of a mixture of 20 experts (16 within reach), by form and, for M1, by date.
DOUBLE_M = {"num_cdmmoe_experts": 20, "num_cdmmoe_heads": 2, "num_cdmmoe_experts_per_head": 3}
SINGLE_M = {"num_cdmoe_experts": 20, "num_cdmoe_heads": 2, "num_cdmoe_experts_per_head": 3}
ONE_HEAD = {"num_experts": 20, "num_experts_per_tok": 3}
RETRIEVAL = {"expert_retrieval_size": 8}
RETRIEVAL_BEFORE = {"private_expert_retrieval_size": 8}  # up to the last day of G2
MOE = {
    "M0": DOUBLE_M,
    "M0-shared": DOUBLE_M,
    "M2": {"is_moe": True} | SINGLE_M | RETRIEVAL,
    "M3": {"is_moe": True} | SINGLE_M | RETRIEVAL,
    "M4": {"is_moe": True} | ONE_HEAD | RETRIEVAL,
    "M5": {"is_moe": True} | ONE_HEAD | RETRIEVAL,
    "M6": {"is_moe": True} | ONE_HEAD,
    "M6-bias": {"is_moe": True} | ONE_HEAD,
    "M7": {"is_moe": True} | ONE_HEAD,
}
LABELS = {"0": "no", "1": "perhaps", "2": "yes"}
HEADS = {None: "Model", "lm_head": "ForCausalLM"}


def _template(generation: str) -> dict[str, Any]:
    of = {
        "G1": PUBLISHED["22M"]["G1"],
        "G2-early": PUBLISHED["20M-Instruct"]["G3a"],
        "G2": PUBLISHED["20M-Instruct"]["G3a"],
        "G3a": PUBLISHED["20M-Instruct"]["G3a"],
        "G3b": PUBLISHED["20M"]["G3b"],
        "G4a": PUBLISHED["20M"]["G4b"],
        "G4b": PUBLISHED["20M"]["G4b"],
        "G5": PUBLISHED["20M"]["G5"],
        "G6a": PUBLISHED["Doge2-175M"]["G6a"],
        "G6b": PUBLISHED["Doge2-175M"]["G6a"],
        "G7": PUBLISHED["20M"]["G7"],
        "G8": PUBLISHED["20M"]["G7"],
    }[generation]
    config = {key: value for key, value in of.config.items() if not key.startswith(("num_experts", "is_moe", "norm_"))}
    if generation not in ("G1", "G2-early"):
        config["is_moe"] = False
    if generation == "G4a":
        del config["keep_window_size"]
    if "keep_window_size" in config:
        config["keep_window_size"] = 20
    if generation == "G8":
        config["window_size"] = config.pop("keep_window_size")
    return config


def older_config(
    generation: str, cdmoe: str | None = None, head: str | None = "lm_head", **changes: Any
) -> dict[str, Any]:
    """The content of config.json; `...` among the changes removes a key."""
    config = _template(generation) | TINY | (INNER if generation == "G1" else {})
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = 2
    if cdmoe == "M1":
        config |= {"is_moe": True} | (DOUBLE_M if generation[:2] in ("G2", "G3") else SINGLE_M)
        config |= RETRIEVAL_BEFORE if generation == "G2" else RETRIEVAL
    elif cdmoe is not None:
        config |= MOE[cdmoe]
    family = "Doge2" if config["model_type"] == "doge2" else "Doge"
    config["architectures"] = [family + HEADS.get(head, "ForSequenceClassification")]
    if head in ("score", "classifier"):
        config |= {"id2label": LABELS, "label2id": {label: int(index) for index, label in LABELS.items()}}
    return {key: value for key, value in (config | changes).items() if value is not ...}


def older_doge(
    folder: Path,
    generation: str,
    cdmoe: str | None = None,
    head: str | None = "lm_head",
    *,
    says: dict[str, Any] | None = None,
    edit: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a checkpoint.

    Args:
        folder: where.
        generation: G1 to G8, and "G2-early" of 8 December 2024.
        cdmoe: M0 to M7; "M0-shared" and "M6-bias" as in `spelling`; the first generation always has one.
        head: as in `spelling.tensors`; classifiers have three classes.
        says: changes of config.json that the tensors do not follow.
        edit: changes the tensors.
        dtype: what they are stored in.
        seed: another one, other weights.
        changes: of config.json, which the tensors follow; `...` removes a key.
    """
    cdmoe = cdmoe or ("M0" if generation == "G1" else None)
    config = older_config(generation, cdmoe, head, **changes)
    shapes = spelling.tensors(generation, cdmoe, config, head, len(LABELS))
    said = {key: value for key, value in (config | (says or {})).items() if value is not ...}
    make_checkpoint.write(folder, said, shapes, dtype=dtype, seed=seed, third=generation in ("G3a", "G3b"))
    if edit is not None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))
