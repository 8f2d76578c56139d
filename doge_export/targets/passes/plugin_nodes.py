"""Nodes of domain `doge` as TensorRT's parser finds their plugin, and no function that it would take instead."""

from __future__ import annotations

import onnx_ir as ir

NAMESPACE, VERSION = "doge", "1"


class PluginNodes(ir.passes.InPlacePass):
    """plugin_namespace and plugin_version on every node; the function bodies go.

    From TensorRT 10.15 on a function wins over a plugin that is not asked for in this way.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """All nodes of the main graph."""
        for node in model.graph:
            if node.domain == "doge":
                node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", NAMESPACE)
                node.attributes["plugin_version"] = ir.AttrString("plugin_version", VERSION)
        model.functions.clear()
        return ir.passes.PassResult(model, modified=True)
