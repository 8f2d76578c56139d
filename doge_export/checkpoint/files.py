"""The names of the files that make up a checkpoint, and those that tools look for beside a model."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
COMPANIONS = (CONFIG, *TOKENIZER_FILES)
"""What tools look for beside a model; a package takes these files over unchanged."""


def companions(folder: Path) -> list[Path]:
    """Those of COMPANIONS that are there."""
    return [folder / name for name in COMPANIONS if (folder / name).is_file()]
