"""Tensors as training tools save them, brought to the names that the model's own `save_pretrained` writes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from doge_export.checkpoint.tensors import Tensors
from doge_export.errors import DogeExportError

# Parts that torch.compile, FSDP, DeepSpeed and TRL put into a name, wherever they wrapped a module.
_WRAPPERS = {
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_flat_param"),
    "pretrained_model",
}
# Prefixes of DistributedDataParallel and of peft, which are wrappers at the beginning of a name only.
_PREFIXES = ("module.", "base_model.model.")

# Buffers that the model computes anew from config.json.
_BUFFERS = ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "position_ids", "causal_mask")
_VALUE_HEAD = "v_head."

_UNMERGED = re.compile(r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save|original_module)(\.|$)")
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "word_embed.weight")


def unwrapped(name: str) -> str:
    """Return the name of a tensor without the parts that wrappers of a module add to it."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name


def tidied(tensors: Tensors, config: Mapping[str, Any]) -> tuple[Tensors, list[str]]:
    """Return the tensors of the model under its own names, and a sentence for each change.

    1. Names lose the parts of wrappers: `_orig_mod.` (torch.compile), `module.` (DistributedDataParallel),
       `base_model.model.` (peft), those of FSDP and DeepSpeed.
    2. Buffers of the rotary embedding and the mask, and TRL's value head `v_head.*`, are left out.
    3. A tensor that the file says to share the values of another one (`safetensors.torch.save_model` writes one of
       them) is read from that one; so is a tied embedding of which only `lm_head.weight` was kept.

    Raises:
        DogeExportError: two tensors have one name, the file holds adapters that are not merged, or a dtype is not one
            of floating point.
    """
    notes: list[str] = []
    names: dict[str, str] = {}
    for old in tensors:
        new = unwrapped(old)
        if new in names:
            raise DogeExportError(
                f"tensors {names[new]} and {old} are one and the same ({new}): two models are in one checkpoint, save"
                " the one to export"
            )
        names[new] = old
    renamed = [old for new, old in names.items() if new != old]
    if renamed:
        notes.append(f"{_some(renamed)}: the parts that a wrapper of the training added are left out of the names")
    aliases = {unwrapped(new): unwrapped(kept) for new, kept in tensors.shared.items()}
    tensors = tensors.renamed(names)
    unmerged = [name for name in tensors if _UNMERGED.search(name)]
    if unmerged:
        raise DogeExportError(
            f"the weights hold an adapter that is not merged ({_some(unmerged)}): save what merge_and_unload() gives,"
            " or save the adapter by itself (model.save_pretrained) and name it with --adapter"
        )
    surplus = [name for name in tensors if name.startswith(_VALUE_HEAD) or name.rsplit(".", 1)[-1] in _BUFFERS]
    if surplus:
        notes.append(f"{_some(surplus)} left out: buffers that are computed anew, or a value head of the training")
        tensors = tensors.without(surplus)
    tensors, shared = _with_shared(tensors, aliases, config)
    wide = tensors.check_dtypes()
    if wide:
        notes.append(f"{_some(wide)} of float64 rounded to float32")
    return tensors, notes + shared


def _with_shared(tensors: Tensors, aliases: Mapping[str, str], config: Mapping[str, Any]) -> tuple[Tensors, list[str]]:
    missing = {new: kept for new, kept in aliases.items() if new not in tensors and kept in tensors}
    embedded = any(name.endswith(_EMBEDDINGS) for name in (*tensors, *missing))
    if config.get("tie_word_embeddings") is True and _HEAD in tensors and not embedded:
        older = any("final_layernorm" in name for name in tensors)
        missing["model." + _EMBEDDINGS[older]] = _HEAD
    if not missing:
        return tensors, []
    said = [f"{new} is {kept}, which was saved for both" for new, kept in sorted(missing.items())]
    return tensors.renamed({name: name for name in tensors} | missing), said


def _some(names: Collection[str]) -> str:
    first, *rest = sorted(names)
    return f"tensor {first}" if not rest else f"tensor {first} and {len(rest)} more"
