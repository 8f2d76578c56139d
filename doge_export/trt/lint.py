"""TensorRT's parser, as a checker: what it would refuse or misread of a graph, one line each, without TensorRT.

The rules are those of onnx-tensorrt's ModelImporter and onnxOpImporters; where versions differ a rule says so.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from doge_export.trt.creators import Creator, packaged
from doge_export.trt.engine_plan import Finding
from doge_export.trt.importers import Version
from doge_export.trt.rules.lint_subject import LintSubject


def lint(
    model: ir.Model,
    version: Version,
    creators: tuple[Creator, ...] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Finding, ...]:
    """Every finding, rule by rule.

    Args:
        model: lowered.
        version: of the TensorRT that is to read it.
        creators: in the registry; by default those of our plugin.
        sizes: the dynamic axes at their largest, by name: tensors are only counted where these are known.
    """
    from doge_export.trt.rules import RULES

    subject = LintSubject(model, version, packaged() if creators is None else creators, sizes or {})
    return tuple(Finding(name, where, message) for name, rule in RULES.items() for where, message in rule(subject))
