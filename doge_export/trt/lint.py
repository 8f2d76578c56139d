"""Find what TensorRT's parser would refuse or misread in a graph, without TensorRT.

The rules follow onnx-tensorrt's ModelImporter and onnxOpImporters; a rule whose answer depends on the version says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from doge_export.plugin.tensorrt_versions import MajorMinor
from doge_export.trt.creators import Creator, packaged
from doge_export.trt.engine_plan import Finding
from doge_export.trt.rules.lint_subject import LintSubject


def lint(
    model: ir.Model,
    version: MajorMinor,
    creators: tuple[Creator, ...] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Finding, ...]:
    """Return all findings, rule by rule.

    Args:
        model: lowered graph.
        version: of the TensorRT that is to read it.
        creators: in TensorRT's registry. None: those of our plugin.
        sizes: largest sizes of the dynamic axes, by name; tensors are counted only if theirs are known.
    """
    from doge_export.trt.rules import RULES

    subject = LintSubject(model, version, packaged() if creators is None else creators, sizes or {})
    return tuple(Finding(name, where, message) for name, rule in RULES.items() for where, message in rule(subject))
