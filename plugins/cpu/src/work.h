// Memory that a call computes in; it stays for the next call.
#pragma once
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "model.h"
#include "routing.h"

namespace doge::cpu {

// The largest block of activations for so many columns; 0 where there is none, and then no weights are codes either.
constexpr int activation_block(int columns) {
    for (int block = 128; block >= 16; block /= 2) {
        if (columns % block == 0) return block;
    }
    return 0;
}

// Inputs of linear layers, of n tokens, with room for their codes.
class Inputs {
   public:
    void need(const Kernels& kernels, int tokens, int columns) {
        columns_ = columns;
        a_.block = activation_block(columns);
        a_.stride = size_t(padded(columns));
        a_.step = size_t(tokens);
        const size_t n = size_t(tokens), blocks = size_t(a_.block == 0 ? 0 : columns / a_.block);
        a_.x = x_.need(n * a_.stride);
        a_.codes = codes_.need(n * a_.stride);
        a_.wide = kernels.widen != nullptr && tokens >= MANY ? wide_.need(n * a_.stride) : nullptr;
        a_.scales = scales_.need(n * blocks);
        a_.sums = sums_.need(n * blocks);
    }
    float* x(int token) const { return a_.x + size_t(token) * a_.stride; }
    void quantise(const Kernels& kernels, int token) const {
        const Activations a = from(token);
        kernels.quantise(a.x, columns_, a.block, a.step, a.codes, a.scales, a.sums);
        if (a.wide == nullptr) return;
        for (size_t at = 0; at < size_t(columns_) * a.step; at += size_t(a.block) * a.step)
            kernels.widen(a.codes + at, a.block, a.wide + at);
    }
    const Activations& all() const { return a_; }
    Activations from(int token) const {
        Activations a = a_;
        const size_t t = size_t(token);
        a.x += t * a.stride;
        a.codes += t * size_t(a.block);
        if (a.wide != nullptr) a.wide += t * size_t(a.block);
        a.scales += t;
        a.sums += t;
        return a;
    }

   private:
    Activations a_{};
    int columns_ = 0;
    Buffer<float> x_, scales_;
    Buffer<int8_t> codes_;
    Buffer<int16_t> wide_;
    Buffer<int32_t> sums_;
};

// Inputs of the four kinds of linear layers.
struct LayerInputs {
    Inputs normed;  // [H]: of query, key, value, gate, up, router and head
    Inputs values;  // [kv heads * D]: of the score
    Inputs heads;   // [heads * D]: of output
    Inputs gated;   // [I]: of down

    void need(const Kernels& kernels, const doge_cpu_config& c, int tokens) {
        normed.need(kernels, tokens, c.hidden_size);
        values.need(kernels, tokens, c.num_key_value_heads * c.head_dim);
        heads.need(kernels, tokens, c.num_attention_heads * c.head_dim);
        gated.need(kernels, tokens, c.intermediate_size);
    }
};

// What one thread needs for itself.
struct alignas(64) ThreadWork {
    LayerInputs inputs;          // of one token
    Buffer<float> outs;          // [MOST_QUERIES, D] of attention
    Buffer<float> partial;       // [heads, D] of attention over a part of the keys
    std::vector<float> largest, total;
    Buffer<float> normed;         // [H]
    std::vector<int32_t> order;   // of candidates
    Router router;
    std::vector<Pick> picks;
};

struct Work {
    LayerInputs inputs;  // of all tokens
    Buffer<float> x;        // [n, H padded] the residual stream
    Buffer<float> qkv;      // [n, qkv_stride]
    Buffer<float> queries;  // [kv heads, n, heads / kv heads, D padded], rotated
    Buffer<int8_t> query_codes;
    Buffer<float> query_scales;
    Buffer<int32_t> query_sums;
    Buffer<float> routes;   // [n, 2 * keys padded]
    Buffer<float> experts;  // [experts per token] weights of a single token's experts
    Inputs head;            // of the tokens whose logits are wanted
    Buffer<float> logits;   // [B, V] where only candidates are wanted
    std::vector<ThreadWork> threads;
};

}  // namespace doge::cpu
