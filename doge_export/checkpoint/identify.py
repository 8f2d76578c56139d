"""Identification of a checkpoint's generation: by its tensors, and by its config where the tensors leave it open.

Generations on the hub share one model_type and often one name, so neither identifies them. The decision tree below is
that of the README's table. The evidence, and what was assumed without any, is kept in words for `inspect`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, TypeVar, get_args

from doge_export.checkpoint.architecture import Generation, MoeVariant, Task
from doge_export.checkpoint.fields import shown
from doge_export.errors import DogeExportError

Shape = tuple[int, ...]
RatioScope = Literal["all", "guarded", "excess"]


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Statements of the user about what a checkpoint's files do not tell; None means the documented default.

    Attributes:
        task: task to export; by default that of the checkpoint's head.
        generation: one of the generations that the tensors allow.
        cdmoe: variant of the mixture of experts, one of those that the tensors allow.
        ratio_mask: the count that `dynamic_mask_ratio` is a share of: "all", the number of keys; "guarded", the same,
            but nothing is masked up to keep_window_size keys; "excess", the number of keys beyond keep_window_size.
    """

    task: Task | None = None
    generation: Generation | None = None
    cdmoe: MoeVariant | None = None
    ratio_mask: RatioScope | None = None

    def __post_init__(self) -> None:
        choices = {"task": Task, "generation": Generation, "cdmoe": MoeVariant, "ratio_mask": RatioScope}
        for name, choice in choices.items():
            value = getattr(self, name)
            if value is not None and value not in get_args(choice):
                raise DogeExportError(f"{name} is {value!r}, expected one of {', '.join(get_args(choice))}")

    @classmethod
    def taken_from(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Split options into assumptions (None where an option is missing) and the remaining options."""
        names = {field.name for field in dataclasses.fields(cls)}
        rest = {name: value for name, value in options.items() if name not in names}
        return cls(**{name: value for name, value in options.items() if name in names}), rest

    def to_dict(self) -> dict[str, str]:
        """Return the assumptions that are not None."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


NOTHING_ASSUMED = Assumptions()

G1A = "the first ten days of the first generation (G1a, early November 2024) are not supported"

# A config of G2, dense or not, has one of these keys: the commit that renamed it also made RoPE rotate the keys.
_TURNED, _NOT_TURNED = "expert_retrieval_size", "private_expert_retrieval_size"


def rotates_keys(generation: Generation, config: Mapping[str, Any]) -> bool:
    """Return whether RoPE rotates keys as well as queries."""
    return generation != "G1" and (generation != "G2" or _TURNED in config)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The identified generation, experts and task, with the evidence.

    Attributes:
        generation: name in the README's table of generations.
        cdmoe: variant of the mixture of experts; None without one.
        task: task of the checkpoint's head.
        reasons: the evidence, one sentence each.
        notes: what the files leave open and what was assumed instead, one sentence each.
    """

    generation: Generation
    cdmoe: MoeVariant | None
    task: Task
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The facts that the decision tree looks at.

    Attributes:
        layer: name -> shape of the first layer's tensors, without the prefix `layers.0.`.
        config: content of config.json.
        heads: num_attention_heads.
        kv_heads: num_key_value_heads.
        head_dim: size of a head.
        some_a_negative: tells whether a tensor `self_attn.A` has negative values. It reads tensors, so it is called
            only where nothing else decides.
    """

    layer: Mapping[str, Shape]
    config: Mapping[str, Any]
    heads: int
    kv_heads: int
    head_dim: int
    some_a_negative: Callable[[], bool]

    def has(self, name: str) -> bool:
        """Return whether the first layer has this tensor."""
        return name in self.layer

    def size(self, name: str, axis: int) -> int:
        """Return the length of a tensor along an axis; 0 without such a tensor or axis, which later checks report."""
        shape = self.layer.get(name, ())
        return shape[axis] if len(shape) >= (axis + 1 if axis >= 0 else -axis) else 0

    def given(self, key: str) -> bool:
        """Return whether the config sets this key to something other than null, false or 0."""
        return self.config.get(key) not in (None, False, 0, 0.0)


Candidates = tuple[tuple[Generation, ...], str]
"""The generations that the tensors allow, the default first, and the reason."""


def _candidates(seen: Evidence) -> Candidates:
    if seen.has("attn.v_embed.weight"):
        if seen.has("attn.v_proj.weight"):
            raise DogeExportError(
                "attn.v_embed and attn.v_proj together are a form of the first generation that lived for one day in"
                " November 2024 and is not supported"
            )
        if seen.has("feed_forward.shared_down_proj.weight") and _rows_differ(seen):
            raise DogeExportError(f"feed_forward.shared_down_proj is narrower than the model: {G1A}")
        return ("G1",), "attn.v_embed: values are read from a table"
    if seen.has("attn.dynamic_mask"):
        return ("G2",), "attn.dynamic_mask beside attn.v_proj"
    if any(name.endswith("A_log") for name in seen.layer):
        raise DogeExportError("attn.A_log is a transitional form of December 2024 (before G3a), which is not supported")
    if seen.has("pre_sequence_layernorm.weight"):
        return ("G3a",), "pre_sequence_layernorm: the names of December 2024"
    if seen.has("pre_layernorm.weight"):
        return _third_or_fourth(seen)
    if not seen.has("input_layernorm.weight"):
        shown_names = ", ".join(sorted(seen.layer)[:4]) or "none"
        raise DogeExportError(f"the tensors of the first layer are those of no Doge generation (seen: {shown_names})")
    if not seen.has("self_attn.q_norm.weight"):
        return ("G5",), "today's names without self_attn.q_norm"
    return _with_norms(seen)


def _rows_differ(seen: Evidence) -> bool:
    return seen.size("feed_forward.shared_down_proj.weight", 0) != seen.size("attn.q_proj.weight", -1)


def _third_or_fourth(seen: Evidence) -> Candidates:
    columns = seen.size("self_attn.dt_proj.weight", 1)
    queries, keys = seen.heads * seen.head_dim, seen.kv_heads * seen.head_dim
    if columns not in (queries, keys):
        grouped = f"{keys} (num_key_value_heads x head_dim) or " if keys != queries else ""
        raise DogeExportError(
            f"self_attn.dt_proj.weight has {columns} columns, expected {grouped}{queries} (num_attention_heads x"
            " head_dim)"
        )
    if queries != keys:
        which = f"pre_layernorm, and self_attn.dt_proj with {columns} columns"
        if columns == queries:
            return ("G3b",), f"{which}: one for each query head"
        return ("G4b", "G4a"), f"{which}: one for each key/value head"
    # The two shapes coincide; every config of the fourth generation has the first key.
    for key in ("dynamic_mask_ratio", "keep_window_size", "is_causal"):
        if key in seen.config:
            return ("G4b", "G4a", "G3b"), f"pre_layernorm, and {key} in config.json"
    # In the third generation A starts as ones and is only compared, so it has no gradient and stays ones.
    if seen.some_a_negative():
        return ("G4b", "G4a", "G3b"), "pre_layernorm, and A was trained: some are negative"
    return ("G3b", "G4b", "G4a"), "pre_layernorm, and no dynamic_mask_ratio in config.json"


def _with_norms(seen: Evidence) -> Candidates:
    rows = seen.size("self_attn.A", 0)
    is_second = seen.config.get("model_type") == "doge2"
    if rows == seen.heads != seen.kv_heads:
        return ("G6a",), f"self_attn.q_norm, and self_attn.A with {rows} rows: one for each query head"
    reason = f"self_attn.q_norm, and self_attn.A with {rows} rows: one for each key/value head"
    if is_second and seen.heads == seen.kv_heads:
        # Both configs have the key; only the earlier code reads it.
        if seen.given("dynamic_mask_ratio"):
            return ("G6a", "G6b"), "self_attn.q_norm, model_type doge2 and a dynamic_mask_ratio in config.json"
        return ("G6b", "G6a"), f"{reason}; model_type doge2"
    if is_second:
        return ("G6b",), f"{reason}; model_type doge2"
    if "window_size" in seen.config and "keep_window_size" not in seen.config:
        return ("G8", "G7"), f"{reason}; window_size in config.json"
    return ("G7", "G8"), reason


# config key -> the generations whose code reads it, for `Evidence.given`.
_BELONGS: dict[str, tuple[Generation, ...]] = {
    "num_inner_values": ("G1", "G2"),
    "dynamic_mask_ratio": ("G4a", "G4b", "G6a", "G6b"),
    "keep_window_size": ("G4b", "G5", "G6a", "G6b", "G7", "G8"),
    "window_size": ("G8",),
    "is_causal": ("G4a", "G4b", "G8"),
}
_SECOND: tuple[Generation, ...] = ("G6a", "G6b")


def _check_config(generation: Generation, reason: str, seen: Evidence) -> None:
    """Refuse a config that belongs to another generation than the tensors."""
    advice = f"take config.json and weights from one revision, or pass --generation {generation}"
    for key, belongs in _BELONGS.items():
        if seen.given(key) and generation not in belongs:
            raise DogeExportError(
                f"config.json has {key} {shown(seen.config[key])}, a value of generation {' or '.join(belongs)}, but"
                f" the tensors are of {generation} ({reason}): {advice}"
            )
    model_type = seen.config.get("model_type")
    if (model_type == "doge2") != (generation in _SECOND):
        raise DogeExportError(
            f"config.json says model_type {shown(model_type)}, but the tensors are of {generation} ({reason}): {advice}"
        )


def _cdmoe(seen: Evidence, generation: Generation) -> tuple[tuple[MoeVariant, ...], str]:
    """Return the variants that the tensors allow, the default first, and the reason; no variants for a dense layer."""
    short = {name.split(".", 1)[1]: shape for name, shape in seen.layer.items() if name.startswith(_MLP)}
    if "down_embed.weight" not in short:
        return (), ""
    if "router_gate.weight" in short:
        fourth = generation in ("G4a", "G4b")
        if fourth and "router_gate.bias" in short:
            return ("M6",), "router_gate with a bias"
        if generation == "G8":
            return ("M7-fixed", "M7"), "router_gate, generation G8"
        return ("M7", "M6") if fourth else ("M7",), "router_gate"
    if "queries.weight" in short:
        if generation == "G1":
            return ("M0",), "queries and keys, generation G1"
        if "gate_proj.weight" not in short:
            raise DogeExportError(
                "the mixture of experts has queries but no gate_proj, a form of one day (8 December 2024) whose expert"
                " numbers lie outside its own table; it is not supported"
            )
        return ("M1",), "queries, keys and a gate"
    if "queries_proj.weight" in short:
        keys = short.get("keys", ())
        if seen.given("num_cdmoe_experts") or len(keys) != 3 or keys[0] != 2:  # M3 with one head has such keys too
            raise DogeExportError(
                "the mixture of experts is of February 2025 (M2 or M3: queries_proj with several heads), of which no"
                " checkpoint was published; it is not supported"
            )
        return ("M4", "M5"), "queries_proj and keys"
    raise DogeExportError(f"the mixture of experts is of no known form (seen: {', '.join(sorted(short)[:6])})")


_MLP = ("mlp.", "feed_forward.")


def is_for_classes(config: Mapping[str, Any], assumed: Assumptions) -> bool:
    """Return whether the config and the user leave no other task than text-classification, before tensors are read."""
    classifier, language_model = _named_heads(config)
    return classifier is not None and language_model is None and assumed.task in (None, "text-classification")


def _named_heads(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the names of a classifier class and of a language model class in the config's `architectures`."""
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    classifier = next((name for name in classes if name.endswith("ForSequenceClassification")), None)
    return classifier, next((name for name in classes if name.endswith("ForCausalLM")), None)


def _task(names: Mapping[str, Shape], config: Mapping[str, Any]) -> tuple[Task, str]:
    classifier, language_model = _named_heads(config)
    heads = [name for name in ("score.weight", "classifier.weight", "lm_head.weight") if name in names]
    if len(heads) > 1:
        raise DogeExportError(f"both {' and '.join(heads)}: a checkpoint has one head, save the model again")
    head = heads[0] if heads else None
    is_classifier = head not in (None, "lm_head.weight")
    if classifier and not language_model and not is_classifier:
        raise DogeExportError(
            f"config.json names {classifier}, but there is no score.weight: fetch the whole checkpoint"
        )
    if language_model and not classifier and is_classifier:
        raise DogeExportError(
            f"config.json names {language_model}, but the head is {head}: take both files from one revision"
        )
    if is_classifier:
        return "text-classification", str(head)
    if head is None and not language_model and not any(name.startswith("model.") for name in names):
        return "feature-extraction", "names without the prefix model."
    return "text-generation", head or "no head but the embedding"


def identify(
    names: Mapping[str, Shape],
    config: Mapping[str, Any],
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    some_a_negative: Callable[[], bool] = lambda: False,
    assumed: Assumptions = NOTHING_ASSUMED,
) -> Identity:
    """Identify a checkpoint by the decision tree.

    Args:
        names: name -> shape of every tensor in the files.
        config: content of config.json.
        heads: num_attention_heads.
        kv_heads: num_key_value_heads.
        head_dim: size of a head.
        some_a_negative: tells whether a tensor `self_attn.A` has negative values; called only where nothing else
            decides.
        assumed: what the user stated because the files do not tell.

    Raises:
        DogeExportError: the tensors are of no supported generation, the config contradicts them, or they rule out what
            the user stated.
    """
    first = {
        rest: shape
        for name, shape in names.items()
        if (rest := name.removeprefix("model.").removeprefix("layers.0.")) != name.removeprefix("model.")
    }
    seen = Evidence(first, config, heads, kv_heads, head_dim, some_a_negative)
    candidates, reason = _candidates(seen)
    generation = _choose(assumed.generation, candidates, "generation", "tensors are", reason)
    if assumed.generation is None:
        _check_config(generation, reason, seen)
    variants, moe_reason = _cdmoe(seen, generation)
    _check_is_moe(seen, generation, bool(variants))
    if assumed.cdmoe is not None and not variants:
        raise DogeExportError(f"--cdmoe {assumed.cdmoe}: the checkpoint has no mixture of experts")
    cdmoe = _choose(assumed.cdmoe, variants, "cdmoe", "mixture of experts is", moe_reason) if variants else None
    task, task_reason = _task(names, config)

    reasons = [f"{generation}: {reason}"]
    if generation == "G2":
        reasons += _turning(seen)
    reasons += [f"mixture of experts {cdmoe}: {moe_reason}"] if cdmoe else []
    reasons += [f"{task}: {task_reason}"]
    notes = _notes(seen, generation, candidates, variants, assumed)
    return Identity(generation, cdmoe, task, tuple(reasons), tuple(notes))


def _turning(seen: Evidence) -> list[str]:
    """Return the evidence for whether RoPE rotates the keys of a G2; empty where the files do not tell."""
    if _TURNED in seen.config:
        return [f"{_TURNED} in config.json: RoPE turns keys, too"]
    if _NOT_TURNED in seen.config:
        return [f"{_NOT_TURNED} in config.json: RoPE turns queries only"]
    if seen.has("in_attn_layernorm.weight"):
        return ["in_attn_layernorm: the names of 8 December 2024, when RoPE turned queries only"]
    return []


def _check_is_moe(seen: Evidence, generation: Generation, there: bool) -> None:
    said, how = False, "has no is_moe, which means false"
    if "is_moe" in seen.config:
        said, how = bool(seen.config["is_moe"]), f"says is_moe {shown(seen.config['is_moe'])}"
    elif generation == "G1":
        said, how = True, "is of the first generation, which always has a mixture of experts"
    if said == there:
        return
    tensors = "has tensors of a mixture of experts (down_embed)" if there else "has no down_embed tensors"
    raise DogeExportError(f"config.json {how}, but the checkpoint {tensors}: take both from one revision")


_Name = TypeVar("_Name", bound=str)


def _choose(wanted: _Name | None, candidates: tuple[_Name, ...], option: str, what: str, reason: str) -> _Name:
    if wanted is None:
        return candidates[0]
    if wanted not in candidates:
        raise DogeExportError(f"--{option} {wanted}: the {what} of {' or '.join(candidates)} ({reason})")
    return wanted


def _notes(
    seen: Evidence,
    generation: Generation,
    candidates: tuple[Generation, ...],
    variants: tuple[MoeVariant, ...],
    assumed: Assumptions,
) -> list[str]:
    """Return notes on what the files leave open, if it changes answers."""
    notes = []
    if generation == "G2" and not _turning(seen):
        notes.append(
            "the files do not tell whether RoPE turned the keys, as it did from the evening of 9 December 2024: not"
            f" turned is assumed ({_TURNED} in config.json says that they were)"
        )
    ratio = seen.given("dynamic_mask_ratio")
    # No G8 was published; G3b and G7 in second place mean that config.json spoke against them. G4a gives other answers
    # than G4b only with a ratio, and its configs have neither of the later keys.
    later = not ratio or "keep_window_size" in seen.config or "is_causal" in seen.config
    silent = {"G3b", "G7", "G8"} | ({"G4a"} if later else set())
    others = [other for other in candidates[1:] if other not in silent]
    if others and assumed.generation is None:
        notes.append(
            f"the files do not tell {candidates[0]} from {' or '.join(others)}: {candidates[0]} is assumed"
            " (--generation)"
        )
    is_fourth = generation in ("G4a", "G4b")
    if ratio and is_fourth and assumed.ratio_mask is None and seen.given("keep_window_size"):
        notes.append("the files do not tell which keys dynamic_mask_ratio counts: excess is assumed (--ratio-mask)")
    if len(variants) > 1 and assumed.cdmoe is None:
        notes.append(
            f"the files do not tell mixture of experts {variants[0]} from {' or '.join(variants[1:])}: {variants[0]} is"
            " assumed (--cdmoe); the right one has the lower perplexity"
        )
    if seen.has("feed_forward.shared_up_proj.weight"):
        notes.append("experts are assumed to read the layer's input (G1c), not the shared output (two days of G1b)")
    return notes
