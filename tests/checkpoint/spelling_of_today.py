"""Where a tensor of an older generation must arrive, from the tables of samples/benchmark/spelling.py."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from older_doge import spelling

INNER = {
    "v_queries.weight": "v_proj.queries.weight",
    "v_queries.bias": "v_proj.queries.bias",
    "v_keys": "v_proj.keys",
    "v_embed.weight": "v_proj.table.weight",
}
ROUTER = {
    "queries.weight": "router_gate.weight",
    "queries_proj.weight": "router_gate.weight",
    "keys": "router_gate.keys",
}


def canonical(name: str) -> str:
    """Today's name of a tensor of any generation."""
    roles = {old: role for names in spelling.NAMES.values() for role, old in names.items()}
    body = name.removeprefix("model.")
    if body in ("lm_head.weight", "score.weight", "classifier.weight"):
        return body.replace("classifier", "score")
    match = re.fullmatch(r"layers\.(\d+)\.([^.]+)(?:\.(.+))?", body)
    if match is None:
        module = body.removesuffix(".weight")
        return f"model.{spelling.TODAY[roles[module]]}.weight"
    layer, module, rest = match.groups()
    if f"{module}.{rest}" in roles:  # residuals, once modules
        return f"model.layers.{layer}.{spelling.TODAY[roles[f'{module}.{rest}']]}"
    today = spelling.TODAY[roles[module]]
    if rest is None:
        return f"model.layers.{layer}.{today}"
    rest = (INNER if today == "self_attn" else ROUTER).get(rest, rest).removeprefix("shared_")
    return f"model.layers.{layer}.{today}.{rest}"


def relaid(name: str, stored: torch.Tensor) -> torch.Tensor:
    """Keys brought to one layout: [heads, width, values], and [halves, heads, width, keys]."""
    if name.endswith("v_proj.keys") and stored.ndim == 2:
        return stored.T[None]
    if name.endswith("router_gate.keys"):
        return torch.einsum("hkpw->phwk", stored) if stored.ndim == 4 else stored[:, None]
    return stored


def assert_arrived(tensors: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> None:
    """Every stored tensor is there in float32 under its name of today, but those that never had an effect."""
    inert = re.compile(r"dynamic_mask$|\.attn\.(A|dt_proj\.\w+)$")
    third = any("pre_layernorm" in name for name in stored) and not any(".A" in name for name in tensors)
    expected = {}
    for name, tensor in stored.items():
        today = canonical(name)
        if inert.search(name) or (third and re.search(r"\.self_attn\.(A|dt_proj\.\w+)$", name)):
            assert today not in tensors
            continue
        expected[today] = relaid(today, tensor)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name].float()), name
