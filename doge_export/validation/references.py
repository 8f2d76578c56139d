"""The choice of a checkpoint's reference: transformers if it has the generation, else this project's own module."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doge_export.checkpoint import Checkpoint
    from doge_export.checkpoint.architecture import Architecture, CdmoeRouting
    from doge_export.validation.oracle import Oracle

IN_TRANSFORMERS = ("G6b", "G7")
"""Generations whose tensors and computation are those of transformers' Doge; the model_type of G6b is doge2."""


def in_transformers(architecture: Architecture) -> bool:
    """Return whether transformers computes this architecture; of the experts it has M7 only."""
    return architecture.generation in IN_TRANSFORMERS and (architecture.moe is None or architecture.moe.variant == "M7")


def load_oracle(checkpoint: Checkpoint, cdmoe_routing: CdmoeRouting | None) -> Oracle:
    """Load the reference of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        cdmoe_routing: CDMoE routing of the exported graph; None for a graph whose routing mixes no tokens.

    Raises:
        DogeExportError: transformers is needed and is missing, too old, or does not load every tensor.
    """
    if in_transformers(checkpoint.architecture):
        from doge_export.validation.transformers_oracle import TransformersOracle

        return TransformersOracle(checkpoint, cdmoe_routing or "reference")
    from doge_export.validation.module_oracle import ModuleOracle

    return ModuleOracle(checkpoint, cdmoe_routing or "reference")
