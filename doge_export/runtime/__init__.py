"""Runs an exported folder: onnxruntime, numpy, tokenizers and jinja2, and nothing else."""

from doge_export.runtime.generate import Generation
from doge_export.runtime.session import Session, load

__all__ = ["Generation", "Session", "load"]
