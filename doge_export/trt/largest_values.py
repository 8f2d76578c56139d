"""Find float16 overflows before a GPU is needed: run the float32 graph on text and look at its largest values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from doge_export.package.disk import scratch_folder
from doge_export.package.onnx_file import write_onnx
from doge_export.quantization.texts import MESSAGES, STORIES, Texts
from doge_export.runtime.threads import most_threads
from doge_export.runtime.tokenizer import Tokenizer
from doge_export.targets.half import prepare
from doge_export.targets.half.extremes import Extreme, watch, worst
from doge_export.targets.tensorrt import Form, lower_in_float32
from doge_export.trt.engine_plan import Finding
from doge_export.trt.on_cpu import runnable, unfuse
from doge_export.trt.traced import Traced

ROW = 192
"""The most tokens of a text."""


def texts_for(traced: Traced) -> Texts:
    """Return prompts of some hundred tokens in the model's tokenizer; random ids if it has none."""
    length = min(ROW, traced.max_length)
    vocabulary = traced.provenance.architecture["vocab_size"]
    if not (traced.provenance.folder / "tokenizer.json").is_file():
        generator = np.random.default_rng(0)
        return Texts("random ids", tuple(generator.integers(0, vocabulary, (4, length))))
    tokenizer = Tokenizer.from_folder(traced.provenance.folder)
    assert tokenizer is not None
    parts = (STORIES[:8], STORIES[8:], MESSAGES[:8], MESSAGES[8:])
    return Texts("prompts", tuple(np.array(tokenizer.encode(" ".join(part))[:length], np.int64) for part in parts))


def largest_values(traced: Traced, form: Form, texts: Texts) -> tuple[Extreme, ...]:
    """Return the largest magnitude of every value that the 16-bit form stores, in the graph's order.

    The graph of `traced` is not changed.
    """
    model = ir.serde.deserialize_model(ir.serde.serialize_model(traced.graph))
    lower_in_float32(model, form)
    unfuse(model)  # what a fused node rounds inside counts, too
    prepare(model)
    watched = watch(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = most_threads()
    with scratch_folder() as folder:
        file = Path(folder) / "observed.onnx"
        write_onnx(runnable(model), file)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    seen = np.zeros(len(watched), np.float32)
    for ids in texts.rows:
        seen = np.maximum(seen, np.array(session.run([*watched], _feeds(session, ids))))
    return tuple(
        Extreme(operator, name, float(magnitude))
        for (operator, name), magnitude in zip(watched.values(), seen, strict=True)
    )


def overflows(extremes: tuple[Extreme, ...]) -> tuple[Finding, ...]:
    """Return a finding for each operator that overflows float16: one for its largest value, since overflows spread."""
    return tuple(
        Finding("overflow", extreme.value, f"on text, {extreme}: {_advice(extreme)}")
        for extreme in worst(extremes)
        if extreme.overflows
    )


def _advice(extreme: Extreme) -> str:
    return "take --bf16 or --fp32" if extreme.is_finite else "no precision holds this model; check its weights"


def _feeds(session: onnxruntime.InferenceSession, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the inputs for one row and empty caches."""
    length = len(ids)
    given = {
        "input_ids": ids[None].astype(np.int32),
        "past_lengths": np.zeros(1, np.int32),
        "new_lengths": np.array([length], np.int32),
        "logits_tokens": np.array([[length - 1]], np.int32),
        "position_ids": np.arange(length, dtype=np.int32)[None],
    }
    for value in session.get_inputs():
        if value.name not in given:
            kind = np.int32 if value.type == "tensor(int32)" else np.float32
            given[value.name] = np.zeros((1, *value.shape[1:]), kind)
    return {value.name: given[value.name] for value in session.get_inputs()}
