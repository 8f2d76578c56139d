"""`doge-export inspect`: description of an exported folder or a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from doge_export import console
from doge_export.cli.options import assumption_options, json_option, source_options, verify_option
from doge_export.cli.render import columns, echo_json, named_values, size
from doge_export.installing import install_command, is_there
from doge_export.package import GraphEntry, is_exported, validation_line
from doge_export.package import verify as verify_folder

if TYPE_CHECKING:
    from doge_export.runtime.inspection import Inspection

Section = tuple[str, str]
"""A title and the lines under it."""

_FEW = 4
"""Entries of a list that is cut."""

_CACHES = ("past_key_values.", "present.", "cache.", "past.", "key_cache", "value_cache")
"""First letters of the names of caches, of which there are two for each layer."""

_HARDWARE = {"none": ", the same card only", "ampere+": ", and others from Ampere on"}
"""What the GPUs of an engine are besides those of its compute capabilities."""

_SHOWN = (
    "generation",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "keep_window_size",
    "max_position_embeddings",
    "moe",
    "labels",
)
"""Fields of the architecture that are shown without --all."""


@click.command()
@click.argument("folder_or_model")
@assumption_options
@source_options
@click.option("--all", "show_all", is_flag=True, help="Show every field, input, output and operator.")
@verify_option
@json_option
def command(folder_or_model: str, show_all: bool, verify: bool, as_json: bool, **options: Any) -> None:
    """Show what is in a folder.

    Architecture, files and sizes, operators, inputs and outputs, and the result of the validation. FOLDER_OR_MODEL is
    an exported folder or the hub id of one, or a checkpoint (a folder, a bundled model or a hub id). Of a checkpoint it
    shows the generation of Doge (G1 to G8) too, with the evidence for it and the facts that its files leave open. Lists
    are cut to fit a screen, unless --all is given; --json has everything.
    """
    if not is_exported(folder_or_model):
        from doge_export.runtime.hub_folder import export_on_hub

        where = {name: options[name] for name in ("revision", "token", "cache_dir", "offline")}
        folder_or_model = str(export_on_hub(folder_or_model, **where) or folder_or_model)
    if verify:
        verify_folder(folder_or_model)
    if is_exported(folder_or_model):
        from doge_export.runtime.inspection import inspect_folder

        seen = inspect_folder(folder_or_model)
        facts, sections = seen.to_dict(), _exported_sections(seen, show_all or console.is_verbose())
    else:
        facts = _checkpoint(folder_or_model, options)
        sections = _checkpoint_sections(facts)
    if as_json:
        echo_json(facts)
        return
    for title, body in sections:
        click.echo(f"{title}\n{body}\n")


def _checkpoint(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from doge_export.checkpoint.identify import Assumptions

    assumed, where = Assumptions.taken_from(options)
    if not (is_there("torch") and is_there("safetensors")):
        from doge_export.checkpoint.headers import look_into

        console.log(f"note: read without torch, so that no value was looked at: {install_command('export')} for that")
        return look_into(model, assumed=assumed, **where)
    from doge_export.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model, assumed=assumed, **where)
    files = [*checkpoint.tensors.files, *checkpoint.tokenizer_files]
    return {
        "source": {"model": checkpoint.source.name, "revision": checkpoint.source.revision},
        "identity": dataclasses.asdict(checkpoint.identity),
        "notes": list(checkpoint.notes),
        "architecture": checkpoint.architecture.to_dict(),
        "tensors": len(checkpoint.tensors),
        "files": {file.name: {"bytes": file.stat().st_size} for file in files},
    }


def _checkpoint_sections(facts: Mapping[str, Any]) -> list[Section]:
    identity = facts["identity"]
    notes = [*identity["notes"], *facts["notes"]]
    lines = [*(("", reason) for reason in identity["reasons"]), *(("note", note) for note in notes)]
    return [
        _source(facts["source"]["model"], facts["source"]["revision"]),
        (f"generation {identity['generation']}", columns(lines)),
        ("architecture", columns(named_values(facts["architecture"]))),
        _files({name: file["bytes"] for name, file in facts["files"].items()}),
        ("tensors", f"  {facts['tensors']}"),
    ]


def _exported_sections(seen: Inspection, show_all: bool) -> list[Section]:
    manifest = seen.manifest
    export = [
        ("doge-export", manifest.doge_export),
        ("target", manifest.target),
        ("task", manifest.task),
        ("max_length", manifest.max_length),
    ]
    if manifest.cache == "bounded":
        export.append(("cache", f"bounded, {manifest.architecture.get('keep_window_size')} keys a layer and head"))
    if manifest.cdmoe_routing:
        export.append(("cdmoe_routing", manifest.cdmoe_routing))
    from doge_export.runtime.native.backend import described_backend

    export.append(("runs by", described_backend(manifest, next(iter(manifest.graphs)))))
    graphs = (_graph_sections(name, graph, seen.ports[name], show_all) for name, graph in manifest.graphs.items())
    architecture = columns(named_values(manifest.architecture))
    if not show_all:
        shown = {name: manifest.architecture.get(name) or None for name in _SHOWN}
        line = ", ".join(" ".join(pair) for pair in named_values(shown))
        architecture = textwrap.indent(textwrap.fill(line, 110), "  ")
    return [
        _source(manifest.source.model, manifest.source.revision),
        ("export", columns(export)),
        ("architecture", architecture),
        _files({name: file.bytes for name, file in manifest.files.items()}, show_all),
        *itertools.chain.from_iterable(graphs),
        ("validation", f"  {validation_line(manifest)}"),
    ]


def _source(model: str, revision: str | None) -> Section:
    return "source", columns([("model", model), ("revision", revision or "none, a local folder")])


def _files(sizes: Mapping[str, int], show_all: bool = True) -> Section:
    shown = sizes if show_all else dict(sorted(sizes.items(), key=lambda item: -item[1])[:_FEW])
    rows = [(name, size(bytes_)) for name, bytes_ in shown.items()]
    if len(shown) < len(sizes):
        rows.append((f"{len(sizes) - len(shown)} smaller", size(sum(sizes.values()) - sum(shown.values()))))
    rows.append(("total", size(sum(sizes.values()))))
    return "files", columns(rows)


def _graph_sections(name: str, graph: GraphEntry, ports: Mapping[str, Any], show_all: bool) -> list[Section]:
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opset.items())
    facts: list[tuple[str, Any]] = [
        ("precision", graph.precision),
        ("opset", opset),
        ("IR version", graph.ir_version),
        ("nodes", graph.nodes),
    ]
    if graph.quantization:
        otherwise = [f"{name}: {how['dtype']}" for name, how in graph.quantization["exceptions"].items()]
        how = {**graph.quantization, "exceptions": ", ".join(otherwise) or None}
        facts += named_values({"quantization": how})
    if graph.typing:
        facts += named_values({"largest": graph.typing["largest"]})
    facts += _engine(ports)
    if graph.quality:
        quality = {name: value for name, value in graph.quality.items() if name != "stretches"}
        parts = graph.quality.get("stretches", ())
        by_position = {f"{part['first']}-{part['end'] - 1} of {part['length']}": part["kl_mean"] for part in parts}
        facts += named_values({"quality": quality | {"kl_mean at tokens": by_position}})
    if not show_all:
        return [(name, columns(_brief(graph, ports)))]
    by_count = sorted(graph.operators.items(), key=lambda item: -item[1])
    sides = [(f"{name} {side}", columns(_port(value) for value in ports[side])) for side in ("inputs", "outputs")]
    operators = columns((count, operator) for operator, count in by_count)
    return [(name, columns(facts)), *sides, (f"{name} operators", operators)]


def _brief(graph: GraphEntry, ports: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Describe a graph in a few lines: caches by their number, operators by the most frequent ones."""
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opset.items())
    rows: list[tuple[str, Any]] = [("precision", graph.precision), ("opset", f"{opset}; IR {graph.ir_version}")]
    if graph.quality:
        rows += [(f"quality.{name}", f"{graph.quality[name]:.3g}") for name in ("kl_mean", "limit")]
    rows += _engine_in_brief(ports["engine"]) if "engine" in ports else []
    if graph.typing and graph.typing["largest"]:
        kind, extreme = max(graph.typing["largest"].items(), key=lambda item: item[1]["magnitude"])
        rows.append((f"largest.{kind}.magnitude", f"{extreme['magnitude']:.4g}"))
    for side in ("inputs", "outputs"):
        listed = [value for value in ports[side] if not value["name"].startswith(_CACHES)]
        rows += [(side[:-1], " ".join(_port(value))) for value in listed[:_FEW]]
        caches = [value for value in ports[side] if value["name"].startswith(_CACHES)]
        more = len(listed[_FEW:])
        rows += [(f"{side[:-1]}s", f"{len(caches)} of caches: {' '.join(_port(caches[0]))}, ...")] if caches else []
        rows += [(f"{side[:-1]}s", f"{more} more")] if more else []
    by_count = sorted(graph.operators.items(), key=lambda item: -item[1])
    most = ", ".join(f"{operator} {count}" for operator, count in by_count[:_FEW])
    others = len(by_count) - _FEW
    rows.append(("nodes", f"{graph.nodes}: {most}" + (f", and {others} other kinds" if others > 0 else "")))
    return rows


def _engine(ports: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Describe what an engine was built with and for."""
    shown = {name: value for name, value in ports.get("engine", {}).items() if name not in ("caches", "profiles")}
    return named_values({"engine": shown}) if shown else []


def _engine_in_brief(engine: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Describe who built an engine, which GPUs run it, what a run may hold, and its kernels in each profile."""
    from doge_export.runtime.engine.kinds import KINDS, TENSORRT

    builder = KINDS.get(engine["builder"], TENSORRT).title
    gpus = ", ".join(".".join(map(str, capability)) for capability in engine["compute_capabilities"])
    plugin = engine["plugin"] or {}
    launches = engine["settings"].get("launches", {})
    rows: list[tuple[str, Any]] = [
        ("builder", f"{builder} {engine['tensorrt']}"),
        ("compute_capabilities", f"{gpus}{_HARDWARE.get(engine['hardware'], '')}"),
        ("attention", f"{engine['attention']} {plugin.get('name', '')} {str(plugin.get('sha256', ''))[:12]}".strip()),
        ("max_batch", engine["max_batch"]),
        ("max_length", engine["max_length"]),
    ]
    if launches:
        sums = ", ".join(f"{profile} {sum(kinds.values())}" for profile, kinds in launches.items())
        rows.append(("launches of a run", sums))
    return rows


def _port(value: Mapping[str, Any]) -> tuple[str, str, str]:
    shape = ", ".join(map(str, value["shape"]))
    return value["name"], value["type"], f"[{shape}]{' optional' if value.get('optional') else ''}"
