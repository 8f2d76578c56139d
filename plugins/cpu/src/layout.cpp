#include "layout.h"

#include <cmath>

namespace doge::cpu {
namespace {

int64_t keys_of_half(const doge_cpu_config& c) {
    int64_t n = int64_t(std::sqrt(double(c.num_experts)));
    while (n * n > c.num_experts) n--;
    while ((n + 1) * (n + 1) <= c.num_experts) n++;
    return n;
}

bool between(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

}  // namespace

bool find_role(const doge_cpu_config& c, int32_t role, Role& found) {
    const int64_t h = c.hidden_size, i = c.intermediate_size, d = c.head_dim;
    const int64_t q = c.num_attention_heads * d, kv = c.num_key_value_heads * d, s = c.score_heads;
    const bool scored = c.score != DOGE_CPU_SCORE_NONE, routed = c.moe != DOGE_CPU_DENSE;
    const int64_t keys = routed ? 2 * keys_of_half(c) : 0;
    const auto model = [&](const char* name, Form form, bool optional, int64_t rows, int64_t columns) {
        found = {role, name, form, false, optional, rows, columns};
        return true;
    };
    const auto matrix = [&](const char* name, int64_t rows, int64_t columns, bool optional = false) {
        found = {role, name, Form::interleaved, true, optional, rows, columns};
        return true;
    };
    const auto vector = [&](const char* name, int64_t columns, bool optional = false) {
        found = {role, name, Form::vector, true, optional, 1, columns};
        return true;
    };
    const auto table = [&](const char* name) {
        found = {role, name, Form::rows, true, false, c.num_experts, h};
        return true;
    };
    switch (role) {
        case DOGE_CPU_EMBEDDING: return model("embedding", Form::rows, true, c.vocab_size, h);
        case DOGE_CPU_HEAD: return model("head", Form::interleaved, true, c.vocab_size, h);
        case DOGE_CPU_FINAL_NORM: return model("final norm", Form::vector, false, 1, h);
        case DOGE_CPU_ROPE: return model("RoPE frequencies", Form::vector, false, 1, d / 2);
        case DOGE_CPU_ROPE_LONG:
            return c.rope == DOGE_CPU_ROPE_LONGROPE && model("long RoPE frequencies", Form::vector, false, 1, d / 2);
        case DOGE_CPU_INPUT_NORM: return vector("input norm", h);
        case DOGE_CPU_QUERY: return matrix("query", q, h);
        case DOGE_CPU_KEY: return matrix("key", kv, h);
        case DOGE_CPU_VALUE: return matrix("value", kv, h);
        case DOGE_CPU_QUERY_BIAS: return vector("query bias", q, true);
        case DOGE_CPU_KEY_BIAS: return vector("key bias", kv, true);
        case DOGE_CPU_VALUE_BIAS: return vector("value bias", kv, true);
        case DOGE_CPU_QUERY_NORM: return vector("query norm", d, true);
        case DOGE_CPU_KEY_NORM: return vector("key norm", d, true);
        case DOGE_CPU_SCORE: return scored && matrix("score", s, kv, true);
        case DOGE_CPU_SCORE_OF_INPUT: return scored && matrix("score of input", s, h, true);
        case DOGE_CPU_SCORE_BIAS: return scored && vector("score bias", s, true);
        case DOGE_CPU_SCORE_A: return scored && vector("A", s);
        case DOGE_CPU_OUTPUT: return matrix("output", h, q);
        case DOGE_CPU_OUTPUT_BIAS: return vector("output bias", h, true);
        case DOGE_CPU_INPUT_RESIDUAL: return vector("input residual", h, true);
        case DOGE_CPU_POST_NORM: return vector("post norm", h);
        case DOGE_CPU_GATE: return matrix("gate", i, h);
        case DOGE_CPU_UP: return matrix("up", i, h);
        case DOGE_CPU_DOWN: return matrix("down", h, i);
        case DOGE_CPU_GATE_BIAS: return vector("gate bias", i, true);
        case DOGE_CPU_UP_BIAS: return vector("up bias", i, true);
        case DOGE_CPU_DOWN_BIAS: return vector("down bias", h, true);
        case DOGE_CPU_POST_RESIDUAL: return vector("post residual", h, true);
        case DOGE_CPU_ROUTER: return routed && matrix("router", keys, h);
        case DOGE_CPU_ROUTER_BIAS: return routed && vector("router bias", keys, true);
        case DOGE_CPU_EXPERT_DOWN: return routed && table("expert down");
        case DOGE_CPU_EXPERT_UP: return routed && table("expert up");
        default: return false;
    }
}

const char* config_problem(const doge_cpu_config& c) {
    constexpr int64_t large = 1 << 20, wide = 1 << 17;
    if (!between(c.vocab_size, 1, 1 << 24)) return "vocab_size must lie between 1 and 2^24";
    if (!between(c.hidden_size, 1, wide)) return "hidden_size must lie between 1 and 2^17";
    if (!between(c.intermediate_size, 1, wide)) return "intermediate_size must lie between 1 and 2^17";
    if (!between(c.num_hidden_layers, 1, 1024)) return "num_hidden_layers must lie between 1 and 1024";
    if (!between(c.num_attention_heads, 1, 1024)) return "num_attention_heads must lie between 1 and 1024";
    if (!between(c.num_key_value_heads, 1, c.num_attention_heads) || c.num_attention_heads % c.num_key_value_heads != 0)
        return "num_key_value_heads must divide num_attention_heads";
    if (!between(c.head_dim, 2, MAX_HEAD) || c.head_dim % 2 != 0) return "head_dim must be even and at most 256";
    if (int64_t(c.num_attention_heads) * c.head_dim > wide) return "the heads must be at most 2^17 wide in all";
    if (!between(c.score_heads, 1, c.num_attention_heads) || c.num_attention_heads % c.score_heads != 0)
        return "score_heads must divide num_attention_heads";
    if (c.keep_window_size < 0) return "keep_window_size must not be negative";
    if (!between(c.max_length, 1, 1 << 24)) return "max_length must lie between 1 and 2^24";
    if (!between(c.score, DOGE_CPU_SCORE_EXP, DOGE_CPU_SCORE_NONE)) return "there is no score of that number";
    if (!between(c.rope, DOGE_CPU_ROPE_FIXED, DOGE_CPU_ROPE_LONGROPE)) return "there is no RoPE of that number";
    if (c.rope != DOGE_CPU_ROPE_FIXED && c.rope_trained_length < 1) return "rope_trained_length must be positive";
    if (c.rope == DOGE_CPU_ROPE_DYNAMIC && (c.rope_max_positions < 1 || c.head_dim < 4 || !(c.rope_theta > 0)))
        return "dynamic RoPE needs rope_theta, rope_max_positions and a head_dim above 2";
    if (!std::isfinite(c.rms_norm_eps) || c.rms_norm_eps < 0) return "rms_norm_eps must be finite and not negative";
    if (!std::isfinite(c.rope_attention_factor) || !std::isfinite(c.rope_theta) || !std::isfinite(c.rope_factor))
        return "RoPE's numbers must be finite";
    if (!between(c.moe, DOGE_CPU_DENSE, DOGE_CPU_MOE_REFERENCE)) return "there is no routing of that number";
    if (c.moe != DOGE_CPU_DENSE) {
        if (!between(c.num_experts, 1, large)) return "num_experts must lie between 1 and 2^20";
        const int64_t keys = keys_of_half(c);
        if (!between(c.num_experts_per_tok, 1, keys * keys) || c.num_experts_per_tok > 1024)
            return "num_experts_per_tok must lie between 1 and the number of experts, and be at most 1024";
    }
    return nullptr;
}

uint64_t piece_bytes(Form form, const doge_cpu_piece& p) {
    switch (form) {
        case Form::vector: return aligned(size_t(padded(p.columns)) * sizeof(float));
        case Form::interleaved: return uint64_t(padded(p.rows) / LANES) * group_bytes(p.kind, p.block, p.columns);
        case Form::rows: return uint64_t(p.rows) * row_bytes(p.kind, p.block, p.columns);
    }
    return 0;
}

const char* piece_problem(const doge_cpu_config& config, const doge_cpu_piece& p, Role& role) {
    if (!find_role(config, p.role, role)) return "this model has no piece of that role";
    if (role.of_layer ? !between(p.layer, 0, config.num_hidden_layers - 1) : p.layer != -1) return "no such layer";
    if (p.columns != role.columns) return "another number of columns";
    if (p.first_row < 0 || p.rows < 1 || int64_t(p.first_row) + p.rows > role.rows) return "rows outside the matrix";
    switch (p.kind) {
        case DOGE_CPU_INT4:
        case DOGE_CPU_INT8:
            if (role.form == Form::vector) return "a vector must be float32";
            if (p.block != 16 && p.block != 32 && p.block != 64 && p.block != 128) return "no such block size";
            if (p.columns % p.block != 0) return "the block does not divide the columns";
            return nullptr;
        case DOGE_CPU_FLOAT16:
        case DOGE_CPU_BFLOAT16:
            if (role.form == Form::vector) return "a vector must be float32";
            [[fallthrough]];
        case DOGE_CPU_FLOAT32: return p.block == 0 ? nullptr : "floats have no blocks";
        default: return "no such kind";
    }
}

}  // namespace doge::cpu
