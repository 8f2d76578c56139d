"""Doge in PyTorch, in our own words. transformers is the oracle of its tests, never its source."""

from doge_export.model.doge import DogeForExport, DogeForTask
from doge_export.model.heads import MODULES, DogeForClassification, DogeForFeatures

__all__ = ["MODULES", "DogeForClassification", "DogeForExport", "DogeForFeatures", "DogeForTask"]
