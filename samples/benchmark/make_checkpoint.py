"""Write a checkpoint of a published size with random weights: `python make_checkpoint.py 20M OUT`.

Its answers mean nothing, but it is as fast, as large and as hard to reproduce as the real one: A is not zero, residual
weights are not one, and no two scores are equal. Tensors have the names that their generation gave them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from published import PUBLISHED
from safetensors.torch import save_file
from spelling import NAMES, Shape, tensors

SHARD = 256 * 2**20  # numbers in a file, so that no more than one is in memory


def random_tensor(name: str, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Draw a tensor as large as training makes it, so that attention and experts matter to the logits."""
    tensor = torch.empty(shape)
    if name.endswith("dynamic_mask"):
        return tensor.fill_(1.0)  # never trained: it is only compared with zero
    if name.endswith(".bias"):
        return tensor.normal_(std=0.1, generator=generator)
    if name.endswith(".A"):
        return tensor.normal_(generator=generator)
    if "residual" in name or "norm" in name:
        return tensor.uniform_(0.7, 1.3, generator=generator)
    # Product keys [heads, keys, 2, width] and [2, width, keys] are summed over their width, matrices over columns.
    summed = shape[-2] if len(shape) == 3 else shape[-1]
    return tensor.normal_(std=summed**-0.5, generator=generator)


def shards(shapes: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    """Split the tensors into runs of at most SHARD numbers; a larger tensor is a run of its own."""
    run: dict[str, Shape] = {}
    for name, shape in shapes.items():
        if run and sum(torch.Size(other).numel() for other in [*run.values(), shape]) > SHARD:
            yield run
            run = {}
        run[name] = shape
    yield run


def write(
    out: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    third: bool = False,
) -> None:
    """Write config.json and random weights; with `third`, A is ones, as in G3, which never trained it."""
    generator = torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    stored = {"torch_dtype": str(dtype).removeprefix("torch."), **config}
    (out / "config.json").write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
    parts = list(shards(shapes))
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        drawn = {}
        for name, shape in part.items():
            drawn[name] = random_tensor(name, shape, generator).to(dtype)
            if third and name.endswith(".A"):
                drawn[name].fill_(1.0)
        save_file(drawn, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if len(parts) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def make(
    size: str, out: Path, generation: str | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> None:
    """Write the published model `size` as of `generation`, by default the latest."""
    generations = PUBLISHED[size]
    generation = generation or next(iter(generations))
    if generation not in generations:
        raise SystemExit(f"{size} was published as {' and '.join(generations)}, not as {generation}")
    model = generations[generation]
    shapes = tensors(generation, model.cdmoe, model.config)
    write(out, model.config, shapes, dtype=dtype, seed=seed, third=generation in ("G3a", "G3b"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=PUBLISHED)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--generation", choices=NAMES, help="As first published, or as uploaded anew. [default: latest]"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.size, arguments.out, arguments.generation, getattr(torch, arguments.dtype), arguments.seed)
