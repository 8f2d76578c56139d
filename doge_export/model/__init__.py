"""Doge in PyTorch, in our own words. transformers is the oracle of its tests, never its source."""

from doge_export.model.doge import DogeForExport

__all__ = ["DogeForExport"]
