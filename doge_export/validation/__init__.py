"""Proof that an exported folder computes what the checkpoint computes: PyTorch, eager, float32, is the oracle."""

from doge_export.validation.validator import validate
from doge_export.validation.verdict import CheckResult, Verdict

__all__ = ["CheckResult", "Verdict", "validate"]
