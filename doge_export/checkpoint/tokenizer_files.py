"""The tokenizer of a checkpoint: its files, tokenizer.json made from a vocabulary and merges, and what is missing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_export.checkpoint.files import TEMPLATES, TOKENIZER_FILES, VOCABULARY_FILES
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.regular_file import is_there, read_regular

TOKENIZER = "tokenizer.json"
_IDS_ONLY = "the exported folder will take token ids only"


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of a tokenizer for a package.

    Attributes:
        files: files to copy unchanged.
        made: file name -> content, of files that are made from others.
        notes: what is missing, made or does not fit, a sentence each.
    """

    files: list[Path]
    made: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_tokenizer(folder: Path, adapter: Path | None, rows: int) -> TokenizerFiles:
    """Find the tokenizer of a checkpoint.

    Args:
        folder: the checkpoint.
        adapter: folder of an adapter whose own tokenizer goes before the checkpoint's.
        rows: number of token ids that the model knows.
    """
    notes, own = [], folder
    if adapter is not None and is_there(adapter / TOKENIZER):
        own = adapter
        notes.append(f"the tokenizer is that of the adapter, {adapter}")
    names = [name for name in TOKENIZER_FILES if name != "generation_config.json"]
    templates = sorted((own / TEMPLATES).glob("*.jinja"))
    files = [*(own / name for name in names), *templates, folder / "generation_config.json"]
    files = [file for file in files if is_there(file)]
    made: dict[str, bytes] = {}
    if not is_there(own / TOKENIZER):
        made, said = _without_tokenizer(own, [file for file in files if file.parent == own])
        notes.append(said)
    content = made.get(TOKENIZER) or (read_regular(own / TOKENIZER) if is_there(own / TOKENIZER) else b"")
    ids = _ids(content)
    if ids > rows:
        notes.append(
            f"the tokenizer has ids up to {ids - 1}, the model {rows} rows: a text with an id from {rows} on is refused"
            " (take the tokenizer that the model was trained with, or resize the model)"
        )
    return TokenizerFiles(files, made, notes)


def _without_tokenizer(folder: Path, there: list[Path]) -> tuple[dict[str, bytes], str]:
    """Make tokenizer.json from a vocabulary and merges, or say what is missing."""
    missing = [name for name in ("vocab.json", "merges.txt") if not is_there(folder / name)]
    if not missing:
        try:
            made = _made(folder)
        except Exception as error:  # transformers raises whatever its parsers do
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            return {}, f"transformers makes no {TOKENIZER} of vocab.json and merges.txt ({reason}): {_IDS_ONLY}"
        return {TOKENIZER: made}, f"{TOKENIZER} is missing, and is made by transformers from vocab.json and merges.txt"
    known = {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    partial = sorted(
        [file.name for file in there if file.name in known]
        + [name for name in (*VOCABULARY_FILES, "tokenizer.model", "spiece.model") if (folder / name).is_file()]
    )
    beside = f" (there is {', '.join(partial)})" if partial else ""
    return {}, (
        f"{TOKENIZER} is missing{beside}: {_IDS_ONLY}; fetch it into the checkpoint (without --offline for a hub id)"
        " and export again to give texts"
    )


def _made(folder: Path) -> bytes:
    """Return tokenizer.json as transformers makes it; no code of the checkpoint is run."""
    from transformers import AutoTokenizer, GPT2Tokenizer

    options: dict[str, Any] = {"local_files_only": True}
    config = folder / "tokenizer_config.json"
    named = read_object(config).get("tokenizer_class") if is_there(config) else None
    if isinstance(named, str):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    else:  # a vocabulary with merges and nothing else is GPT-2's
        tokenizer = GPT2Tokenizer.from_pretrained(folder, **options)
    with tempfile.TemporaryDirectory() as made:
        tokenizer.save_pretrained(made)
        content = (Path(made) / TOKENIZER).read_bytes()
    vocabulary = read_object(folder / "vocab.json")
    written = json.loads(content)["model"].get("vocab", {})
    if not vocabulary or not vocabulary.items() <= written.items():
        raise DogeExportError("the vocabulary is not that of vocab.json")
    return content


def _ids(content: bytes) -> int:
    """Return the number after the largest id in a tokenizer.json; 0 where it cannot be told."""
    try:
        value = json.loads(content)
        vocabulary = value["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        ids += [token["id"] for token in value.get("added_tokens") or []]
        return 1 + max(id for id in ids if isinstance(id, int))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return 0
