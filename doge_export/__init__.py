"""Export Doge small language models to validated ONNX folders, and run these.

Importing this package needs neither torch nor transformers; `export` and `validate` import them when called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from doge_export.errors import DogeExportError, RunFailed
from doge_export.version import __version__

if TYPE_CHECKING:
    from doge_export.evaluation.choices import ChoicesScore as ChoicesScore
    from doge_export.evaluation.choices import evaluate_choices as evaluate_choices
    from doge_export.evaluation.perplexity import TextScore as TextScore
    from doge_export.evaluation.perplexity import evaluate_text as evaluate_text
    from doge_export.package import verify as verify
    from doge_export.pipeline.onnx import ExportResult as ExportResult
    from doge_export.pipeline.onnx import export as export
    from doge_export.pipeline.quantize import QuantizeResult as QuantizeResult
    from doge_export.pipeline.quantize import quantize as quantize
    from doge_export.runtime import ClassificationSession as ClassificationSession
    from doge_export.runtime import FeatureSession as FeatureSession
    from doge_export.runtime import Generation as Generation
    from doge_export.runtime import Session as Session
    from doge_export.runtime import SessionBusy as SessionBusy
    from doge_export.runtime import load as load
    from doge_export.validation import Verdict as Verdict
    from doge_export.validation import validate as validate

_HOME = {
    "ChoicesScore": "doge_export.evaluation.choices",
    "evaluate_choices": "doge_export.evaluation.choices",
    "TextScore": "doge_export.evaluation.perplexity",
    "evaluate_text": "doge_export.evaluation.perplexity",
    "ExportResult": "doge_export.pipeline.onnx",
    "export": "doge_export.pipeline.onnx",
    "verify": "doge_export.package",
    "QuantizeResult": "doge_export.pipeline.quantize",
    "quantize": "doge_export.pipeline.quantize",
    "ClassificationSession": "doge_export.runtime",
    "FeatureSession": "doge_export.runtime",
    "Generation": "doge_export.runtime",
    "Session": "doge_export.runtime",
    "SessionBusy": "doge_export.runtime",
    "load": "doge_export.runtime",
    "Verdict": "doge_export.validation",
    "validate": "doge_export.validation",
}

__all__ = ["DogeExportError", "RunFailed", "__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'doge_export' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
