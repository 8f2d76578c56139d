"""Validation of an exported folder against its checkpoint, run in PyTorch with eager attention in float32."""

from doge_export.validation.validator import validate
from doge_export.validation.verdict import CheckResult, Verdict

__all__ = ["CheckResult", "Verdict", "validate"]
