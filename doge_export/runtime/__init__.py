"""Run an exported folder with onnxruntime, numpy, tokenizers and jinja2 alone: neither torch nor transformers."""

from doge_export.runtime.classification_session import ClassificationSession
from doge_export.runtime.feature_session import FeatureSession
from doge_export.runtime.generate import Generation
from doge_export.runtime.loading import load
from doge_export.runtime.session import Session
from doge_export.runtime.turns import SessionBusy

__all__ = ["ClassificationSession", "FeatureSession", "Generation", "Session", "SessionBusy", "load"]
