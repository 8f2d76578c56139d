"""Greedy tokens of a portable graph by plain onnxruntime alone: `python plain_greedy.py FILE TOKENS ID...`."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def greedy(file: str, ids: list[int], tokens: int) -> list[int]:
    """Read a prompt, then token by token, as the README of an exported folder says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    caches = {
        value.name: np.zeros([1, value.shape[1], 0, value.shape[3]], TYPES[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    names = ["logits", *(name.replace("past_key_values", "present") for name in caches)]
    new, length, answer = ids, 0, []
    for _ in range(tokens):
        feeds = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, length + len(new)), np.int64),
            "position_ids": np.arange(length, length + len(new))[None],
        }
        logits, *presents = session.run(names, feeds | caches)
        assert logits.shape[1] == 1, "without num_logits_to_keep only the last token has logits"
        length += len(new)
        caches = dict(zip(caches, presents, strict=True))
        new = [int(logits[0, -1].argmax())]
        answer += new
    return answer


if __name__ == "__main__":
    tokens = greedy(sys.argv[1], [int(word) for word in sys.argv[3:]], int(sys.argv[2]))
    sys.stdout.write(" ".join(map(str, tokens)) + "\n")
