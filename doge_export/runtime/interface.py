"""Comparison of an opened graph's inputs and outputs with what its folder's manifest says of them.

Sessions and decoders make buffers from these sizes and never look again, so a graph that is another is told here, in
one line, and not by whatever fails first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnxruntime

from doge_export.errors import DogeExportError
from doge_export.package.manifest import Manifest

Port = tuple[str, tuple[int | None, ...]]
"""Type as onnxruntime names it, without "tensor()", and sizes; None for an axis that must be dynamic."""

_ANY = None, None
_IDS: Port = ("int64", _ANY)
_CACHE = re.compile(r"past_key_values\.(0|[1-9]\d{0,4})\.(key|value|score)")
_CACHE_TYPES = ("float", "float16", "int8")


def check_interface(
    session: onnxruntime.InferenceSession, manifest: Manifest, interface: str, file: object = "the graph"
) -> None:
    """Check names, types, ranks and fixed sizes of a graph's inputs and outputs, caches included.

    Args:
        session: the graph, opened.
        manifest: of its folder.
        interface: protocol of the graph, by the manifest.
        file: path of the graph, for the message.

    Raises:
        DogeExportError: they are not those of a graph of that interface, for this model.
    """
    try:
        inputs, optional, outputs = map(
            _ports, (session.get_inputs(), session.get_overridable_initializers(), session.get_outputs())
        )
    except UnicodeDecodeError as error:
        raise DogeExportError(f"{file} is damaged: a name in it is not UTF-8; export the model again") from error
    if interface == "in-place" and "past_length" not in inputs:
        return  # the decoder tells that the graph is of an older version

    def fail(problem: str) -> DogeExportError:
        return DogeExportError(
            f"{file} is damaged, or another graph than the manifest describes: {problem}; `doge-export verify` tells "
            "more, or export the model again"
        )

    needed, allowed = _expected_inputs(interface, manifest, inputs)
    _check_names(fail, "input", inputs, needed, {*needed, *allowed})
    if "num_logits_to_keep" in needed | allowed and "num_logits_to_keep" not in inputs | optional:
        raise fail("it lacks the input num_logits_to_keep")
    given = _expected_outputs(interface, manifest, inputs | outputs)
    _check_names(fail, "output", outputs, given, {*given})
    for side, found, expected in (("input", inputs | optional, needed | allowed), ("output", outputs, given)):
        for name, (dtype, shape) in expected.items():
            if name in found and not _fits(found[name], (dtype, shape)):
                raise fail(f"{side} {name} is {_shown(*found[name])}, expected {_shown(dtype, shape)}")


def _expected_inputs(interface: str, manifest: Manifest, found: Mapping[str, Port]) -> tuple[dict, dict]:
    """Return the inputs that a graph needs, and those that it may have."""
    if interface == "one-call":
        return {"input_ids": _IDS, "attention_mask": _IDS}, {}
    caches = _caches(manifest, interface, found)
    tokens: dict[str, Port] = {"input_ids": _IDS, "attention_mask": _IDS, **caches}
    keep: dict[str, Port] = {"num_logits_to_keep": ("int64", ())}
    if interface == "growing-scores":
        return tokens | {"position_ids": _IDS}, {}
    if interface == "bounded":
        joint: Port = ("float", (None, _joint_heads(manifest, found), None))
        return tokens | {"position_ids": _IDS, "past_scores": joint}, keep | {"keep_window_size": ("int64", (1,))}
    if interface == "growing":
        return tokens | {"position_ids": _IDS}, keep
    lengths: dict[str, Port] = {
        "past_length": ("int64", (1,)),
        "total_length": ("int64", (1,)),
        "seqlens_k": ("int32", (None,)),
        "total_sequence_length": ("int32", ()),
    }
    scores = ("float", (None, _size(found, "past_scores", 1, 4), 1, None))
    return tokens | lengths, keep | {"position_ids": _IDS, "past_scores": scores}


def _expected_outputs(interface: str, manifest: Manifest, found: Mapping[str, Port]) -> dict[str, Port]:
    """Return the outputs that a graph gives; one with a default of num_logits_to_keep says that number of logits."""
    a = manifest.architecture
    if interface == "one-call":
        if manifest.task == "text-classification":
            return {"logits": ("float", (None, len(a.get("labels", ()))))}
        return {"last_hidden_state": ("float", (None, None, a.get("hidden_size", -1)))}
    tokens = 1 if interface in ("growing", "bounded") and _size(found, "logits", 1, 3) == 1 else None
    outputs: dict[str, Port] = {"logits": ("float", (None, tokens, a.get("vocab_size", -1)))}
    outputs |= {
        name.replace("past_key_values", "present"): port for name, port in _caches(manifest, interface, found).items()
    }
    if interface == "bounded":
        outputs["present_scores"] = "float", (None, _joint_heads(manifest, found), None)
    elif "past_scores" in found:
        outputs["new_scores"] = "float", (None, _size(found, "past_scores", 1, 4), 1, None)
    return outputs


def _caches(manifest: Manifest, interface: str, found: Mapping[str, Port]) -> dict[str, Port]:
    """Return the caches of all layers, with the types, heads and widths that those of the first layer have."""
    numbers = [int(match[1]) for match in map(_CACHE.fullmatch, found) if match]
    layers = manifest.architecture.get("num_hidden_layers", max(numbers, default=0) + 1)
    layers = min(layers, len(found) + 1)  # a billion layers are told by the first that is not there
    parts = ("key", "value", "score") if interface == "growing-scores" else ("key", "value")
    caches: dict[str, Port] = {}
    for part in parts:
        first = f"past_key_values.0.{part}" if interface != "in-place" else "past_key_values.0.key"
        rank = 3 if part == "score" else 4
        dtype = found[first][0] if first in found and found[first][0] in _CACHE_TYPES else "float"
        heads = _size(found, first, 1, rank)
        shape = (None, heads, None) if rank == 3 else (None, heads, None, _size(found, first, 3, rank))
        caches |= {f"past_key_values.{layer}.{part}": (dtype, shape) for layer in range(layers)}
    return caches


def _joint_heads(manifest: Manifest, found: Mapping[str, Port]) -> int:
    """Return the key/value heads of all layers together."""
    return manifest.architecture.get("num_hidden_layers", -1) * _size(found, "past_key_values.0.key", 1, 4)


def _size(found: Mapping[str, Port], name: str, axis: int, rank: int) -> int:
    """Return the fixed size of an axis of a graph's own input; -1, which nothing fits, if it has none."""
    shape = found[name][1] if name in found else ()
    size = shape[axis] if len(shape) == rank else None
    return size if size is not None and 0 < size < 2**16 else -1


def _check_names(
    fail: Any, side: str, found: Mapping[str, Port], needed: Mapping[str, Port], allowed: Iterable[str]
) -> None:
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise fail(f"it lacks the {side} {lacking[0]}")
    others = sorted(found.keys() - set(allowed))
    if others:
        raise fail(f"it has the {side} {others[0][:80]!r}, of which nothing is known")


def _ports(values: Iterable[Any]) -> dict[str, Port]:
    return {
        value.name: (
            value.type.removeprefix("tensor(").removesuffix(")"),
            tuple(size if isinstance(size, int) else None for size in value.shape or ()),
        )
        for value in values
    }


def _fits(found: Port, expected: Port) -> bool:
    (dtype, shape), (wanted, sizes) = found, expected
    return dtype == wanted and shape == sizes


def _shown(dtype: str, shape: tuple[int | None, ...]) -> str:
    sizes = ", ".join("any" if size is None else "a fixed size" if size == -1 else str(size) for size in shape)
    return f"{dtype} [{sizes}]"
