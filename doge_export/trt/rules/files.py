"""Rules on the file as a whole: versions, and inputs without elements."""

from __future__ import annotations

from collections.abc import Iterator

from doge_export.plugin.tensorrt_versions import OLDEST, dotted
from doge_export.trt.importers import newest_onnx
from doge_export.trt.rules.lint_subject import LintSubject, Message


def version(subject: LintSubject) -> Iterator[Message]:
    """TensorRT is old: older parsers differ and were never looked at."""
    if subject.version < OLDEST:
        yield subject.tensorrt, f"too old; {dotted(OLDEST)} or newer expected"


def opset(subject: LintSubject) -> Iterator[Message]:
    """The opset is newer than the ONNX release that the parser was built with."""
    found = subject.model.opset_imports.get("", 0)
    newest, _ = newest_onnx(max(subject.version, OLDEST))
    if not 9 <= found <= newest:
        yield "graph", f"opset {found}; {subject.tensorrt} reads 9 to {newest}"


def ir_version(subject: LintSubject) -> Iterator[Message]:
    """The IR version is newer than the parser's, which may drop parts of the file silently."""
    _, newest = newest_onnx(max(subject.version, OLDEST))
    if subject.model.ir_version > newest:
        yield "graph", f"IR version {subject.model.ir_version}; {subject.tensorrt} reads up to {newest}"


def zero_length(subject: LintSubject) -> Iterator[Message]:
    """An input has an axis of size 0, for which no profile can give a shape that holds elements."""
    for value in subject.model.graph.inputs:
        if value.shape is not None and 0 in value.shape:
            yield (
                f"input {value.name}",
                f"shape {value.shape} has no elements; full capacity and a length of 0 expected",
            )
