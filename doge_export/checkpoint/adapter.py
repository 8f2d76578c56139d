"""LoRA adapters in peft's layout, merged into the weights: adapter_config.json and adapter_model.safetensors.

The merge is W + s B A (LoRA, arXiv:2106.09685), for an embedding W + s (B A)^T, with s = lora_alpha / r, or
lora_alpha / sqrt(r) with rsLoRA. Whatever changes a model in another way is refused by its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from doge_export.checkpoint.fields import Fields, shown
from doge_export.checkpoint.saved_forms import unwrapped
from doge_export.checkpoint.source import Source, locate
from doge_export.checkpoint.tensors import Tensors, open_file
from doge_export.errors import DogeExportError
from doge_export.json_file import read_object
from doge_export.paths import HUB_ID, exists, expanded
from doge_export.regular_file import is_there

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NONE = "none"

_HEAD, _SCORES = "lm_head.weight", ("score.weight", "classifier.weight")
_EMBEDDINGS = ("embed_tokens.weight", "word_embed.weight")

# Keys that do not change what the merge computes, or that `_Rules` reads. fan_in_fan_out is for layers that store a
# transposed weight, of which Doge has none; peft ignores it for others.
_READ = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save", "init_lora_weights"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "loftq_config", "eva_config", "qalora_group_size"),
    *("lora_bias", "runtime_config", "parent_library", "ensure_weight_tying"),
}
# Initialisations that leave the weights of the model as they are.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_LORA = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.(weight|bias))?")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        source: the folder it is read from.
        config: content of adapter_config.json.
        tensors: its tensors, by the names in the file.
    """

    source: Source
    config: Mapping[str, Any]
    tensors: Tensors

    @property
    def files(self) -> list[Path]:
        """Paths of its two files."""
        return [self.source.folder / ADAPTER_CONFIG, self.source.folder / ADAPTER_WEIGHTS]


def is_adapter_alone(folder: Path) -> bool:
    """Return whether a folder has an adapter and no config.json of a model."""
    return is_there(folder / ADAPTER_CONFIG) and not is_there(folder / "config.json")


def base_of(adapter: Source, **options: Any) -> Source:
    """Find the base model that an adapter names, without its weights.

    Args:
        adapter: folder of the adapter.
        options: keywords of `locate`.

    Raises:
        DogeExportError: it names none, or that one cannot be had.
    """
    config = read_object(adapter.folder / ADAPTER_CONFIG)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    advice = f"name the base model, and the adapter with --adapter {adapter.name}"
    if not isinstance(base, str) or not base.strip():
        raise DogeExportError(f"{adapter.name!r} is an adapter whose {ADAPTER_CONFIG} names no base model: {advice}")
    beside = adapter.folder / base
    if not exists(expanded(base) / "config.json") and exists(beside / "config.json"):
        base = str(beside)
    given = revision if isinstance(revision, str) and not exists(expanded(base)) else None
    try:
        return locate(base, revision=given, weights=False, **options)
    except DogeExportError as error:
        raise DogeExportError(
            f"{adapter.name!r} is an adapter of {base!r}, which is not to be had ({error}): {advice}"
        ) from error


def find_adapter(
    model: Source, adapter: str | Path | None, *, revision: str | None = None, **options: Any
) -> Adapter | None:
    """Open the adapter to merge.

    Args:
        model: the checkpoint.
        adapter: a folder or hub id; "none" for no adapter; None for the one beside the weights, if there is one.
        revision: commit of the adapter on the hub.
        options: token, cache_dir, offline, see `locate`.

    Raises:
        DogeExportError: there is no adapter, or one that is not read.
    """
    if adapter is not None and str(adapter) == NONE:
        return None
    if adapter is None:
        if not is_there(model.folder / ADAPTER_CONFIG):
            return None
        return open_adapter(Source(model.name, model.folder, model.revision))
    return open_adapter(_located(str(adapter), revision, **options))


def _located(name: str, revision: str | None, **options: Any) -> Source:
    folder = expanded(name)
    if exists(folder) or not HUB_ID.fullmatch(name):
        if not (exists(folder) and folder.is_dir()):
            raise DogeExportError(
                f"--adapter {name}: there is no such folder; give one with {ADAPTER_CONFIG}, a hub id, or none"
            )
        return Source(name, folder)
    from doge_export.checkpoint import hub

    cache_dir = options.get("cache_dir")
    cache = expanded(cache_dir) if cache_dir else None
    repository = hub.Hub(name, revision, options.get("token"), cache, bool(options.get("offline")))
    snapshot = repository.download([ADAPTER_CONFIG, ADAPTER_WEIGHTS])
    return Source(name, snapshot, snapshot.name)


def open_adapter(source: Source) -> Adapter:
    """Open an adapter.

    Raises:
        DogeExportError: a file is missing or damaged, the weights are pickled, or it is no adapter that is merged.
    """
    folder = source.folder
    if not is_there(folder / ADAPTER_CONFIG):
        raise DogeExportError(f"{source.name!r} has no {ADAPTER_CONFIG}: not an adapter in peft's layout")
    config = read_object(folder / ADAPTER_CONFIG)
    if not is_there(folder / ADAPTER_WEIGHTS):
        pickled = (folder / "adapter_model.bin").is_file()
        seen = "only pickled weights (adapter_model.bin), which are never read" if pickled else f"no {ADAPTER_WEIGHTS}"
        raise DogeExportError(
            f"the adapter in {folder} has {seen}: save it with peft as safetensors, or leave it out with --adapter none"
        )
    _refuse_others(config)
    return Adapter(source, config, open_file(folder / ADAPTER_WEIGHTS))


def _refuse_others(config: Mapping[str, Any]) -> None:
    """Refuse whatever is not plain LoRA, by its name."""
    advice = "merge it with peft (merge_and_unload) and export the result, or leave it out with --adapter none"
    kind = config.get("peft_type")
    if kind != "LORA":
        raise DogeExportError(f"{ADAPTER_CONFIG}: peft_type is {shown(kind)}, and only LORA is merged: {advice}")
    start = config.get("init_lora_weights")
    if not any(start is plain or (isinstance(start, str) and start == plain) for plain in _PLAIN_STARTS):
        raise DogeExportError(
            f"{ADAPTER_CONFIG}: init_lora_weights is {shown(start)}, which changed the weights of the model too: save"
            " the adapter with path_initial_model_for_weight_conversion of peft, or " + advice
        )
    if config.get("bias", NONE) not in (NONE, "all", "lora_only"):
        raise DogeExportError(f"{ADAPTER_CONFIG}: bias is {shown(config['bias'])}, expected none, all or lora_only")
    for key, value in config.items():
        if key not in _READ and value not in (None, False, {}, []):
            name = "DoRA (use_dora)" if key == "use_dora" else key
            raise DogeExportError(f"{ADAPTER_CONFIG} has {name} {shown(value)}, which is not merged here: {advice}")


class _Rules:
    """Ranks and factors of an adapter's modules."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        fields = Fields(config, ADAPTER_CONFIG)
        self._rank = fields.integer("r", 8)
        self._alpha = fields.number("lora_alpha", 8.0, above=-math.inf)
        self._rooted = fields.boolean("use_rslora", False)
        self._ranks = {key: ranks.integer(key) for ranks in [_pattern(config, "rank_pattern")] for key in ranks.values}
        alphas = _pattern(config, "alpha_pattern")
        self._alphas = {key: alphas.number(key, above=-math.inf) for key in alphas.values}

    def of(self, module: str) -> tuple[int, float]:
        """Return the rank and the factor of a module."""
        rank = _matching(self._ranks, module, self._rank)
        alpha = _matching(self._alphas, module, self._alpha)
        return rank, alpha / (math.sqrt(rank) if self._rooted else rank)


def _pattern(config: Mapping[str, Any], key: str) -> Fields:
    values = config.get(key) or {}
    if not isinstance(values, dict):
        raise DogeExportError(f"{ADAPTER_CONFIG}: {key} is {shown(values)}, expected an object of numbers by module")
    for pattern in values:
        # A pattern is a regular expression from an untrusted file: those that could take exponential time are refused.
        if len(pattern) > 200 or re.search(r"\)[*+{?]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
            raise DogeExportError(f"{ADAPTER_CONFIG}: {key} has the pattern {shown(pattern)}, which is too intricate")
        try:
            re.compile(pattern)
        except re.error as error:
            raise DogeExportError(f"{ADAPTER_CONFIG}: {key} has the pattern {shown(pattern)}: {error}") from error
    return Fields(values, f"{ADAPTER_CONFIG}: {key}")


def _matching(values: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name, as peft looks it up."""
    found = next((key for key in values if re.match(rf"(.*\.)?({key})$", module)), None)
    return default if found is None else values[found]


def merged(tensors: Tensors, config: dict[str, Any], adapter: Adapter) -> tuple[Tensors, dict[str, Any], list[str]]:
    """Merge an adapter into the tensors of a checkpoint.

    A head that shares the embedding's weights and is adapted with it, or without it, gets weights of its own, as the
    two differ then. A classifier's head in an adapter takes the place of the language model's.

    Args:
        tensors: tensors of the checkpoint by the names that its code has for them.
        config: content of its config.json.
        adapter: the adapter.

    Returns:
        The tensors, the config for them, and sentences on what was merged.

    Raises:
        DogeExportError: the adapter is of another model, or damaged.
    """
    rules, lora, others = _Rules(adapter.config), dict[str, dict[str, str]](), dict[str, str]()
    for stored in adapter.tensors:
        name = unwrapped(stored)
        if found := _LORA.fullmatch(name):
            module, embedding, side, part = found.groups()
            key = ("embedding_" if embedding else "") + side + (".bias" if part == "bias" else "")
            lora.setdefault(module, {})[key] = stored
        else:
            others[re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", name)] = stored
    adapter.tensors.check_dtypes()
    adapter.tensors.check_values()
    touched = {_find(tensors, f"{module}.weight") for module in lora} | {_find(tensors, name) for name in others}
    tensors, config = _with_heads(tensors, config, touched, others, adapter)
    tensors = _replaced(tensors, others, adapter)
    for module, parts in lora.items():
        tensors = _adapted(tensors, module, parts, rules, adapter)
    count = f"{len(lora)} modules" + (f", and {len(others)} tensors replaced" if others else "")
    where = "" if adapter.source.folder is None else f" of {adapter.source.folder}"
    base = adapter.config.get("base_model_name_or_path")
    named = f" (trained on {shown(base)})" if isinstance(base, str) and base else ""
    return tensors, config, [f"the LoRA adapter{where}{named} is merged: {count}; --adapter none leaves it out"]


def _find(tensors: Tensors, name: str) -> str:
    """Return the name in `tensors` of an adapter's name, which has or lacks the prefix of the bare model."""
    names = (name, f"model.{name}", name.removeprefix("model."))
    return next((candidate for candidate in names if candidate in tensors), name)


def _with_heads(
    tensors: Tensors, config: dict[str, Any], touched: set[str], others: Mapping[str, str], adapter: Adapter
) -> tuple[Tensors, dict[str, Any]]:
    """Give a tied head weights of its own if the adapter tells it from the embedding, and a classifier its place."""
    if not any(name in tensors for name in _SCORES) and any(name in others for name in _SCORES):
        return tensors.without({_HEAD}), config | {"architectures": ["DogeForSequenceClassification"]}
    embedding = next((name for name in tensors if name.endswith(_EMBEDDINGS)), None)
    generates = embedding is not None and (_HEAD in tensors or embedding.startswith("model."))
    tied = config.get("tie_word_embeddings", _HEAD not in tensors) is True
    if not (tied and generates and {embedding, _HEAD} & touched) or any(name in tensors for name in _SCORES):
        return tensors, config
    if adapter.config.get("ensure_weight_tying"):
        raise DogeExportError(
            f"{ADAPTER_CONFIG} has ensure_weight_tying, which is not merged here: merge it with peft"
            " (merge_and_unload) and export the result"
        )
    if _HEAD not in tensors:
        tensors = tensors.renamed({name: name for name in tensors} | {_HEAD: str(embedding)})
    return tensors, config | {"tie_word_embeddings": False}


def _replaced(tensors: Tensors, others: Mapping[str, str], adapter: Adapter) -> Tensors:
    names = {}
    for name, stored in others.items():
        here, shape = _find(tensors, name), adapter.tensors.shape(stored)
        if here in tensors and tensors.shape(here) != shape:
            raise DogeExportError(
                f"the adapter in {adapter.source.folder} has {name} of shape {list(shape)}, the checkpoint"
                f" {list(tensors.shape(here))}: resize the checkpoint as for the training, or take the right one"
            )
        if here not in tensors and here not in _SCORES:
            raise DogeExportError(_foreign(adapter, stored))
        names[here] = stored
    return tensors.replaced(names, adapter.tensors)


def _adapted(tensors: Tensors, module: str, parts: Mapping[str, str], rules: _Rules, adapter: Adapter) -> Tensors:
    """Add the product of a module's two matrices to its weight, and what peft adds to its bias."""
    prefix = "embedding_" if f"embedding_{'A'}" in parts else ""
    weight = _find(tensors, f"{module}.weight")
    if {f"{prefix}A", f"{prefix}B"} - parts.keys() or parts.keys() - {f"{prefix}A", f"{prefix}B", "B.bias"}:
        raise DogeExportError(
            f"the adapter in {adapter.source.folder} has {', '.join(parts.values())} of {module}, expected lora_A and"
            " lora_B: save it again"
        )
    if weight not in tensors:
        raise DogeExportError(_foreign(adapter, parts[f"{prefix}A"]))
    rank, factor = rules.of(module)
    a, b = parts[f"{prefix}A"], parts[f"{prefix}B"]
    rows, columns = (tensors.shape(weight) if len(tensors.shape(weight)) == 2 else (0, 0))[:: -1 if prefix else 1]
    seen = adapter.tensors.shape(b), adapter.tensors.shape(a)
    if seen != ((rows, rank), (rank, columns)):
        raise DogeExportError(
            f"the adapter in {adapter.source.folder} has matrices {list(seen[0])} and {list(seen[1])} for {module},"
            f" expected {[rows, rank]} and {[rank, columns]}: it is of another model, or its {ADAPTER_CONFIG} is"
        )
    source = adapter.tensors

    def add(base: torch.Tensor) -> torch.Tensor:
        product = source[b] @ source[a]
        return base + (product.T if prefix else product) * factor

    tensors = tensors.merged(weight, add)
    if "B.bias" in parts:
        bias = _find(tensors, f"{module}.bias")
        if bias not in tensors or tensors.shape(bias) != source.shape(parts["B.bias"]):
            raise DogeExportError(_foreign(adapter, parts["B.bias"]))
        tensors = tensors.merged(bias, lambda base: base + source[parts["B.bias"]] * factor)
    return tensors


def _foreign(adapter: Adapter, stored: str) -> str:
    return (
        f"the adapter in {adapter.source.folder} has {stored}, for which the checkpoint has no tensor: take the model"
        " that it was trained on, or leave it out with --adapter none"
    )
