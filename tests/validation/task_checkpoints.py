"""Checkpoints of the tasks without a language model's head, made of those with one."""

import json

import torch
from safetensors.torch import load_file, save_file


def changed(source, folder, *, config=None, drop=(), add=None):
    """`source` with other values in its config (None: without the key), without some tensors and with others."""
    tensors = load_file(source / "model.safetensors")
    content = json.loads((source / "config.json").read_text()) | (config or {})
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    kept = {name: tensor for name, tensor in tensors.items() if name not in drop}
    save_file(kept | (add or {}), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def classifier(source, folder, *, labels=3, head="score", **config):
    """A classifier on the decoder of `source`."""
    size = json.loads((source / "config.json").read_text())["hidden_size"]
    weight = torch.randn(labels, size, generator=torch.manual_seed(labels)) * 1.5 * size**-0.5
    names = {"architectures": ["DogeForSequenceClassification"], "id2label": {i: f"class {i}" for i in range(labels)}}
    return changed(source, folder, config=names | config, drop=["lm_head.weight"], add={f"{head}.weight": weight})
