"""Greedy answers of a portable folder by Optimum: `python optimum_greedy.py FOLDER TOKENS TEXT FILE...`."""

from __future__ import annotations

import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer


def greedy(folder: str, file: str, ids: dict, tokens: int) -> list[int]:
    """Ids of the answer by the graph `file` of the folder onnx."""
    model = ORTModelForCausalLM.from_pretrained(folder, subfolder="onnx", file_name=file)
    # Optimum reads this number for the model types on its list, and takes all heads for the others.
    model.num_key_value_heads = model.config.num_key_value_heads
    return model.generate(**ids, do_sample=False, max_new_tokens=tokens)[0, ids["input_ids"].shape[1] :].tolist()


if __name__ == "__main__":
    folder, tokens, text, *files = sys.argv[1:]
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    answers = {file: greedy(folder, file, ids, int(tokens)) for file in files}
    sys.stdout.write(json.dumps({"prompt": ids["input_ids"][0].tolist(), "answers": answers}) + "\n")
