#include "message.h"
#include "sizes.h"

namespace doge {

const char* fused_attention_malformed(const doge_fused_attention_params& p) {
    const char* malformed = attention_malformed(p.attention);
    if (malformed != nullptr) {
        return malformed;
    }
    if (p.attention.head_size % 2 != 0) {
        return message("head_size is %d, not even: its halves are rotated", p.attention.head_size);
    }
    if (p.num_score_inputs < 1) {
        return message("num_score_inputs is %d, not at least 1", p.num_score_inputs);
    }
    if (p.exponential_score != 0 && p.exponential_score != 1) {
        return message("exponential_score is %d, not 0 or 1", p.exponential_score);
    }
    if ((p.query_norm == nullptr) != (p.key_norm == nullptr)) {
        return "query_norm and key_norm must both be given or both be NULL";
    }
    if (p.query_norm != nullptr && !(p.epsilon >= 0)) {
        return message("epsilon is %g, not at least 0", static_cast<double>(p.epsilon));
    }
    return nullptr;
}

const char* fused_attention_uncovered(const doge_fused_attention_params& p) {
    if (p.num_score_inputs % kScoreInputsStep != 0) {
        return message("num_score_inputs is %d; the kernels cover multiples of %d", p.num_score_inputs,
                       kScoreInputsStep);
    }
    return attention_uncovered(p.attention);
}

}  // namespace doge

const char* doge_fused_attention_problem(const doge_fused_attention_params* params) {
    const char* malformed = doge::fused_attention_malformed(*params);
    return malformed != nullptr ? malformed : doge::fused_attention_uncovered(*params);
}
