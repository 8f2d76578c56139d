"""`doge-export inspect`: description of an exported folder or a checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli.options import assumption_options, json_option, source_options, verify_option
from doge_export.cli.render import columns, echo_json, named_values, size
from doge_export.package import GraphEntry, is_exported, validation_line
from doge_export.package import verify as verify_folder

if TYPE_CHECKING:
    from doge_export.runtime.inspection import Inspection

Section = tuple[str, str]
"""A title and the lines under it."""


@click.command()
@click.argument("folder_or_model")
@assumption_options
@source_options
@verify_option
@json_option
def command(folder_or_model: str, verify: bool, as_json: bool, **options: Any) -> None:
    """Show what is in a folder.

    Architecture, files and sizes, operators, inputs and outputs, and the result of the validation. FOLDER_OR_MODEL is
    an exported folder, or a checkpoint (a folder or a hub id). Of a checkpoint it shows the generation of Doge (G1 to
    G8) too, with the evidence for it and the facts that its files leave open.
    """
    if verify:
        verify_folder(folder_or_model)
    if is_exported(folder_or_model):
        from doge_export.runtime.inspection import inspect_folder

        seen = inspect_folder(folder_or_model)
        facts, sections = seen.to_dict(), _exported_sections(seen)
    else:
        facts = _checkpoint(folder_or_model, options)
        sections = _checkpoint_sections(facts)
    if as_json:
        echo_json(facts)
        return
    for title, body in sections:
        click.echo(f"{title}\n{body}\n")


def _checkpoint(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from doge_export.checkpoint import open_checkpoint
    from doge_export.checkpoint.identify import Assumptions

    assumed, where = Assumptions.taken_from(options)
    checkpoint = open_checkpoint(model, assumed=assumed, **where)
    files = [*checkpoint.tensors.files, *checkpoint.tokenizer_files]
    return {
        "source": {"model": checkpoint.source.name, "revision": checkpoint.source.revision},
        "identity": dataclasses.asdict(checkpoint.identity),
        "architecture": checkpoint.architecture.to_dict(),
        "tensors": len(checkpoint.tensors),
        "files": {file.name: {"bytes": file.stat().st_size} for file in files},
    }


def _checkpoint_sections(facts: Mapping[str, Any]) -> list[Section]:
    identity = facts["identity"]
    lines = [*(("", reason) for reason in identity["reasons"]), *(("note", note) for note in identity["notes"])]
    return [
        _source(facts["source"]["model"], facts["source"]["revision"]),
        (f"generation {identity['generation']}", columns(lines)),
        ("architecture", columns(named_values(facts["architecture"]))),
        _files({name: file["bytes"] for name, file in facts["files"].items()}),
        ("tensors", f"  {facts['tensors']}"),
    ]


def _exported_sections(seen: Inspection) -> list[Section]:
    manifest = seen.manifest
    export = [
        ("doge-export", manifest.doge_export),
        ("target", manifest.target),
        ("task", manifest.task),
        ("max_length", manifest.max_length),
    ]
    if manifest.cdmoe_routing:
        export.append(("cdmoe_routing", manifest.cdmoe_routing))
    graphs = (_graph_sections(name, graph, seen.ports[name]) for name, graph in manifest.graphs.items())
    return [
        _source(manifest.source.model, manifest.source.revision),
        ("export", columns(export)),
        ("architecture", columns(named_values(manifest.architecture))),
        _files({name: file.bytes for name, file in manifest.files.items()}),
        *itertools.chain.from_iterable(graphs),
        ("validation", f"  {validation_line(manifest)}"),
    ]


def _source(model: str, revision: str | None) -> Section:
    return "source", columns([("model", model), ("revision", revision or "none, a local folder")])


def _files(sizes: Mapping[str, int]) -> Section:
    rows = [*((name, size(bytes_)) for name, bytes_ in sizes.items()), ("total", size(sum(sizes.values())))]
    return "files", columns(rows)


def _graph_sections(name: str, graph: GraphEntry, ports: Mapping[str, Any]) -> list[Section]:
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
    if "engine" in ports:
        shown = {name: value for name, value in ports["engine"].items() if name not in ("caches", "profiles")}
        facts += named_values({"engine": shown})
    if graph.quality:
        facts += named_values({"quality": graph.quality})
    by_count = sorted(graph.operators.items(), key=lambda item: -item[1])
    sides = [(f"{name} {side}", columns(_port(value) for value in ports[side])) for side in ("inputs", "outputs")]
    operators = columns((count, operator) for operator, count in by_count)
    return [(name, columns(facts)), *sides, (f"{name} operators", operators)]


def _port(value: Mapping[str, Any]) -> tuple[str, str, str]:
    shape = ", ".join(map(str, value["shape"]))
    return value["name"], value["type"], f"[{shape}]{' optional' if value.get('optional') else ''}"
