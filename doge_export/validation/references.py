"""Which reference judges a checkpoint: transformers where it has the generation, else this project's own module."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting
    from doge_export.validation.oracle import Oracle

IN_TRANSFORMERS = ("G6b", "G7")
"""Generations whose tensors and maths are those of transformers' Doge; G6b calls itself doge2."""


def in_transformers(architecture: Architecture) -> bool:
    """Whether transformers computes what this checkpoint was trained with; its experts are routed as M7."""
    return architecture.generation in IN_TRANSFORMERS and (architecture.moe is None or architecture.moe.variant == "M7")


def load_oracle(checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting | None) -> Oracle:
    """The reference of a checkpoint for graphs with this routing of experts (None where they mix no tokens).

    Raises DogeExportError where transformers judges and is missing, too old, or does not take the checkpoint whole.
    """
    if in_transformers(checkpoint.architecture):
        from doge_export.validation.transformers_oracle import TransformersOracle

        return TransformersOracle(checkpoint, cdmoe_routing or "reference")
    from doge_export.validation.module_oracle import ModuleOracle

    return ModuleOracle(checkpoint, cdmoe_routing or "reference")
