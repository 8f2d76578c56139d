"""Random checkpoints with transformers' heads for tasks other than writing, and the tokenizer of doge-nano."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from random_doge import random_model
from transformers import DogeForCausalLM, DogeForSequenceClassification, DogeModel

from doge_export.assets import bundled

KINDS = {
    "text-generation": DogeForCausalLM,
    "feature-extraction": DogeModel,
    "text-classification": DogeForSequenceClassification,
}
VOCAB_SIZE = 1024


class TaskExport(NamedTuple):
    """transformers' model, the folder it was saved to, and the exported one."""

    model: Any
    checkpoint: Path
    folder: Path


def saved(task: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """A random model of two layers, saved to `folder` by transformers."""
    settings = {"num_hidden_layers": 2, "vocab_size": VOCAB_SIZE} | changes
    model = random_model(seed, KINDS[task], **settings)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(bundled("doge-nano") / name, folder / name)
    return model
