#include "message.h"
#include "sizes.h"

namespace doge {

const char* cdmoe_malformed(const doge_cdmoe_params& p) {
    if (p.dtype < DOGE_FLOAT32 || p.dtype > DOGE_BFLOAT16) {
        return message("dtype is %d, not 0 (float32), 1 (float16) or 2 (bfloat16)", static_cast<int>(p.dtype));
    }
    if (p.tokens < 1 || p.hidden_size < 1 || p.num_routing_heads < 1) {
        return message("tokens %d, hidden_size %d and num_routing_heads %d must all be at least 1", p.tokens,
                       p.hidden_size, p.num_routing_heads);
    }
    const int64_t pairs = static_cast<int64_t>(p.num_keys) * p.num_keys;
    if (p.num_keys < 1 || pairs > p.num_experts) {
        return message("num_keys is %d, not at least 1 with num_keys * num_keys <= num_experts (%d)", p.num_keys,
                       p.num_experts);
    }
    if (p.num_experts_per_tok < 1 || p.num_experts_per_tok > pairs) {
        return message("num_experts_per_tok is %d, not 1 to num_keys * num_keys (%lld)", p.num_experts_per_tok,
                       static_cast<long long>(pairs));
    }
    if (p.score_stride != 0 && p.score_stride < int64_t{p.num_routing_heads} * p.num_keys) {
        return message("score_stride is %d, not 0 or at least num_routing_heads * num_keys (%lld)", p.score_stride,
                       static_cast<long long>(int64_t{p.num_routing_heads} * p.num_keys));
    }
    if (p.weights_inside != 0 && p.weights_inside != 1) {
        return message("weights_inside is %d, not 0 or 1", p.weights_inside);
    }
    return nullptr;
}

const char* cdmoe_uncovered(const doge_cdmoe_params& p) {
    if (p.num_experts > kMaxExperts) {
        return message("num_experts is %d; the kernels cover up to %d", p.num_experts, kMaxExperts);
    }
    if (p.num_experts_per_tok > kMaxExpertsPerToken) {
        return message("num_experts_per_tok is %d; the kernels cover up to %d", p.num_experts_per_tok,
                       kMaxExpertsPerToken);
    }
    if (p.hidden_size % kHiddenSizeStep != 0 || p.hidden_size > kMaxHiddenSize) {
        return message("hidden_size is %d; the kernels cover multiples of %d up to %d", p.hidden_size, kHiddenSizeStep,
                       kMaxHiddenSize);
    }
    return nullptr;
}

}  // namespace doge

const char* doge_cdmoe_problem(const doge_cdmoe_params* params) {
    const char* malformed = doge::cdmoe_malformed(*params);
    return malformed != nullptr ? malformed : doge::cdmoe_uncovered(*params);
}
