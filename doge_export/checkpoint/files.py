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
VOCABULARY_FILES = ("vocab.json", "merges.txt", "added_tokens.json")
"""Files of a slow tokenizer, from which transformers makes tokenizer.json."""
COMPANIONS = (CONFIG, *TOKENIZER_FILES)
"""Files that tools expect beside a model's weights; a package holds unchanged copies of them."""


TEMPLATES = "additional_chat_templates"
"""Folder of a checkpoint's named chat templates, each NAME.jinja."""


def companions(folder: Path) -> list[Path]:
    """Return the paths of those COMPANIONS, and of the chat templates of TEMPLATES, that exist in `folder`."""
    templates = sorted((folder / TEMPLATES).glob("*.jinja"))
    return [file for file in (*(folder / name for name in COMPANIONS), *templates) if is_there(file)]


def packaged_name(companion: Path) -> str:
    """Return the name of a companion in a package, relative to it: chat templates have a folder of their own."""
    return f"{TEMPLATES}/{companion.name}" if companion.parent.name == TEMPLATES else companion.name
