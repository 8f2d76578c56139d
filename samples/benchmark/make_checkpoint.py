"""Write a checkpoint of a published size with random weights: `python make_checkpoint.py 20M OUT`.

Nothing can be read from its answers, but it is as fast, as large and as hard to match as the real one: A is not zero,
residual weights are not one, no two scores are equal.
"""

import argparse
from pathlib import Path

import torch
from transformers import DogeConfig, DogeForCausalLM

# hidden_size, intermediate_size, layers, heads, key/value heads, experts, experts per token
SIZES = {
    "20M": (256, 512, 8, 2, 1, 0, 0),
    "60M": (512, 1024, 16, 4, 2, 0, 0),
    "160M": (768, 1536, 24, 6, 3, 0, 0),
    "320M": (1024, 2048, 32, 8, 4, 0, 0),
    "20M-MoE": (256, 512, 8, 2, 1, 1024, 16),
    "120M-MoE": (512, 1024, 16, 4, 2, 4096, 32),
}


def make(size: str, out: Path, seed: int = 0) -> None:
    """Save the checkpoint in transformers' layout, float32."""
    hidden, intermediate, layers, heads, kv_heads, experts, picked = SIZES[size]
    torch.manual_seed(seed)
    config = DogeConfig(
        vocab_size=32768,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        keep_window_size=2048,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        tie_word_embeddings=True,
        is_moe=experts > 0,
        num_experts=experts or 16384,
        num_experts_per_tok=picked or 64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = DogeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".A"):
                parameter.normal_()
            elif "residual" in name or "norm" in name:
                parameter.uniform_(0.7, 1.3)
            else:
                # As large as training makes them, so that attention and experts matter to the logits.
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    make(arguments.size, arguments.out)
