"""A canonical graph of one attention operator and what decides its scores, small enough to be checked by loops."""

from __future__ import annotations

from typing import Any

import naive_operators
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from doge_export.graph import functions

SIZE = 16
CAPACITY = 80
TEXT = """
<ir_version: 10, opset_import: ["": 23, "doge": 1]>
agraph (
    int64[batch_size, sequence_length] input_ids, int64[batch_size, sequence_length] attention_mask,
    float[batch_size, sequence_length, {query_width}] query, float[batch_size, sequence_length, {value_width}] key,
    float[batch_size, sequence_length, {value_width}] value,
    float[batch_size, {kv_heads}, past_sequence_length, {size}] past_key,
    float[batch_size, {kv_heads}, past_sequence_length, {size}] past_value,
    float[batch_size, {score_heads}, past_sequence_length] past_score
) => (
    float[batch_size, sequence_length, {query_width}] output,
    float[batch_size, {kv_heads}, total, {size}] present_key,
    float[batch_size, {kv_heads}, total, {size}] present_value,
    float[batch_size, {score_heads}, total] present_score
) <int64[1] last = {{-1}}, float lowest = {{-3.4028234663852886e38}}> {{
    projected = MatMul (value, weight)
    raw = Exp (projected)
    is_token = Cast <to = 9> (attention_mask)
    by_head = Unsqueeze (is_token, last)
    score = Where (by_head, raw, lowest)
    output, present_key, present_value, present_score = doge.DynamicMaskAttention <
        num_heads = {heads}, kv_num_heads = {kv_heads}, scale = {scale}, keep_window_size = {window}
    > (query, key, value, score, past_key, past_value, past_score)
}}
"""


class AttentionGraph:
    """The graph of some head counts and window, inputs for it, and the loops' answer to them."""

    def __init__(self, heads: int, kv_heads: int, score_heads: int, window: int, *, equal_scores: bool = False) -> None:
        self.heads, self.kv_heads, self.score_heads, self.window = heads, kv_heads, score_heads, window
        text = TEXT.format(
            query_width=heads * SIZE,
            value_width=kv_heads * SIZE,
            size=SIZE,
            heads=heads,
            kv_heads=kv_heads,
            score_heads=score_heads,
            window=window,
            scale=SIZE**-0.5,
        )
        random = np.random.default_rng(0)
        self.weight = random.normal(size=(kv_heads * SIZE, score_heads)).astype(np.float32) * (
            0 if equal_scores else 0.2
        )
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(self.weight, "weight"))
        self.model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
        for value in [*self.model.graph.inputs[5:], *self.model.graph.outputs[1:]]:  # the text form takes no dots
            value.name = value.name.replace("past_", "past_key_values.0.").replace("present_", "present.0.")
        body = ir.serde.deserialize_function(functions.DynamicMaskAttention.to_function_proto())
        self.model.functions[body.identifier()] = body

    def inputs(self, batch: int, new: int, past: int, padding: int = 0) -> dict[str, np.ndarray]:
        """Arguments of the naive operator; the first `padding` keys of row 0 are padding."""
        random = np.random.default_rng(new + 100 * past)

        def normal(*shape: int) -> np.ndarray:
            return random.normal(size=shape).astype(np.float32)

        key, value = normal(2, batch, past + new, self.kv_heads * SIZE)
        score = np.exp(value @ self.weight)
        score[0, :padding] = naive_operators.NEG

        def cached(x: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(x[:, :past].reshape(batch, past, self.kv_heads, SIZE).swapaxes(1, 2))

        return {
            "query": normal(batch, new, self.heads * SIZE),
            "key": key[:, past:],
            "value": value[:, past:],
            "score": score[:, past:],
            "past_key": cached(key),
            "past_value": cached(value),
            "past_score": np.ascontiguousarray(score[:, :past].swapaxes(1, 2)),
        }

    def feeds(self, inputs: dict[str, np.ndarray], *, whole_mask: bool) -> dict[str, np.ndarray]:
        """Inputs of the graph but for the cached scores; the mask speaks of the new tokens, or of the cached too."""
        new = np.ascontiguousarray((inputs["score"] > naive_operators.NEG).any(axis=2), dtype=np.int64)
        past = (inputs["past_score"] > naive_operators.NEG).any(axis=1).astype(np.int64)
        return {
            "input_ids": np.zeros(new.shape, np.int64),
            "attention_mask": np.concatenate([past, new], axis=1) if whole_mask else new,
            **{name: np.ascontiguousarray(inputs[name]) for name in ("query", "key", "value")},
            "past_key_values.0.key": inputs["past_key"],
            "past_key_values.0.value": inputs["past_value"],
        }

    def expected(self, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Output (NaN where it is open), keys, values and scores."""
        return naive_operators.dynamic_mask_attention(
            **inputs,
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            scale=SIZE**-0.5,
            keep_window_size=self.window,
        )


def run_in_place(model: onnxruntime.InferenceSession, feeds: dict[str, Any], past_scores: np.ndarray) -> list[Any]:
    """Run a graph of the onnxruntime target as its contract says: caches [B, Hkv, capacity, D] are bound as past and as
    present, the mask and the scores [B, width, 1, capacity] are buffers, lengths are inputs.

    past_scores: [B, width, P]. Gives the first output, then the cache buffers of every layer and the scores of all T.
    """
    binding, buffers = model.io_binding(), []
    batch, width, past = past_scores.shape
    new = feeds["input_ids"].shape[1]
    total = past + new
    mask = np.full((batch, CAPACITY), 7, np.int64)  # stale, and never read; so are the other buffers
    mask[:, :total] = feeds["attention_mask"]
    scores = np.full((batch, width, 1, CAPACITY), 7.0, np.float32)
    scores[:, :, 0, :past] = past_scores
    feeds = feeds | {
        "attention_mask": mask,
        "past_length": np.array([past]),
        "total_length": np.array([total]),
        "seqlens_k": np.full(batch, total - 1, np.int32),
        "total_sequence_length": np.array(total, np.int32),
        "past_scores": scores,
    }
    taken = {value.name for value in model.get_inputs()}
    for name, array in feeds.items():
        if name.startswith("past_key_values."):
            buffer = np.full((*array.shape[:2], CAPACITY, array.shape[3]), 7.0, np.float32)
            buffer[:, :, :past] = array
            buffers.append(buffer)
            for bind, bound in (
                (binding.bind_input, name),
                (binding.bind_output, name.replace("past_key_values", "present")),
            ):
                bind(bound, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        elif name in taken:
            binding.bind_cpu_input(name, array)
    made = [value.name for value in model.get_outputs() if not value.name.startswith("present.")]
    for name in made:
        binding.bind_output(name, "cpu")
    model.run_with_iobinding(binding)
    first, *rest = (value.numpy() for value in binding.get_outputs()[-len(made) :])
    whole = np.concatenate([past_scores, rest[0][:, :, 0]], axis=2) if rest else past_scores
    return [first, *(buffer[:, :, :total] for buffer in buffers), whole]
