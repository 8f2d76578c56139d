"""Print the tokens per second that memory bandwidth allows for the published sizes: `python roofline.py`.

A decoded token reads every weight once (of a table of experts only the picked rows), and the keys, values and scores of
its context. The numbers are computed, not measured; no engine can be faster at batch 1, unless all that tokens read
stays in the GPU's L2 cache: then DRAM is no bound, and the column says so.
"""

from __future__ import annotations

import argparse
import math

from published import PUBLISHED, Model
from spelling import heads, tensors

SIZES = ("20M", "40M", "60M", "100M", "160M", "260M", "320M", "20M-MoE", "120M-MoE", "40M-MoE", "180M-MoE")
GENERATION = "G7"


def weight_bytes(model: Model, number_bytes: int) -> int:
    """Count the bytes of weights that a token reads."""
    config, total = model.config, 0
    for name, shape in tensors(GENERATION, model.cdmoe, config).items():
        if name.endswith(("down_embed.weight", "up_embed.weight")):
            shape = (config["num_experts_per_tok"], *shape[1:])  # one routing head, as all of this generation have
        elif "embed_tokens" in name and not config["tie_word_embeddings"]:
            shape = (1, *shape[1:])
        total += math.prod(shape)
    return total * number_bytes


def resident_bytes(model: Model, number_bytes: int) -> int:
    """Count the bytes of weights that tokens read in the long run: every token picks other experts."""
    config = model.config
    shapes = (
        (1, *shape[1:]) if "embed_tokens" in name and not config["tie_word_embeddings"] else shape
        for name, shape in tensors(GENERATION, model.cdmoe, config).items()
    )
    return sum(map(math.prod, shapes)) * number_bytes


def cache_bytes(model: Model, context: int, number_bytes: int) -> int:
    """Count the bytes of keys, values and float32 scores that a token reads after `context` tokens, none masked."""
    _, kv_heads, size = heads(model.config)
    return model.config["num_hidden_layers"] * context * kv_heads * (2 * size * number_bytes + 4)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=float, default=1008, help="GB/s; an RTX 4090 has 1008 [default: 1008]")
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache [default: 1024]")
    parser.add_argument("--bytes", type=int, choices=[2, 4], default=2, help="of a number [default: 2]")
    parser.add_argument("--l2", type=float, default=72, help="MB of L2; an RTX 4090 has 72 [default: 72]")
    arguments = parser.parse_args()
    fits = f"stays in {arguments.l2:.0f} MB of L2"
    print(f"| | MB of weights a token | MB of cache at {arguments.context} | at most tokens/s | {fits} | measured |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        model = PUBLISHED[size][GENERATION]
        weights = weight_bytes(model, arguments.bytes) / 1e6
        cache = cache_bytes(model, arguments.context, arguments.bytes) / 1e6
        resident = resident_bytes(model, arguments.bytes) / 1e6 + cache
        note = f"yes, {resident:.1f}: DRAM is no bound" if resident <= arguments.l2 else f"no, {resident:.1f}"
        bound = arguments.bandwidth * 1e3 / (weights + cache)
        print(f"| {size} | {weights:.1f} | {cache:.1f} | {bound:.0f} | {note} | |")


if __name__ == "__main__":
    main()
