"""`doge-export trt --dry-run`: plan an engine, and check its graph by all that this machine has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from doge_export.plugin.tensorrt_versions import NEWEST, MajorMinor
from doge_export.runtime.engine import installation
from doge_export.runtime.engine.kinds import RTX, TENSORRT, kind_of
from doge_export.trt.builder import BuilderSettings
from doge_export.trt.engine_plan import EnginePlan, Finding
from doge_export.trt.make import complete
from doge_export.trt.plan_engine import plan_engine
from doge_export.trt.real_parser import ask, parser_here, plugin_for

NO_PLUGIN = "the rules alone: no plugin is built here that {} could be given (`doge-export plugin build`)"


def dry_run(
    model: str | Path,
    builder: str | None,
    version: MajorMinor | None,
    *,
    plugin: Path | None = None,
    settings: BuilderSettings | None = None,
    **options: Any,
) -> tuple[EnginePlan, str]:
    """Plan an engine, and let the parser of an installed TensorRT read its graph.

    Args:
        model: see `plan_engine`.
        builder: the kind that the engine is for. None: the one that is installed, else TensorRT.
        version: of the TensorRT that the engine is for; only an installed one of that version is asked. None: the one
            that is installed, else the newest.
        plugin: the plugin's library, for the parser. None: one that is built here.
        settings: for the builder, which the one that is installed must have.
        options: those of `plan_engine`.

    Returns:
        the plan with the findings of both, and what checked it.

    Raises:
        DogeExportError: an option is wrong, or the TensorRT that is installed lacks it.
    """
    trt, checked_by = parser_here(TENSORRT.name if version is not None and builder is None else builder)
    if trt is not None and settings is not None:
        complete(settings, trt).check_for(trt)
    kind = kind_of(trt) if trt is not None else (RTX if builder == RTX.name else TENSORRT)
    installed = installation.version(trt)[:2] if trt is not None and kind == TENSORRT else NEWEST
    planned = plan_engine(model, builder=kind.name, tensorrt_version=version or installed, **options)
    if trt is None or (version is not None and version != installed):
        return planned, checked_by if trt is None else "the rules alone: another TensorRT is installed"
    found = plugin_for(trt, plugin) if planned.plugin_nodes else None
    if planned.plugin_nodes and found is None:
        return planned, NO_PLUGIN.format(kind.title)
    parsed = ask(trt, planned.graph, found)
    findings = parsed.findings
    if not findings and parsed.plugin_layers != planned.plugin_nodes:
        message = f"{planned.plugin_nodes} plugin nodes became {parsed.plugin_layers} plugin layers"
        findings = (Finding("parser", "graph", message),)
    return dataclasses.replace(planned, findings=(*planned.findings, *findings)), checked_by
