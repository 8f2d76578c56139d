"""Greedy answer of a portable folder by onnxruntime-genai: `python genai_greedy.py FOLDER FILE TOKENS TEXT`."""

from __future__ import annotations

import json
import sys

import onnxruntime_genai


def greedy(folder: str, file: str, text: str, tokens: int) -> dict:
    """Ids of the prompt and of the answer, and its text."""
    config = onnxruntime_genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"filename": file}}}))
    model = onnxruntime_genai.Model(config)
    tokenizer = onnxruntime_genai.Tokenizer(model)
    tokenizer.update_options(add_special_tokens="true")
    prompt = tokenizer.encode(text).tolist()
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(prompt)
    answer = []
    while not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    return {"prompt": prompt, "answer": answer, "text": tokenizer.decode(answer)}


if __name__ == "__main__":
    folder, file, tokens, text = sys.argv[1:]
    sys.stdout.write(json.dumps(greedy(folder, file, text, int(tokens))) + "\n")
