"""`doge-export inspect`: description of an exported folder or a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import click

from doge_export.cli.options import assumption_options, json_option, source_options
from doge_export.cli.render import columns, echo_json, named_values, size
from doge_export.package import Manifest, is_exported, validation_line


@click.command()
@click.argument("folder_or_model")
@assumption_options
@source_options
@json_option
def command(folder_or_model: str, as_json: bool, **options: Any) -> None:
    """Show what is in a folder.

    Architecture, files and sizes, operators, inputs and outputs, and the result of the validation. FOLDER_OR_MODEL is
    an exported folder, or a checkpoint (a folder or a hub id). Of a checkpoint it shows the generation of Doge (G1 to
    G8) too, with the evidence for it and the facts that its files leave open.
    """
    facts = _exported(folder_or_model) if is_exported(folder_or_model) else _checkpoint(folder_or_model, options)
    if as_json:
        echo_json(facts)
        return
    for title, body in _sections(facts):
        click.echo(f"{title}\n{body}\n")


def _exported(folder: str) -> dict[str, Any]:
    from doge_export.runtime.inspection import inspect_folder

    return inspect_folder(folder)


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


def _sections(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    source, files = facts["source"], facts["files"]
    origin = [("model", source["model"]), ("revision", source["revision"] or "none, a local folder")]
    sections = [("source", columns(origin))]
    if "identity" in facts:
        identity = facts["identity"]
        lines = [*(("", reason) for reason in identity["reasons"]), *(("note", note) for note in identity["notes"])]
        sections.append((f"generation {identity['generation']}", columns(lines)))
    sections.append(("architecture", columns(named_values(facts["architecture"]))))
    total = sum(file["bytes"] for file in files.values())
    rows = [*((name, size(file["bytes"])) for name, file in files.items()), ("total", size(total))]
    sections.append(("files", columns(rows)))
    if "graphs" not in facts:
        return [*sections, ("tensors", f"  {facts['tensors']}")]
    export = [
        ("doge-export", facts["doge_export"]),
        ("target", facts["target"]),
        ("task", facts["task"]),
        ("max_length", facts["max_length"]),
    ]
    if facts["cdmoe_routing"]:
        export.append(("cdmoe_routing", facts["cdmoe_routing"]))
    sections.insert(1, ("export", columns(export)))
    for name, graph in facts["graphs"].items():
        sections += _graph_sections(name, graph)
    return [*sections, ("validation", f"  {validation_line(Manifest.from_dict(facts))}")]


def _graph_sections(name: str, graph: Mapping[str, Any]) -> list[tuple[str, str]]:
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph["opset"].items())
    facts = [
        ("precision", graph["precision"]),
        ("opset", opset),
        ("IR version", graph["ir_version"]),
        ("nodes", graph["nodes"]),
    ]
    if "quantization" in graph:
        otherwise = [f"{name}: {how['dtype']}" for name, how in graph["quantization"]["exceptions"].items()]
        how = {**graph["quantization"], "exceptions": ", ".join(otherwise) or None}
        facts += named_values({"quantization": how})
    if "typing" in graph:
        facts += named_values({"largest": graph["typing"]["largest"]})
    if "engine" in graph:
        shown = {name: value for name, value in graph["engine"].items() if name not in ("caches", "profiles")}
        facts += named_values({"engine": shown})
    if "quality" in graph:
        facts += named_values({"quality": graph["quality"]})
    by_count = sorted(graph.get("operators", {}).items(), key=lambda item: -item[1])
    ports = [(f"{name} {side}", columns(_port(value) for value in graph[side])) for side in ("inputs", "outputs")]
    operators = columns((count, operator) for operator, count in by_count)
    return [(name, columns(facts)), *ports, (f"{name} operators", operators)]


def _port(value: Mapping[str, Any]) -> tuple[str, str, str]:
    shape = ", ".join(map(str, value["shape"]))
    return value["name"], value["type"], f"[{shape}]{' optional' if value.get('optional') else ''}"
