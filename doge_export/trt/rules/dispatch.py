"""Rules on what imports a node: the parser's own importer, a function of the model, or a plugin.

The parser looks at names, not at domains. Before 10.15 it took a function only if no plugin was registered under the
name, version and namespace that the node gives; since then the function wins unless the node has plugin_namespace.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from doge_export.trt.creators import Creator
from doge_export.trt.importers import importers
from doge_export.trt.rules.lint_subject import LintSubject, Message, is_custom, name_of

EXPLICIT_SINCE = (10, 15)
"""The first TensorRT in which plugin_namespace on a node, and nothing else, puts its plugin before everything else."""
DOMAIN_SINCE = (10, 10)
"""The first TensorRT that tries a node's domain as the namespace."""

_DEFAULT_VERSION = "1"
"""The plugin version that the parser looks for if the node gives none."""


def _text(node: ir.Node, name: str) -> str | None:
    attribute = node.attributes.get(name)
    return attribute.as_string() if attribute is not None and attribute.type == ir.AttributeType.STRING else None


def _creator(subject: LintSubject, node: ir.Node, *, by_domain: bool) -> Creator | None:
    """Return the creator that the parser finds for a node."""
    namespace = _text(node, "plugin_namespace")
    spaces = [namespace or ""]
    if by_domain and namespace is None and subject.version >= DOMAIN_SINCE:
        spaces.append(node.domain)
    wanted = [(node.op_type, _text(node, "plugin_version") or _DEFAULT_VERSION, space) for space in spaces]
    return next((x for x in subject.creators if (x.name, x.version, x.namespace) in wanted), None)


def _is_explicit(subject: LintSubject, node: ir.Node) -> bool:
    """Return whether a node's plugin goes before importers and functions."""
    explicit = subject.version >= EXPLICIT_SINCE and "plugin_namespace" in node.attributes
    return explicit and _creator(subject, node, by_domain=False) is not None


def taken_name(subject: LintSubject) -> Iterator[Message]:
    """A custom node has the name of a standard operator, and the parser would import it as that."""
    known = importers(subject.version)
    for node in subject.nodes:
        if is_custom(node) and node.op_type in known and not _is_explicit(subject, node):
            yield name_of(node), f"{subject.tensorrt} takes {node.domain}.{node.op_type} for its own {node.op_type}"


def function_wins(subject: LintSubject) -> Iterator[Message]:
    """A function of the node's name, in any domain, would be computed instead of the plugin."""
    functions = {name for _, name, _ in subject.model.functions}
    ours = {creator.name for creator in subject.creators}
    for node in subject.nodes:
        if node.op_type not in functions & ours or not is_custom(node):
            continue
        if subject.version >= EXPLICIT_SINCE:
            if not _is_explicit(subject, node):
                yield (
                    name_of(node),
                    f"a function of this name wins over the plugin in {subject.tensorrt} without plugin_namespace",
                )
        elif _creator(subject, node, by_domain=False) is None:
            yield (
                name_of(node),
                f"a function of this name is taken: no plugin in the namespace that {node.op_type} gives",
            )


def nested_plugin(subject: LintSubject) -> Iterator[Message]:
    """A custom node is inside a function or subgraph, where newer parsers do not look at plugin_namespace."""
    ours = {creator.name for creator in subject.creators}
    bodies = {f"function {function.name}": function.all_nodes() for function in subject.model.functions.values()}
    top = {id(node) for node in subject.nodes}
    bodies["a subgraph"] = (node for node in subject.model.graph.all_nodes() if id(node) not in top)
    for where, nodes in bodies.items():
        for node in nodes:
            if node.op_type in ours and is_custom(node):
                yield name_of(node), f"stands in {where}; nodes for the plugin belong in the main graph"


def no_creator(subject: LintSubject) -> Iterator[Message]:
    """A custom node has neither importer nor function nor a plugin of its version and namespace."""
    known = importers(subject.version)
    functions = {name for _, name, _ in subject.model.functions}
    for node in subject.nodes:
        if not is_custom(node) or node.op_type in known | functions:
            continue
        if _creator(subject, node, by_domain=True) is None:
            given = [_text(node, name) or "none" for name in ("plugin_namespace", "plugin_version")]
            yield name_of(node), f"no creator of {node.op_type} in namespace {given[0]!r}, version {given[1]!r}"
