"""Rewrite of an older checkpoint in the layout that transformers loads today, if transformers computes the same.

transformers' Doge is one generation of Doge out of eight (G7). If the mathematics differ, a checkpoint with renamed
tensors would load and give wrong logits: a missing norm is not a norm of weight one. So a checkpoint that transformers
cannot express is refused, with all reasons.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.checkpoint import Rope, open_checkpoint
from doge_export.checkpoint.architecture import TRANSFORMERS_CLASSES
from doge_export.checkpoint.files import CONFIG, WEIGHTS, packaged_name
from doge_export.checkpoint.identify import NOTHING_ASSUMED, Assumptions
from doge_export.console import log
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.package.disk import number_of
from doge_export.package.fingerprint import fingerprint
from doge_export.paths import protected_by
from doge_export.pipeline.folder import OutputFolder
from doge_export.regular_file import is_there

if TYPE_CHECKING:
    import torch

    from doge_export.checkpoint import Checkpoint

WITHOUT_LIMIT = 2**31 - 1
"""keep_window_size of a model that keeps every key."""

_WRITTEN = "doge_export_convert"
"""Key in config.json with the files of the folder, which --force may replace, and the sha256 of the weights."""

# Keys of other generations of Doge, and keys that are written anew under today's names.
_REPLACED = (
    *("auto_map", "torch_dtype", "hidden_bias", "dynamic_mask_ratio", "window_size", "is_causal"),
    *("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"),
)


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Result of `convert`.

    Attributes:
        folder: the folder that was written.
        generation: generation of Doge of the checkpoint, G1 to G8.
        task: task of its head.
        tensors: number of tensors.
        dtype: type that holds the values of all tensors, so that transformers rounds none.
    """

    folder: Path
    generation: str
    task: str
    tensors: int
    dtype: str


def convert(
    model: str | Path,
    output: str | Path,
    *,
    assumed: Assumptions = NOTHING_ASSUMED,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    adapter: str | Path | None = None,
    force: bool = False,
) -> Conversion:
    """Rewrite a checkpoint for transformers' Doge: config.json, model.safetensors, tokenizer files.

    Tensors keep the dtype that they are stored in.

    Args:
        model: a local folder or a hub id.
        output: the folder to write; it appears whole at the end, or not at all.
        assumed: facts that the checkpoint's files leave open.
        revision: branch, tag or commit of a hub repository.
        token: access token for a private hub repository.
        cache_dir: folder for downloads.
        offline: use the cache only.
        adapter: LoRA adapter to merge, see `open_checkpoint`.
        force: replace an output that is not empty.

    Raises:
        DogeExportError: the arguments or the checkpoint are wrong, or transformers cannot express it.
    """
    import torch

    folder = OutputFolder.checked(output, force=force, reads=[model, adapter], recorded=recorded_by_convert)
    log(f"reading {model}")
    checkpoint = open_checkpoint(
        model,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        offline=offline,
        assumed=assumed,
        adapter=adapter,
    )
    for note in (*checkpoint.identity.notes, *checkpoint.notes):
        log(f"note: {note}")
    _refuse(checkpoint)
    # The base of an adapter is known only now.
    folder = dataclasses.replace(folder, protected=(*folder.protected, *protected_by(checkpoint.source.folder)))
    tensors = dict(_todays_tensors(checkpoint))
    widest = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors.values()))
    dtype = str(widest).removeprefix("torch.")
    with folder.draft() as draft:
        log(f"writing {len(tensors)} tensors")
        made = checkpoint.tokenizer.made
        names = [CONFIG, WEIGHTS, *map(packaged_name, checkpoint.tokenizer_files), *made]
        _save(tensors, draft.folder / WEIGHTS)
        written = {"files": names, "weights_sha256": fingerprint(draft.folder / WEIGHTS).sha256}
        values = {**_todays_config(checkpoint, dtype), _WRITTEN: written}
        config = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (draft.folder / CONFIG).write_text(config + "\n", encoding="utf-8")
        draft.take_over(checkpoint.tokenizer_files, made)
    architecture = checkpoint.architecture
    return Conversion(draft.output, architecture.generation, architecture.task, len(tensors), dtype)


def recorded_by_convert(folder: Path) -> set[str] | None:
    """Return the names of the files that `convert` wrote into a folder; None if it did not write the folder.

    transformers keeps what it does not know in a config, so the weights of a model trained from a conversion may lie
    beside its mark: they are others.
    """
    try:
        written = read_object(folder / CONFIG).get(_WRITTEN)
        if not isinstance(written, dict) or not is_there(folder / WEIGHTS):
            return None
        if fingerprint(folder / WEIGHTS).sha256 != written.get("weights_sha256"):
            return None
    except (DogeExportError, OSError):
        return None
    names = written.get("files")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else None


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Write tensors; a full disk raises OSError, as of any other writer."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = number_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(file)) from error


def _refuse(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint for which transformers' Doge computes something else."""
    reasons = list(_obstacles(checkpoint))
    if reasons:
        name, generation = checkpoint.source.name, checkpoint.architecture.generation
        raise DogeExportError(
            f"{name!r} is of generation {generation}, which transformers' Doge cannot express: {'; '.join(reasons)}."
            " Export it instead: `doge-export onnx` computes it as it is"
        )


def _obstacles(checkpoint: Checkpoint) -> Iterator[str]:
    a = checkpoint.architecture
    if a.inner_values is not None:
        yield "its values are read from a table (inner function)"
    if not a.rotates_keys:
        yield "its keys are not rotated"
    if not a.qk_norm:
        yield "it has no norm on queries and keys, and one of weight 1 would not leave them as they are"
    if not a.gated_mlp:
        yield "its MLP has no gate"
    match a.score:
        case "linear":
            yield "its scores are added as they are, not as exponentials"
        case "threshold":
            yield "its scores hide keys instead of weighting them"
        case "exp" if a.score_heads != a.num_key_value_heads and not _by_group(checkpoint):
            yield f"its scores are {a.score_heads}, one for each query head, and differ within a group"
    if a.ratio_mask is not None:
        yield "it leaves out a share of all keys (dynamic_mask_ratio)"
    if a.moe is not None:
        if a.moe.retrieval_size is not None:
            yield f"its experts are found by product keys ({a.moe.variant})"
        if a.moe.variant == "M7-fixed":
            yield "its experts are chosen by each token for itself (M7-fixed)"
        if a.moe.ranks_experts:
            yield f"its experts are named by ranks ({a.moe.variant})"
        if a.moe.router_bias:
            yield "its router has a bias"


def _by_group(checkpoint: Checkpoint) -> bool:
    """Return whether the query heads of each group have equal scores, so that one of them stands for all."""
    a = checkpoint.architecture
    for name in checkpoint.tensors:
        if _is_score(name):
            rows = checkpoint.tensors.raw(name).unflatten(0, (a.num_key_value_heads, -1))
            if not bool((rows == rows[:, :1]).all()):
                return False
    return True


def _is_score(name: str) -> bool:
    return name.endswith(".self_attn.A") or ".self_attn.dt_proj." in name


def _todays_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the stored tensors under the names that transformers uses; those of a bare model have no prefix."""
    a, prefix = checkpoint.architecture, "model." if checkpoint.architecture.task == "feature-extraction" else ""
    for name in checkpoint.tensors:
        tensor = checkpoint.tensors.raw(name)
        if _is_score(name) and len(tensor) != a.num_key_value_heads:
            tensor = tensor[:: len(tensor) // a.num_key_value_heads].contiguous()
        yield name.removeprefix(prefix), tensor


def _todays_config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """Return config.json: every key that decides the mathematics, and the checkpoint's other keys."""
    a = checkpoint.architecture
    config = {key: value for key, value in checkpoint.config.items() if key not in _REPLACED}
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    others = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    config |= {key: getattr(a, key) for key in (*sizes, *others, "attention_bias", "mlp_bias")}
    config |= {
        "model_type": "doge",
        "architectures": [TRANSFORMERS_CLASSES[a.task]],
        "dtype": dtype,
        "hidden_act": "silu",
        "keep_window_size": a.keep_window_size or WITHOUT_LIMIT,
        "rope_parameters": _todays_rope(a.rope),
        "is_moe": a.moe is not None,
    }
    if "pad_token_id" in config:
        config["pad_token_id"] = a.pad_token_id  # transformers fails on one outside the vocabulary
    if a.moe is not None:
        config |= {"num_experts": a.moe.num_experts, "num_experts_per_tok": a.moe.num_experts_per_tok}
    if a.task == "text-classification":
        config["id2label"] = {str(index): label for index, label in enumerate(a.labels)}
        config["label2id"] = {label: index for index, label in enumerate(a.labels)}
    return config


def _todays_rope(rope: Rope) -> dict[str, Any]:
    """Return `rope_parameters`: the type, theta, and the values that differ from the defaults."""
    plain = {field.name: field.default for field in dataclasses.fields(Rope)}
    given = {name: value for name, value in dataclasses.asdict(rope).items() if value != plain[name]}
    return {"rope_type": rope.rope_type, "rope_theta": rope.rope_theta, **given}
