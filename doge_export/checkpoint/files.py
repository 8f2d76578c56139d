"""Names of the files that make up a checkpoint."""

from __future__ import annotations

from pathlib import Path

from doge_export.regular_file import is_there

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
"""Files that tools expect beside a model's weights; a package holds unchanged copies of them."""


def companions(folder: Path) -> list[Path]:
    """Return the paths of those COMPANIONS that exist in `folder`."""
    return [folder / name for name in COMPANIONS if is_there(folder / name)]
