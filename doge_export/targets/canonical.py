"""The traced graph as it is, for compilers with a plugin for the two `doge` operators, TensorRT above all."""

from __future__ import annotations

from doge_export.targets.target import Target

CANONICAL = Target(
    name="canonical",
    summary="for compilers with a plugin: nodes of domain doge, each with a function body of standard ops",
    passes=lambda traits: (),
    keeps_operators=True,
    interface="growing-scores",
)
