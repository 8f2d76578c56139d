// Memory that a call computes in; it stays for the next call.
#pragma once
#include <vector>

#include "inputs.h"
#include "model.h"
#include "routing.h"
#include "screen.h"

namespace doge::cpu {

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

struct Candidate {
    float logit;
    int32_t id;
};

// What one thread needs for itself.
struct alignas(64) ThreadWork {
    LayerInputs inputs;          // of one token
    Buffer<float> outs;          // [MOST_QUERIES, D] of attention
    Buffer<float> normed;         // [H]
    Buffer<float> logits;         // [kept tokens, rows of the head] that it computes at once
    std::vector<std::vector<Candidate>> best;  // by row, of this thread's share of the logits
    std::vector<Candidate> all;
    std::vector<float> least;     // by row: logit below which nothing is a candidate
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
    // Attention over parts of the keys, of rows that share them: sums of values, largest logits, totals of weights.
    Buffer<float> partial;  // [shared rows, parts, heads, D padded]
    Buffer<float> largest, total;  // [shared rows, parts, heads padded]
    Buffer<float> routes;   // [n, 2 * keys padded]
    Buffer<float> experts;  // [experts per token] weights of a single token's experts
    Inputs head;            // of the tokens whose logits are wanted
    Buffer<float> bounds;   // [screened rows, 2, V padded]
    std::vector<ScreenInput> screen_inputs;  // by row
    std::vector<ThreadWork> threads;
};

}  // namespace doge::cpu
