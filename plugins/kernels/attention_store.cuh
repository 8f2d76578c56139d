// Writing new tokens into the present cache.
#ifndef DOGE_KERNELS_ATTENTION_STORE_CUH
#define DOGE_KERNELS_ATTENTION_STORE_CUH

#include "attention_keys.cuh"

namespace doge {

// Writes key and value of new token `token` into a slot of the present cache: thread `thread` of `threads` that share
// the work. Whole words of 16 bytes: D is a multiple of 16.
__device__ __forceinline__ void store_key_value(const doge_attention_params& p, int number_bytes, int batch,
                                                int kv_head, int token, int slot, int thread, int threads) {
    const int words = p.head_size * number_bytes / 16;
    const std::size_t from =
        ((static_cast<std::size_t>(batch) * p.new_tokens + token) * p.num_kv_heads + kv_head) * words;
    const std::size_t to = ((static_cast<std::size_t>(batch) * p.num_kv_heads + kv_head) * p.capacity + slot) * words;
    for (int word = thread; word < words; word += threads) {
        static_cast<float4*>(p.present_key)[to + word] = static_cast<const float4*>(p.key)[from + word];
        static_cast<float4*>(p.present_value)[to + word] = static_cast<const float4*>(p.value)[from + word];
    }
}

// Writes the score of a new token, and its place where the cache is bounded.
__device__ __forceinline__ void store_score(const doge_attention_params& p, const RowLengths& row, int batch,
                                            int score_head, int token, int slot) {
    const std::size_t to = (static_cast<std::size_t>(batch) * p.num_score_heads + score_head) * p.capacity + slot;
    p.present_score[to] =
        p.score[(static_cast<std::size_t>(batch) * p.new_tokens + token) * p.num_score_heads + score_head];
    if (p.present_slots != nullptr) p.present_slots[to] = row.past + token;
}

// The one query head of those that share a score head which writes its scores, so that each is written once.
__device__ __forceinline__ bool writes_scores(const doge_attention_params& p, int head) {
    return head * p.num_score_heads % p.num_heads == 0;
}

}  // namespace doge
#endif
