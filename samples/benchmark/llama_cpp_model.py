"""A Llama of the same shape and bits in llama.cpp, as a subject of `doge_export.benchmark.bench`.

Needs the packages llama-cpp-python and gguf. Weights are random: speed does not depend on what they say. The head is
tied to the embedding as Doge's is. `python llama_cpp_model.py out llama.gguf --precision int8` writes a file with the
tokenizer of an exported folder, as servers need one; this takes gguf alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

QUANTS = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
"""What llama.cpp calls the nearest of its formats: 32 weights to a scale, where ours has 128."""


def write_gguf(
    file: Path, architecture: dict[str, Any], precision: str, max_length: int, tokenizer: dict[str, Any] | None = None
) -> None:
    """Write a Llama with the sizes of a Doge's architecture and random weights.

    Args:
        file: where it is written.
        architecture: of a manifest.
        precision: a key of `QUANTS`.
        max_length: most tokens of a sequence.
        tokenizer: content of a tokenizer.json; None for a file without a vocabulary.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    a, chance = architecture, np.random.default_rng(0)
    kind = GGMLQuantizationType[QUANTS[precision]]
    hidden, inner, heads, kv_heads, size = (
        a[name]
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    staged = file.with_suffix(".new")
    writer = GGUFWriter(str(staged), "llama")
    writer.add_context_length(max_length)
    writer.add_embedding_length(hidden)
    writer.add_block_count(a["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(a["vocab_size"])
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        add_tokenizer(writer, tokenizer, a["vocab_size"])

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (chance.standard_normal((rows, columns)) * columns**-0.5).astype(np.float32)
        if precision == "fp32":
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    matrix("token_embd", a["vocab_size"], hidden)
    norm("output_norm")
    for layer in range(a["num_hidden_layers"]):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", heads * size, hidden)
        matrix(f"{block}.attn_k", kv_heads * size, hidden)
        matrix(f"{block}.attn_v", kv_heads * size, hidden)
        matrix(f"{block}.attn_output", hidden, heads * size)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", inner, hidden)
        matrix(f"{block}.ffn_up", inner, hidden)
        matrix(f"{block}.ffn_down", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    staged.replace(file)


def add_tokenizer(writer: Any, tokenizer: dict[str, Any], vocab_size: int) -> None:
    """Add a byte-level BPE tokenizer that splits as Llama 3's does, and begins a text with the token of id 0."""
    from gguf import TokenType

    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    words = {number: word for word, number in tokenizer["model"]["vocab"].items()} | special
    merges = [each if isinstance(each, str) else " ".join(each) for each in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([words.get(number, f"unused{number}") for number in range(vocab_size)])
    writer.add_token_types([TokenType.CONTROL if n in special else TokenType.NORMAL for n in range(vocab_size)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


class LlamaCpp:
    """llama.cpp, read and stepped through its C interface, which costs it less than its Python classes do.

    Args:
        file: a GGUF file.
        threads: number of CPU threads.
        max_length: tokens of its cache.
    """

    spins = False
    name = "llama.cpp"

    def __init__(self, file: Path, threads: int, max_length: int) -> None:
        import llama_cpp

        self._c = llama_cpp
        llama_cpp.llama_backend_init()
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, None)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = options.n_batch = max_length
        options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise SystemExit(f"llama.cpp cannot read {file}")
        self._context = llama_cpp.llama_init_from_model(model, options)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._token = (ctypes.c_int32 * 1)()

    def read(self, prompt: np.ndarray) -> float:
        """See `TimedModel`."""
        ids = (ctypes.c_int32 * prompt.shape[1])(*prompt[0].tolist())
        start = time.perf_counter()
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._decode(ids)
        return time.perf_counter() - start

    def step(self, count: int) -> float:
        """See `TimedModel`."""
        start = time.perf_counter()
        for _ in range(count):
            self._decode(self._token)
        return time.perf_counter() - start

    def generate(self, prompt: np.ndarray, new_tokens: int) -> float:
        """See `TimedModel`."""
        return self.read(prompt) + self.step(new_tokens - 1)

    def _decode(self, ids: ctypes.Array[ctypes.c_int32]) -> None:
        if self._c.llama_decode(self._context, self._c.llama_batch_get_one(ids, len(ids))):
            raise SystemExit("llama.cpp fails to decode")
        logits = np.ctypeslib.as_array(self._c.llama_get_logits_ith(self._context, -1), (self._vocabulary,))
        self._token[0] = int(logits.argmax())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an exported folder with a tokenizer")
    parser.add_argument("file", type=Path, help="the GGUF file to write")
    parser.add_argument("--precision", choices=QUANTS, default="int8")
    arguments = parser.parse_args()
    manifest, tokenizer = (
        json.loads((arguments.folder / name).read_text(encoding="utf-8"))
        for name in ("doge_export.json", "tokenizer.json")
    )
    write_gguf(arguments.file, manifest["architecture"], arguments.precision, manifest["max_length"], tokenizer)


if __name__ == "__main__":
    main()
