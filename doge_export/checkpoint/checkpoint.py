"""Opening a Doge checkpoint: its config is parsed and every tensor of the files is accounted for exactly once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from doge_export.checkpoint.adapter import ADAPTER_CONFIG, Adapter, base_of, find_adapter, is_adapter_alone, merged
from doge_export.checkpoint.architecture import Architecture
from doge_export.checkpoint.config import (
    is_plainly_causal,
    parse_config,
    parse_padding,
    parse_rotation,
    parse_sizes,
)
from doge_export.checkpoint.files import CONFIG
from doge_export.checkpoint.identify import NOTHING_ASSUMED, Assumptions, Identity, identify, is_for_classes
from doge_export.checkpoint.labels import parse_labels
from doge_export.checkpoint.layout import drop_inert, folded, relaid
from doge_export.checkpoint.naming import (
    CLASSIFIER,
    EMBEDDING,
    HEAD,
    canonical_names,
    first_layer,
    stored_tensors,
)
from doge_export.checkpoint.saved_forms import tidied
from doge_export.checkpoint.source import Source, locate
from doge_export.checkpoint.tensors import Tensors, open_tensors
from doge_export.checkpoint.tokenizer_files import TokenizerFiles, find_tokenizer
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.paths import expanded
from doge_export.regular_file import is_there

_UNTIED_BY_DEFAULT = ("G6b", "G7", "G8")  # transformers' DogeConfig; older code tied where a config did not say


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        source: the folder it was read from.
        identity: its generation, and the evidence for it.
        assumed: what the user stated because the files do not tell.
        architecture: the parsed config.
        config: content of config.json.
        tensors: tensors with exactly the names and shapes of `expected_tensors(architecture)`; all values are finite.
        generation_config: content of generation_config.json; None without that file.
        tokenizer: files of the checkpoint that a package copies unchanged, and what is made where one is missing.
        adapter: the LoRA adapter that is merged into the tensors.
        notes: what was changed in the tensors, merged or made, and what is missing, a sentence each.
        as_stored: True if transformers reads the same tensors from the folder by itself.
    """

    source: Source
    identity: Identity
    assumed: Assumptions
    architecture: Architecture
    config: dict[str, Any]
    tensors: Tensors
    generation_config: dict[str, Any] | None
    tokenizer: TokenizerFiles
    adapter: Adapter | None = None
    notes: tuple[str, ...] = ()
    as_stored: bool = True

    @property
    def tokenizer_files(self) -> list[Path]:
        """Paths of the files of the checkpoint that a package copies unchanged."""
        return self.tokenizer.files

    @property
    def companions(self) -> list[Path]:
        """Paths of config.json and of `tokenizer_files`."""
        return [self.source.folder / CONFIG, *self.tokenizer_files]


def open_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    assumed: Assumptions = NOTHING_ASSUMED,
    adapter: str | Path | None = None,
    adapter_revision: str | None = None,
) -> Checkpoint:
    """Open a folder or a hub repository with a Doge model of any published generation.

    Reads every tensor once, one at a time, to check its values, and keeps none in memory.

    Args:
        model: a local folder, or a hub id `owner/name`; of an adapter alone, its base model is opened.
        revision: branch, tag or commit of a hub repository.
        token: access token for private and gated repositories.
        cache_dir: folder of downloads; by default the cache of huggingface_hub.
        offline: use cached files only.
        trust_remote_code: always refused; the argument exists so that the error can say why.
        assumed: what the files do not tell.
        adapter: folder or hub id of a LoRA adapter to merge; "none" for no adapter; None for the one beside the
            weights, if there is one.
        adapter_revision: commit of an adapter on the hub.

    Raises:
        DogeExportError: the arguments or the checkpoint are wrong.
    """
    if trust_remote_code:
        raise DogeExportError(
            "--trust-remote-code is never needed: Doge is built in, and code that comes with a checkpoint is never run;"
            " leave the option out"
        )
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "offline": offline}
    source = locate(model, revision=revision, weights=False, **options)
    own: Path | None = None  # folder of an adapter that was named in the place of a model
    if is_adapter_alone(source.folder):
        if adapter is not None and expanded(adapter).resolve() != source.folder.resolve():
            raise DogeExportError(f"{source.name!r} is an adapter itself: name its base model, and one --adapter")
        own, adapter, adapter_revision = source.folder, source.name, source.revision
        source = base_of(source, **options)
    if not is_there(source.folder / "config.json"):
        raise DogeExportError(f"{source.name!r} has no config.json: not a model folder in transformers' layout")
    config = read_object(source.folder / "config.json")
    sizes = parse_sizes(config)
    parse_rotation(config, sizes)  # refuse what the config alone shows before gigabytes of weights are fetched
    if is_for_classes(config, assumed):
        parse_padding(config, sizes.vocab_size, "text-classification")

    # The revision is now a full sha: the weights come from the same commit as the config.
    source = locate(source.name, revision=source.revision, **options)
    stored, notes = tidied(open_tensors(source.folder), config)
    found = find_adapter(source, adapter, revision=adapter_revision, **options)
    if found is not None:
        stored, config, more = merged(stored, config, found)
        notes += more
    as_stored = not notes and not (source.folder / ADAPTER_CONFIG).is_file()
    identity = identify(
        stored.shapes,
        config,
        heads=sizes.num_attention_heads,
        kv_heads=sizes.num_key_value_heads,
        head_dim=sizes.head_dim,
        some_a_negative=lambda: any(bool((stored[n] < 0).any()) for n in stored if n.endswith(".self_attn.A")),
        assumed=assumed,
    )
    tensors = relaid(stored.renamed(canonical_names(stored)))
    architecture = _with_task(
        parse_config(
            config,
            identity,
            first_layer(tensors.shapes),
            tied=identity.generation not in _UNTIED_BY_DEFAULT and HEAD not in tensors,
            assumed=assumed,
        ),
        tensors,
        config,
        assumed,
    )
    tensors = _without_other_heads(tensors, architecture)
    _check_names(tensors, architecture, config)
    _check_shapes(tensors, architecture)
    tensors, architecture, reasons = drop_inert(
        folded(tensors, architecture), architecture, causal=is_plainly_causal(config, identity)
    )
    tokenizer = find_tokenizer(source.folder, own, architecture.vocab_size)
    identity = dataclasses.replace(identity, reasons=(*identity.reasons, *reasons))
    stored.check_values()  # all of them: whether a tensor is inert was decided by comparisons, which a NaN falsifies
    tensors = _drop_tied_head(tensors, architecture)

    generation_config = source.folder / "generation_config.json"
    return Checkpoint(
        source=source,
        identity=identity,
        assumed=assumed,
        architecture=architecture,
        config=config,
        tensors=tensors,
        generation_config=read_object(generation_config) if is_there(generation_config) else None,
        tokenizer=tokenizer,
        adapter=found,
        notes=(*notes, *tokenizer.notes),
        as_stored=as_stored,
    )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:4]) or "none"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _with_task(
    architecture: Architecture, tensors: Tensors, config: dict[str, Any], assumed: Assumptions
) -> Architecture:
    """Return the architecture with the requested task; raise if the checkpoint lacks the head that it needs."""
    own, task = architecture.task, assumed.task or architecture.task
    if task == "text-classification" and own != task:
        raise DogeExportError(
            "--task text-classification needs a classification head (score.weight), which this checkpoint does not have"
        )
    if task == "text-generation" and own == "text-classification":
        raise DogeExportError("--task text-generation needs a language model head, and this checkpoint is a classifier")
    if task == "text-generation" and own != task and not architecture.tie_word_embeddings:
        raise DogeExportError("--task text-generation needs lm_head.weight, and this checkpoint is a bare DogeModel")
    if task == "text-classification":
        if len(tensors.shapes.get(CLASSIFIER, ())) != 2:
            raise DogeExportError(
                "the classification head must be one matrix score.weight (classifier.weight before 2025), seen"
                f" {_listed([name for name in tensors if 'score' in name or 'classifier' in name])}"
            )
        labels = parse_labels(config, tensors.shape(CLASSIFIER)[0])
    else:
        labels = ()
    first_pad = task == "text-classification" and tensors.stored_name(CLASSIFIER) != CLASSIFIER
    pad = parse_padding(config, architecture.vocab_size, task)
    return dataclasses.replace(architecture, task=task, labels=labels, pad_token_id=pad, first_pad_pooling=first_pad)


def _without_other_heads(tensors: Tensors, architecture: Architecture) -> Tensors:
    """Return the tensors without unused heads: feature-extraction needs neither lm_head nor the classifier."""
    return tensors.without({HEAD, CLASSIFIER}) if architecture.task == "feature-extraction" else tensors


def _check_names(tensors: Tensors, architecture: Architecture, config: dict[str, Any]) -> None:
    expected = stored_tensors(architecture).keys()
    seen = tensors.keys() - {HEAD} if architecture.tie_word_embeddings else tensors.keys()
    missing, unexpected = expected - seen, seen - expected
    if not missing and not unexpected:
        return
    if missing == {HEAD} and not unexpected:
        stated = "" if "tie_word_embeddings" in config else ", the default where config.json does not say"
        raise DogeExportError(
            f"{HEAD} is missing, but tie_word_embeddings is false{stated}: set it to true in config.json if the head is"
            " the embedding, else fetch the whole checkpoint"
        )
    raise DogeExportError(
        f"the weights do not match config.json: {len(missing)} missing ({_listed(missing)}),"
        f" {len(unexpected)} unexpected ({_listed(unexpected)})"
    )


def _check_shapes(tensors: Tensors, architecture: Architecture) -> None:
    for name, expected in stored_tensors(architecture).items():
        seen = tensors.shape(name)
        if seen == expected:
            continue
        stored = tensors.stored_name(name)
        raise DogeExportError(f"tensor {stored} has shape {list(seen)}, config.json implies {list(expected)}")


def _drop_tied_head(tensors: Tensors, architecture: Architecture) -> Tensors:
    if not architecture.tie_word_embeddings or HEAD not in tensors:
        return tensors
    if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
        raise DogeExportError(
            f"config.json says tie_word_embeddings true, but {HEAD} differs from {EMBEDDING}: set it to false if the"
            " head was trained on its own"
        )
    return tensors.without({HEAD})
