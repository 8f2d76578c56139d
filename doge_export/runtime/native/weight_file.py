"""A folder's weights in the form that the native decoder reads: which pieces there are, and how each is packed.

The codes and scales are those of the graph, so the quality is the graph's too.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator

import numpy as np

from doge_export.checkpoint.architecture import Architecture
from doge_export.runtime.native.graph_weights import GraphWeights, Matrix, Part, Unexpected, every
from doge_export.runtime.native.interface import Config, Header, Kind, NativeLibrary, Piece, Role, RopeKind

PACKING = 1
"""Number of the way that a graph's weights become a weight file; a change of it makes every kept file anew."""

_KINDS = {32: Kind.FLOAT32, 8: Kind.INT8, 4: Kind.INT4}


@dataclasses.dataclass(frozen=True, eq=False)
class Weight:
    """Everything that one role of a layer holds; layer -1 is the model."""

    role: Role
    layer: int
    matrix: Matrix


def weights_of(graph: GraphWeights, a: Architecture, config: Config) -> Iterator[Weight]:
    """Yield the weights of a model; nothing of them is read yet.

    Raises:
        Unexpected: the graph lacks one, or has it in another form.
    """
    hidden = a.hidden_size
    if f"model.layers.{a.num_hidden_layers}.input_layernorm.weight" in graph:
        raise Unexpected(f"it has more than {a.num_hidden_layers} layers")

    def vector(role: Role, layer: int, values: np.ndarray) -> Weight:
        return Weight(role, layer, [Part(32, values.size, values=values[None])])

    embedding = graph.table("model.embed_tokens.weight", a.vocab_size, hidden)
    if a.task != "text-generation":
        yield Weight(Role.EMBEDDING, -1, embedding)
    elif a.tie_word_embeddings:
        yield Weight(Role.HEAD, -1, embedding)
    else:
        yield Weight(Role.EMBEDDING, -1, embedding)
        head = "lm_head.weight_t"
        yield Weight(Role.HEAD, -1, graph.linear(head, {head: a.vocab_size}, hidden))
    yield vector(Role.FINAL_NORM, -1, graph.vector("model.norm.weight", hidden))
    yield vector(Role.ROPE, -1, _frequencies(graph, a, config))
    if config.rope == RopeKind.LONGROPE:
        yield vector(Role.ROPE_LONG, -1, graph.vector("model.rotary_emb.long_inv_freq", a.head_dim // 2))
    for layer in range(a.num_hidden_layers):
        for role, found in _layer(graph, a, f"model.layers.{layer}."):
            yield Weight(role, layer, found) if isinstance(found, list) else vector(role, layer, found)


def _layer(graph: GraphWeights, a: Architecture, layer: str) -> Iterator[tuple[Role, Matrix | np.ndarray]]:
    hidden, inner, attention, mlp = a.hidden_size, a.intermediate_size, f"{layer}self_attn.", f"{layer}mlp."
    queries, keys = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    repeats = a.num_attention_heads // a.score_heads if f"{attention}A_by_head" in graph else 1
    rows = {
        f"{attention}q_proj.weight_t": queries,
        f"{attention}k_proj.weight_t": keys,
        f"{attention}v_proj.weight_t": keys,
        f"{attention}dt_proj.weight_v": a.score_heads * repeats,
        f"{attention}dt_proj.weight_t": a.score_heads,
        f"{attention}o_proj.weight_t": hidden,
        f"{mlp}gate_proj.weight_t": inner,
        f"{mlp}up_proj.weight_t": inner,
        f"{mlp}down_proj.weight_t": hidden,
    }
    if a.moe is not None:
        rows[f"{mlp}router_gate.weight_t"] = 2 * a.moe.num_keys

    def linear(name: str, columns: int, ending: str = "weight_t") -> Matrix:
        return graph.linear(f"{name}.{ending}", rows, columns)

    yield Role.INPUT_NORM, graph.vector(f"{layer}input_layernorm.weight", hidden)
    yield Role.POST_NORM, graph.vector(f"{layer}post_attention_layernorm.weight", hidden)
    yield Role.QUERY, linear(f"{attention}q_proj", hidden)
    yield Role.KEY, linear(f"{attention}k_proj", hidden)
    yield Role.VALUE, linear(f"{attention}v_proj", hidden)
    yield Role.OUTPUT, linear(f"{attention}o_proj", queries)
    if a.qk_norm:
        names = f"{attention}q_norm.weight", f"{attention}k_norm.weight"
        norms = graph.head_norm(*names, a.num_attention_heads, a.num_key_value_heads, a.head_dim)
        yield from zip((Role.QUERY_NORM, Role.KEY_NORM), norms, strict=True)
    if a.score != "none":
        yield from _scores(graph, a, attention, repeats, rows, keys)
    if a.weighted_residuals:
        yield Role.INPUT_RESIDUAL, graph.vector(f"{layer}input_residual", hidden)
        yield Role.POST_RESIDUAL, graph.vector(f"{layer}post_attention_residual", hidden)
    gate, up = _alike(linear(f"{mlp}gate_proj", hidden), linear(f"{mlp}up_proj", hidden))
    yield Role.GATE, gate
    yield Role.UP, up
    yield Role.DOWN, linear(f"{mlp}down_proj", inner)
    if a.moe is not None:
        yield Role.ROUTER, linear(f"{mlp}router_gate", hidden)
        yield Role.EXPERT_DOWN, graph.table(f"{mlp}down_embed.weight", a.moe.num_experts, hidden)
        yield Role.EXPERT_UP, graph.table(f"{mlp}up_embed.weight", a.moe.num_experts, hidden)
        if a.moe.router_bias:
            yield Role.ROUTER_BIAS, graph.vector(f"{mlp}router_gate.bias", 2 * a.moe.num_keys)
    biases = [
        *((Role.QUERY_BIAS, f"{attention}q_proj", queries), (Role.KEY_BIAS, f"{attention}k_proj", keys)),
        *((Role.VALUE_BIAS, f"{attention}v_proj", keys), (Role.OUTPUT_BIAS, f"{attention}o_proj", hidden)),
    ]
    biases *= a.attention_bias
    if a.mlp_bias:
        biases += [(Role.GATE_BIAS, f"{mlp}gate_proj", inner), (Role.UP_BIAS, f"{mlp}up_proj", inner)]
        biases += [(Role.DOWN_BIAS, f"{mlp}down_proj", hidden)]
    for role, name, size in biases:
        yield role, graph.vector(f"{name}.bias", size)


def _scores(
    graph: GraphWeights, a: Architecture, attention: str, repeats: int, rows: dict[str, int], keys: int
) -> Iterator[tuple[Role, Matrix | np.ndarray]]:
    """Yield A and dt_proj, which FoldScores may have made a matrix of the input and repeated for every query head."""
    if repeats > 1 or f"{attention}A_by_head" in graph:
        yield Role.SCORE_A, graph.vector(f"{attention}A_by_head", a.score_heads * repeats)[::repeats]
    else:
        yield Role.SCORE_A, graph.vector(f"{attention}A", a.score_heads)
    if f"{attention}dt_proj.weight_v" in graph:
        folded = graph.linear(f"{attention}dt_proj.weight_v", rows, a.hidden_size)
        yield Role.SCORE_OF_INPUT, every(folded, repeats)
        return
    yield Role.SCORE, graph.linear(f"{attention}dt_proj.weight_t", rows, keys)
    if a.attention_bias:
        yield Role.SCORE_BIAS, graph.vector(f"{attention}dt_proj.bias", a.score_heads)


def _frequencies(graph: GraphWeights, a: Architecture, config: Config) -> np.ndarray:
    """Return RoPE's frequencies for short sequences; a graph that scales them by a formula does not hold them."""
    if config.rope == RopeKind.DYNAMIC:
        powers = np.arange(0, a.head_dim, 2, dtype=np.float32) / np.float32(a.head_dim)
        return (1.0 / np.float32(a.rope.rope_theta) ** powers).astype(np.float32)
    return graph.vector("model.rotary_emb.inv_freq", a.head_dim // 2)


def _alike(gate: Matrix, up: Matrix) -> tuple[Matrix, Matrix]:
    """Return two matrices of one shape in parts of the same bits; 4 bits become 8 without a change of their weights."""
    if len(gate) != 1 or len(up) != 1:
        raise Unexpected("the rows of one feed-forward layer are stored in different ways")
    if gate[0].bits == up[0].bits:
        return gate, up
    return [_in_8_bits(gate[0])], [_in_8_bits(up[0])]


def _in_8_bits(part: Part) -> Part:
    if part.bits == 8:
        return part
    if part.bits != 4:
        raise Unexpected("one of gate_proj and up_proj is float32, the other is not")
    return dataclasses.replace(part, bits=8, codes=part.unpacked_codes() + np.uint8(128 - 8))


class WeightFile:
    """The layout of a weight file, and its bytes one piece after another.

    Args:
        library: what packs.
        graph: the weights.
        architecture: of the model.
        config: the same in the words of the library.
        source: sha256 of the graph's file.

    Raises:
        Unexpected: the graph has another form than the architecture says.
        NativeError: the library does not take its sizes.
    """

    def __init__(
        self, library: NativeLibrary, graph: GraphWeights, architecture: Architecture, config: Config, source: bytes
    ) -> None:
        self._library, self._config, self._source = library, config, source
        self._parts: list[Part] = []
        pieces: list[Piece] = []
        # In the order of the table of pieces: by layer, then role.
        for weight in sorted(weights_of(graph, architecture, config), key=lambda each: (each.layer, each.role)):
            first = 0
            for part in weight.matrix:
                pieces.append(
                    Piece(
                        role=weight.role,
                        layer=weight.layer,
                        first_row=first,
                        rows=part.rows,
                        columns=part.columns,
                        kind=_KINDS[part.bits],
                        block=part.block,
                    )
                )
                self._parts.append(part)
                first += part.rows
        self._pieces = (Piece * len(pieces))(*pieces)
        self.bytes = library.plan(config, self._pieces)
        """Size of the file."""

    def content(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield offsets and the bytes there, uint8, in ascending order; what is left out is zero."""
        whole = np.zeros(self.bytes, np.uint8)  # only the pages of the header are ever touched
        self._library.write_header(self._config, self._pieces, self._source, whole)
        yield 0, whole[: ctypes.sizeof(Header) + ctypes.sizeof(self._pieces)]
        for piece, part in sorted(zip(self._pieces, self._parts, strict=True), key=lambda each: each[0].offset):
            out = np.zeros(piece.bytes, np.uint8)
            if part.bits == 32:
                self._library.pack(piece, out, values=_for_c(part.values))
            else:
                self._library.pack(piece, out, codes=part.unpacked_codes(), scales=_for_c(part.scales))
            yield piece.offset, out


def _for_c(array: np.ndarray | None) -> np.ndarray:
    """Return an array without gaps, at an address that its type allows: in a graph, weights lie anywhere."""
    return np.require(array, np.float32, ["C", "A"])
