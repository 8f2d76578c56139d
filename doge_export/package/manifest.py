"""The manifest `doge_export.json`: origin of a folder, description of its graphs, and the sha256 of every file.

Format 1, 28 November 2026: a reader ignores fields that it does not know, so a newer doge-export may add some without a
new format number; it must raise the number when a reader that ignores the new field would answer wrongly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self, get_args

from doge_export.checkpoint.architecture import CdmoeRouting, Task
from doge_export.checkpoint.identify import Assumptions
from doge_export.errors import DogeExportError
from doge_export.json_file import parse_json
from doge_export.package.fingerprint import Fingerprint, fingerprint_all
from doge_export.paths import EXPORTED, check_path_text, exists
from doge_export.regular_file import is_there, read_regular

FORMAT = 1
MODEL = "onnx/model.onnx"
"""The fp32 graph of an export, which is always there."""

LARGEST = 32 * 2**20
"""Bytes of the largest manifest that is read; that of Doge-160M has some 20 kB."""

UNLIMITED = 2**24
"""Largest max_length: beyond it RoPE's float32 positions are no longer exact."""

LARGEST_COUNT = 2**31 - 1
"""Largest number of tokens, layers or other sizes."""

Cache = Literal["unbounded", "bounded"]
"""Keys that a cache holds: those of all tokens, or the keep_window_size best of each layer and head, which is exact."""

Interface = Literal["one-call", "in-place", "growing", "growing-scores", "bounded", "engine", "native"]
"""Protocol of a graph's inputs and outputs; `runtime.loading` has a session or decoder for each.

    one-call: no cache; a text goes in whole.
    in-place: keys and values are written into one buffer bound as past and as present.
    growing: keys and values are inputs, and outputs longer by the new tokens, with the names that Optimum uses.
    growing-scores: the same, with the scores of the cached keys beside them.
    bounded: as growing, with the scores of all layers as one more, and at most keep_window_size keys of each head.
    engine: a TensorRT engine with `engine.json` beside it.
    native: one operator that keeps its caches, over a weight file of the native decoder.
"""


@dataclasses.dataclass(frozen=True)
class AdapterEntry:
    """The LoRA adapter that is merged into a folder's weights.

    Attributes:
        model: hub id, or absolute path of a local folder.
        revision: full commit sha of a hub repository; None for a local folder.
        files: its files, by name.
    """

    model: str
    revision: str | None
    files: Mapping[str, Fingerprint] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SourceEntry:
    """The checkpoint that a folder was made from.

    Attributes:
        model: hub id, or absolute path of a local folder.
        revision: full commit sha of a hub repository; None for a local folder.
        files: the files that were read, by name inside the checkpoint.
        license: license of the checkpoint, as the hub writes it; None if it is not known.
        adapter: the LoRA adapter that was merged into its weights; None without one.
    """

    model: str
    revision: str | None
    files: Mapping[str, Fingerprint] = dataclasses.field(default_factory=dict)
    license: str | None = None
    adapter: AdapterEntry | None = None

    @property
    def adapter_options(self) -> dict[str, Any]:
        """Options of `open_checkpoint` that merge the same adapter, or none."""
        if self.adapter is None:
            return {"adapter": "none"}
        return {"adapter": self.adapter.model, "adapter_revision": self.adapter.revision}


@dataclasses.dataclass(frozen=True)
class GraphEntry:
    """One graph or engine of a folder.

    Attributes:
        precision: a `doge_export.precision.Precision`, or "tf32" for an engine whose float32 products take factors of
            19 bits.
        interface: protocol of its inputs and outputs.
        opset: version of each operator domain.
        ir_version: version of the ONNX file format.
        nodes: number of nodes of the main graph.
        onnxruntime: oldest version of onnxruntime that is known to run it; None for an engine.
        operators: number of nodes by operator.
        quality: losses against the fp32 graph, see `quantization.quality.Quality`.
        quantization: storage of its weights in fewer bits.
        typing: number of operators that compute in each type, and the largest values seen in 16 bits.
        seconds: time that it took to make.
    """

    precision: str
    interface: Interface
    opset: Mapping[str, int]
    ir_version: int
    nodes: int
    operators: Mapping[str, int] = dataclasses.field(default_factory=dict)
    onnxruntime: str | None = None
    quality: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    typing: Mapping[str, Any] | None = None
    seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of doge_export.json. The defaults are those of folders written before a field existed.

    Attributes:
        doge_export: version that wrote the folder.
        source: the checkpoint.
        architecture: JSON values of `checkpoint.Architecture`.
        target: name of a target of `doge_export.targets`, or "tensorrt".
        max_length: most tokens of a row, prompt and answer together.
        chunkable_length: length up to which a prompt gives the same logits when it is read in pieces.
        cdmoe_routing: "reference" or "per-token"; None for a model whose experts mix no tokens.
        graphs: graphs or engines by file name.
        validation: JSON values of the `validation.Verdict`, or {"skipped": reason}.
        task: task that the folder was exported for.
        assumptions: the user's statements about the checkpoint, see `checkpoint.identify.Assumptions`.
        versions: versions of Python and of the libraries that made the folder.
        seconds: time that the run took.
        peak_memory_bytes: largest resident memory of the run.
        files: every other file of the folder, by name with slashes; filled in by `write_manifest`.
        cache: keys that the cache holds.
        format: version of this schema.
    """

    doge_export: str
    source: SourceEntry
    architecture: Mapping[str, Any]
    target: str
    max_length: int
    chunkable_length: int
    cdmoe_routing: CdmoeRouting | None
    graphs: Mapping[str, GraphEntry]
    validation: Mapping[str, Any]
    task: Task = "text-generation"
    assumptions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    files: Mapping[str, Fingerprint] = dataclasses.field(default_factory=dict)
    cache: Cache = "unbounded"
    format: int = FORMAT

    @property
    def passed(self) -> bool | None:
        """True if the validation passed; None if it was skipped."""
        return self.validation.get("passed")

    @property
    def skipped(self) -> str | None:
        """Reason why the folder was not validated; None if it was."""
        return self.validation.get("skipped")

    @property
    def assumed(self) -> Assumptions:
        """The user's statements about the checkpoint."""
        return Assumptions(**self.assumptions)  # type: ignore[arg-type]

    def graph_of(self, precision: str) -> str | None:
        """Return the name of the first graph in `precision`; None if there is none."""
        return next((name for name, graph in self.graphs.items() if graph.precision == precision), None)

    def with_graph(self, name: str, graph: GraphEntry) -> Manifest:
        """Return a copy that also holds `graph`."""
        return dataclasses.replace(self, graphs={**self.graphs, name: graph})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without fields that are None but for cdmoe_routing, where null has a meaning."""
        values = dataclasses.asdict(self)
        values["graphs"] = {name: _given(graph) for name, graph in values["graphs"].items()}
        values["source"] = {
            name: value for name, value in values["source"].items() if name == "revision" or value is not None
        }
        return {**_given(values), "cdmoe_routing": self.cdmoe_routing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the manifest of the values that `to_dict` gave; `read_manifest` checks them before."""
        known = _known(cls, values)
        source = _known(SourceEntry, known["source"])
        source["files"] = _fingerprints(source.get("files", {}))
        if source.get("adapter") is not None:
            adapter = _known(AdapterEntry, source["adapter"])
            source["adapter"] = AdapterEntry(**adapter | {"files": _fingerprints(adapter.get("files", {}))})
        known["source"] = SourceEntry(**source)
        known["graphs"] = {name: GraphEntry(**_known(GraphEntry, graph)) for name, graph in known["graphs"].items()}
        known["files"] = _fingerprints(known["files"])
        return cls(**known)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` with the fingerprint of every other file of `folder`, and return what was written."""
    complete = dataclasses.replace(manifest, files=fingerprint_all(folder))
    text = json.dumps(complete.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (folder / EXPORTED).write_text(text + "\n", encoding="utf-8")
    return complete


def is_exported(folder: Path | str) -> bool:
    """Return whether `folder` has a manifest, so that it counts as an exported folder and not as a checkpoint."""
    return exists(Path(folder) / EXPORTED)


def read_manifest(folder: Path | str) -> Manifest:
    """Read the manifest of an exported folder.

    Raises:
        DogeExportError: the folder has no manifest, or one that is damaged or of a newer version.
    """
    check_path_text(folder)
    folder = Path(folder)
    file = folder / EXPORTED
    if not exists(folder):
        raise DogeExportError(f"folder {folder} does not exist; `doge-export onnx MODEL {folder}` would write it")
    if not folder.is_dir():
        raise DogeExportError(f"{folder} is a file; name the folder that `doge-export onnx` wrote")
    if not is_there(file):
        raise DogeExportError(
            f"{folder} has no {EXPORTED}, so it is not an exported folder; `doge-export onnx MODEL OUT` writes one"
        )
    try:
        values = parse_json(_content(file))
    except ValueError as error:
        raise DogeExportError(f"{file} is not JSON ({error}); export the model again") from error
    if not isinstance(values, dict):
        raise DogeExportError(f"{file} is not a manifest of doge-export; export the model again")
    _check(values, file)
    return Manifest.from_dict(values)


def manifest_digest(folder: Path | str) -> str:
    """Return the sha256 of a folder's manifest, which names the sha256 of every other file: one number for all.

    Raises:
        DogeExportError: the manifest cannot be read.
    """
    return hashlib.sha256(_content(Path(folder) / EXPORTED)).hexdigest()


def _content(file: Path) -> bytes:
    try:
        return read_regular(file, LARGEST)
    except OSError as error:
        raise DogeExportError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from error


def stays_inside(name: str) -> bool:
    """Return whether a file's name in a manifest, with slashes, is that of a file inside the folder."""
    path = PurePosixPath(name)
    has_control = any(ord(character) < 32 for character in name)
    return bool(name) and not (path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or has_control)


def validation_line(manifest: Manifest) -> str:
    """Return the result of the validation in one line."""
    if manifest.skipped is not None:
        return f"not validated ({manifest.skipped})"
    return str(manifest.validation.get("summary") or ("PASSED" if manifest.passed else "FAILED"))


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _known(of: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of fields that this version knows; the module's docstring says why others are ignored."""
    return {field.name: values[field.name] for field in dataclasses.fields(of) if field.name in values}


def _fingerprints(values: Mapping[str, Any]) -> dict[str, Fingerprint]:
    return {name: Fingerprint(**_known(Fingerprint, value)) for name, value in values.items()}


def _check(values: Mapping[str, Any], file: Path) -> None:
    """Refuse a manifest that lacks a value that readers rely on, or has one of another type."""
    for key, (is_valid, expected) in _VALUES.items():
        if key not in values:
            if key in _DEFAULTED:
                continue
            raise DogeExportError(f"{file} lacks {key}, expected {expected}; export the model again")
        value = values[key]
        if not is_valid(value):
            raise DogeExportError(
                f"{file}: {key} is {reprlib.repr(value)}, expected {expected}; export the model again"
            )
        if key == "format" and value > FORMAT:  # the other values of a newer format may be of any type
            raise DogeExportError(
                f"{file} has format {value}, this doge-export reads up to {FORMAT}; install a newer doge-export"
            )
    labels = values["architecture"].get("labels", [])
    is_classifier = values.get("task") == "text-classification"
    is_list = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not is_list or (is_classifier and not labels):
        raise DogeExportError(f"{file} names no labels; export the model again")


def _is_count(value: Any, least: int, most: float = LARGEST_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(count, 0) for count in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_fingerprints(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and _is_count(entry.get("bytes"), 0, 2**63)
        for entry in value.values()
    )


def _is_source(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("model"), str)
        and "revision" in value
        and isinstance(value["revision"], str | None)
        and isinstance(value.get("license"), str | None)
        and _is_fingerprints(value.get("files", {}))
        and (value.get("adapter") is None or _is_source(value["adapter"]))
    )


def _is_graph(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("precision"), str)
        and isinstance(value.get("interface"), str)
        and _is_counts(value.get("opset"))
        and _is_count(value.get("ir_version"), 0)
        and _is_count(value.get("nodes"), 0)
        and _is_counts(value.get("operators", {}))
        and isinstance(value.get("onnxruntime"), str | None)
        and (value.get("seconds") is None or _is_number(value["seconds"]))
        and all(isinstance(value.get(part), dict | None) for part in ("quality", "quantization", "typing"))
    )


def _is_architecture(value: Any) -> bool:
    """Return whether the values that sessions read have the types of `checkpoint.Architecture`."""
    return (
        isinstance(value, dict)
        and all(_is_count(value[name], 0) for name in _SIZES & value.keys())
        and isinstance(value.get("pad_token_id"), int | None)
        and all(isinstance(value.get(part), dict | None) for part in ("rope", "moe", "ratio_mask", "inner_values"))
    )


def _is_validation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and (isinstance(value.get("skipped"), str) or isinstance(value.get("passed"), bool))
        and isinstance(value.get("summary"), str | None)
    )


_ASSUMED = {field.name for field in dataclasses.fields(Assumptions)}
_SIZES = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "keep_window_size",
    "score_heads",
}
_DEFAULTED = {"task", "assumptions", "versions", "seconds", "peak_memory_bytes", "cache"}
"""Fields that older folders lack."""

# Checked in this order: the format comes first, since it tells whether the others can be understood.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: _is_count(value, 1), "a number from 1"),
    "doge_export": (lambda value: isinstance(value, str), "a version"),
    "source": (_is_source, 'an object with a "model", a "revision" and the sha256 and bytes of its "files"'),
    "architecture": (_is_architecture, "an object with the sizes and parts of a Doge"),
    "graphs": (
        lambda value: (
            isinstance(value, dict)
            and bool(value)
            and all(map(stays_inside, value))
            and all(map(_is_graph, value.values()))
        ),
        "an object with the precision, interface, opset, ir_version and nodes of each graph inside the folder",
    ),
    "task": (lambda value: isinstance(value, str) and value in get_args(Task), f"one of {', '.join(get_args(Task))}"),
    "assumptions": (
        lambda value: _is_texts(value) and value.keys() <= _ASSUMED,
        f"an object with texts for some of {', '.join(sorted(_ASSUMED))}",
    ),
    "target": (lambda value: isinstance(value, str), "the name of a target"),
    "max_length": (lambda value: _is_count(value, 1, UNLIMITED), f"a number of tokens from 1 to {UNLIMITED}"),
    "chunkable_length": (lambda value: _is_count(value, 0), "a number of tokens from 0"),
    "cdmoe_routing": (
        lambda value: value is None or (isinstance(value, str) and value in ("reference", "per-token")),
        "reference, per-token or null",
    ),
    "validation": (
        _is_validation,
        'an object with "passed", true or false, or "skipped", a reason',
    ),
    "cache": (lambda value: isinstance(value, str) and value in get_args(Cache), "unbounded or bounded"),
    "versions": (_is_texts, "an object with texts"),
    "seconds": (lambda value: value is None or _is_number(value), "a number of seconds"),
    "peak_memory_bytes": (lambda value: value is None or _is_count(value, 0, 2**63), "a number of bytes"),
    "files": (_is_fingerprints, "an object with the sha256 and bytes of each file"),
}
