// The scratch memory of fused attention: that of attention, and what attention takes as query, key, value and score.
#ifndef DOGE_KERNELS_FUSED_WORKSPACE_H
#define DOGE_KERNELS_FUSED_WORKSPACE_H

#include <algorithm>

#include "attention_workspace.h"

namespace doge {

// With one new token: key [splits, B, Hkv, D], score [splits, Hkv, B, Hs]: every block of a launch has its own. With
// several: query [B, S, Hq, D], key and value [B, S, Hkv, D], score [B, S, Hs].
struct FusedWorkspace {
    AttentionWorkspace attention;
    void* query;
    void* key;
    void* value;
    float* score;
};

// Where each part begins, in bytes; grows with every size.
struct FusedWorkspacePlan {
    AttentionWorkspacePlan attention;
    std::size_t query = 0, key = 0, value = 0, score = 0, total = 0;

    explicit FusedWorkspacePlan(const doge_fused_attention_params& fused) : attention(fused.attention) {
        const doge_attention_params& p = fused.attention;
        const std::size_t tokens = static_cast<std::size_t>(p.batch) * p.new_tokens, parts = decode_parts(p);
        const std::size_t head = p.head_size * number_bytes(p.dtype);
        total = attention.total;
        query = take_bytes(total, tokens * p.num_heads * head);
        key = take_bytes(total, std::max(parts, tokens * p.num_kv_heads) * head);
        value = take_bytes(total, tokens * p.num_kv_heads * head);
        score = take_bytes(total, std::max(parts, tokens) * p.num_score_heads * sizeof(float));
    }

    FusedWorkspace at(void* memory) const {
        char* begin = static_cast<char*>(memory);
        return {attention.at(memory), begin + query, begin + key, begin + value,
                reinterpret_cast<float*>(begin + score)};
    }
};

}  // namespace doge
#endif
