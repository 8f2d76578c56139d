"""Ask the parser of an installed TensorRT what it takes of a graph; it needs no GPU with TensorRT for RTX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import onnx_ir as ir

from doge_export.errors import DogeExportError, RunFailed
from doge_export.package.disk import scratch_folder
from doge_export.package.onnx_file import write_onnx
from doge_export.runtime.engine import installation, plugin_file
from doge_export.runtime.engine.kinds import KINDS, RTX, kind_of, title_of
from doge_export.runtime.engine.plugin_file import PluginFile
from doge_export.trt.builder import count_plugin_layers, parse
from doge_export.trt.engine_plan import Finding


@dataclasses.dataclass(frozen=True)
class Parsed:
    """The answer of a parser.

    Attributes:
        findings: what it refuses, and what it warns of.
        plugin_layers: number of layers that it made of plugin nodes.
    """

    findings: tuple[Finding, ...]
    plugin_layers: int


def parser_here(builder: str | None) -> tuple[ModuleType | None, str]:
    """Return the TensorRT whose parser can be asked here, and what to call it; None, and why not, if none can.

    Args:
        builder: the kind that is to be asked. None: as `installation.choose`.
    """
    try:
        trt = installation.choose(builder)
        if kind_of(trt) != RTX:  # its Builder ends the process where there is no driver
            installation.require_cuda(kind_of(trt))
    except DogeExportError:
        named = KINDS[builder].title if builder else "TensorRT"
        return None, f"the rules alone: no {named} here whose parser could be asked"
    return trt, f"the parser of {title_of(trt)}, and the rules"


def ask(trt: ModuleType, graph: ir.Model, plugin: PluginFile | None) -> Parsed:
    """Return what a parser says of a graph.

    Args:
        trt: of `parser_here`.
        graph: to be read; not changed.
        plugin: that its nodes of domain doge call; None if there are none.
    """
    logger = installation.make_logger(trt)
    builder = trt.Builder(logger)
    with scratch_folder() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(graph, file)
        try:
            network = parse(trt, builder, logger, file, plugin)
        except RunFailed as error:
            return Parsed((Finding("parser", "graph", str(error)),), 0)
    warnings = tuple(Finding("parser-warning", "graph", line) for line in dict.fromkeys(logger.warnings))
    return Parsed(warnings, count_plugin_layers(trt, network))


def plugin_for(trt: ModuleType, named: Path | None = None) -> PluginFile | None:
    """Return the plugin that a parser may be given here; None if none is built.

    Raises:
        DogeExportError: the one that the user names is none.
    """
    if plugin_file.is_named(named):
        return plugin_file.find_plugin(named)
    try:
        return plugin_file.in_use(trt) or plugin_file.find_plugin()
    except DogeExportError:
        return None
