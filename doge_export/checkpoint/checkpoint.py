"""A Doge checkpoint, opened: its config understood, and every tensor accounted for exactly once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from doge_export.checkpoint.architecture import Architecture
from doge_export.checkpoint.config import parse_config
from doge_export.checkpoint.fields import read_object
from doge_export.checkpoint.naming import EMBEDDING, HEAD, expected_tensors, older_generation
from doge_export.checkpoint.source import Source, locate
from doge_export.checkpoint.tensors import Tensors, open_tensors
from doge_export.errors import DogeExportError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """What `open_checkpoint` found.

    `tensors` has exactly the names and shapes of `expected_tensors(architecture)`; all values are finite.
    `config` and `generation_config` are the JSON files as they are; `tokenizer_files` those files that a package
    takes over unchanged.
    """

    source: Source
    architecture: Architecture
    config: dict[str, Any]
    tensors: Tensors
    generation_config: dict[str, Any] | None
    tokenizer_files: list[Path]


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Open a folder or a hub repository with a Doge of today's transformers format, dense or CDMoE.

    Reads every tensor once, one at a time, and keeps none in memory.

    Args:
        model: a local folder, or a hub id `owner/name`.
        revision: branch, tag or commit of a hub repository.
        token: for private and gated repositories.
        cache_dir: where downloads are kept.
        offline: use the cache only.
        trust_remote_code: always refused; it exists to say why.

    Raises:
        DogeExportError: one line about what is wrong with the arguments or the checkpoint.
    """
    if trust_remote_code:
        raise DogeExportError(
            "--trust-remote-code is never needed: Doge is built in, and code that comes with a checkpoint is never run;"
            " leave the option out"
        )
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "offline": offline}
    source = locate(model, revision=revision, weights=False, **options)
    if not (source.folder / "config.json").is_file():
        raise DogeExportError(f"{source.name!r} has no config.json: not a model folder in transformers' layout")
    config = read_object(source.folder / "config.json")
    architecture = parse_config(config)

    # The sha pins the weights to the commit that the config came from.
    source = locate(model, revision=source.revision, **options)
    tensors = open_tensors(source.folder)
    _check_names(tensors, architecture, config)
    _check_shapes(tensors, architecture)
    tensors.check_values()
    tensors = _drop_tied_head(tensors, architecture)

    generation_config = source.folder / "generation_config.json"
    files = [source.folder / name for name in TOKENIZER_FILES]
    return Checkpoint(
        source=source,
        architecture=architecture,
        config=config,
        tensors=tensors,
        generation_config=read_object(generation_config) if generation_config.is_file() else None,
        tokenizer_files=[file for file in files if file.is_file()],
    )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:4]) or "none"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _check_names(tensors: Tensors, architecture: Architecture, config: dict[str, Any]) -> None:
    expected = expected_tensors(architecture).keys()
    seen = tensors.keys() - {HEAD} if architecture.tie_word_embeddings else tensors.keys()
    missing, unexpected = expected - seen, seen - expected
    if not missing and not unexpected:
        return
    sign = older_generation(tensors)
    if sign is not None:
        raise DogeExportError(f"the weights are of an older Doge generation, not supported yet (seen: {sign})")
    if missing == {HEAD} and not unexpected:
        stated = "" if "tie_word_embeddings" in config else ", the default where config.json does not say"
        raise DogeExportError(
            f"{HEAD} is missing, but tie_word_embeddings is false{stated}: set it to true in config.json if the head is"
            " the embedding, else fetch the whole checkpoint"
        )
    if "score.weight" in unexpected:
        raise DogeExportError("score.weight is a sequence classification head; only DogeForCausalLM is supported yet")
    if {f"model.{name}" for name in seen} & expected:
        raise DogeExportError(
            "the weights are of a bare DogeModel (names without the prefix model.); only DogeForCausalLM is supported"
            " yet: save the whole language model"
        )
    raise DogeExportError(
        f"the weights do not match config.json: {len(missing)} missing ({_listed(missing)}),"
        f" {len(unexpected)} unexpected ({_listed(unexpected)})"
    )


def _check_shapes(tensors: Tensors, architecture: Architecture) -> None:
    heads, kv_heads = architecture.num_attention_heads, architecture.num_key_value_heads
    for name, expected in expected_tensors(architecture).items():
        seen = tensors.shape(name)
        if seen == expected:
            continue
        if name.endswith(".A") and seen == (heads,) and heads != kv_heads:
            raise DogeExportError(
                f"the weights are of an older Doge generation, not supported yet (seen: {name} per query head)"
            )
        raise DogeExportError(f"tensor {name} has shape {list(seen)}, config.json implies {list(expected)}")


def _drop_tied_head(tensors: Tensors, architecture: Architecture) -> Tensors:
    if not architecture.tie_word_embeddings or HEAD not in tensors:
        return tensors
    if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
        raise DogeExportError(
            f"config.json says tie_word_embeddings true, but {HEAD} differs from {EMBEDDING}: set it to false if the"
            " head was trained on its own"
        )
    return tensors.without(HEAD)
