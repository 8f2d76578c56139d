"""Nodes of domain `doge` in the form in which TensorRT's parser finds their plugin."""

from __future__ import annotations

import onnx_ir as ir

from doge_export.graph.schemas import (
    CDMOE,
    DOMAIN,
    DYNAMIC_MASK_ATTENTION,
    FUSED_CDMOE,
    FUSED_DYNAMIC_MASK_ATTENTION,
    VERSION,
)
from doge_export.targets.contract import ContractError, GraphPass, check_signature

OPERATORS = (DYNAMIC_MASK_ATTENTION.name, FUSED_DYNAMIC_MASK_ATTENTION.name, CDMOE.name, FUSED_CDMOE.name)
"""Operators that the plugin has."""

DEFAULTS = {
    DYNAMIC_MASK_ATTENTION.name: {"bounded": 0, "alias_kv_cache": 0},
    FUSED_DYNAMIC_MASK_ATTENTION.name: {"bounded": 0, "alias_kv_cache": 0},
}
"""The plugin's values of attributes that nodes may leave out; a test compares them with the plugin's own list."""


class PluginNodes(GraphPass):
    """Add what the parser looks for to every node of domain `doge`, and remove all functions.

    1. plugin_namespace and plugin_version: from TensorRT 10.15 on, a function is preferred to a plugin that these do
       not ask for.
    2. Attributes that the node leaves at the plugin's defaults: the parser warns of each that is missing.

    Needs operators that the plugin has; a graph without nodes of domain `doge` only loses its functions.
    """

    def requires(self, model: ir.Model) -> None:
        """Require operators that the plugin has."""
        super().requires(model)
        for node in _nodes(model.graph):
            check_signature(node)
            if node.op_type not in OPERATORS:
                raise ContractError(node, f"expected an operator of the plugin: {' or '.join(OPERATORS)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the attributes to the nodes of the main graph."""
        for node in _nodes(model.graph):
            node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", DOMAIN)
            node.attributes["plugin_version"] = ir.AttrString("plugin_version", str(VERSION))
            for name, value in DEFAULTS.get(node.op_type, {}).items():
                node.attributes.setdefault(name, ir.AttrInt64(name, value))
        model.functions.clear()
        return ir.passes.PassResult(model, modified=True)


def _nodes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.domain == DOMAIN]
