"""Tiny random checkpoints in which every mechanism of Doge matters."""

import torch
from transformers import DogeConfig, DogeForCausalLM

MAX_LENGTH = 72
CONFIG = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 48,
    "keep_window_size": 20,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
MOE = {"is_moe": True, "num_experts": 64, "num_experts_per_tok": 4}


def random_model(seed: int = 0, kind: type = DogeForCausalLM, **changes) -> DogeForCausalLM:
    """A Doge with random weights of the size training gives them; transformers' own zeroes A, which voids selection.

    `kind` is another class of transformers' for another task.
    """
    torch.manual_seed(seed)
    model = kind._from_config(DogeConfig(**(CONFIG | changes)), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".A"):
                parameter.uniform_(0.3, 0.8)
            elif "residual" in name or "norm" in name:
                parameter.uniform_(0.7, 1.3)
            elif "embed_tokens" in name:
                parameter.normal_()
            else:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    return model
