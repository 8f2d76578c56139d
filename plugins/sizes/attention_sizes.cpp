#include <algorithm>
#include <cmath>
#include <iterator>

#include "message.h"
#include "sizes.h"

namespace doge {

const char* attention_malformed(const doge_attention_params& p) {
    if (p.dtype < DOGE_FLOAT32 || p.dtype > DOGE_BFLOAT16) {
        return message("dtype is %d, not 0 (float32), 1 (float16) or 2 (bfloat16)", static_cast<int>(p.dtype));
    }
    if (p.batch < 1 || p.new_tokens < 1 || p.capacity < 1 || p.head_size < 1) {
        return message("batch %d, new_tokens %d, capacity %d and head_size %d must all be at least 1", p.batch,
                       p.new_tokens, p.capacity, p.head_size);
    }
    if (p.num_kv_heads < 1 || p.num_heads < 1 || p.num_heads % p.num_kv_heads != 0) {
        return message("num_heads is %d, not a multiple of num_kv_heads, %d", p.num_heads, p.num_kv_heads);
    }
    const int32_t scores = p.num_score_heads;
    if (scores != 1 && scores != p.num_kv_heads && scores != p.num_heads) {
        return message("num_score_heads is %d, not 1, num_kv_heads (%d) or num_heads (%d)", scores, p.num_kv_heads,
                       p.num_heads);
    }
    if (p.keep_window_size < 0) {
        return message("keep_window_size is %d, not at least 0 (which keeps every key)", p.keep_window_size);
    }
    if (!std::isfinite(p.scale)) {
        return message("scale is %g, not a finite number", static_cast<double>(p.scale));
    }
    if ((p.past_slots == nullptr) != (p.present_slots == nullptr)) {
        return "past_slots and present_slots must both be given (bounded cache) or both be NULL (unbounded)";
    }
    if (p.past_slots != nullptr && scores != p.num_kv_heads) {
        return message("a bounded cache needs num_score_heads (%d) equal to num_kv_heads (%d)", scores, p.num_kv_heads);
    }
    if (p.past_slots != nullptr && p.keep_window_size != p.capacity) {
        return message("a bounded cache needs keep_window_size (%d) equal to capacity (%d)", p.keep_window_size,
                       p.capacity);
    }
    return nullptr;
}

const char* attention_uncovered(const doge_attention_params& p) {
    if (std::find(std::begin(kHeadSizes), std::end(kHeadSizes), p.head_size) == std::end(kHeadSizes)) {
        return message("head_size is %d; the kernels cover 64, 80, 96, 128 and 256", p.head_size);
    }
    if (p.num_heads / p.num_kv_heads > kMaxGroup) {
        return message("num_heads / num_kv_heads is %d; the kernels cover up to %d", p.num_heads / p.num_kv_heads,
                       kMaxGroup);
    }
    if (p.capacity > kMaxCapacity) {
        return message("capacity is %d; the kernels cover up to %d", p.capacity, kMaxCapacity);
    }
    if (p.keep_window_size > kMaxCapacity) {
        return message("keep_window_size is %d; the kernels cover up to %d", p.keep_window_size, kMaxCapacity);
    }
    return nullptr;
}

}  // namespace doge

const char* doge_attention_problem(const doge_attention_params* params) {
    const char* malformed = doge::attention_malformed(*params);
    return malformed != nullptr ? malformed : doge::attention_uncovered(*params);
}
