// What happens to the caches outside of the attention kernels: the taking over of a prefix, and the tokens that a
// bounded cache keeps of many new ones.
#ifndef DOGE_KERNELS_ATTENTION_CACHE_CUH
#define DOGE_KERNELS_ATTENTION_CACHE_CUH

#include "attention_keys.cuh"
#include "attention_store.cuh"
#include "launch.cuh"
#include "reduce.cuh"

namespace doge {

constexpr int kCacheThreads = 256;

// Copies the live slots of past caches to present ones, where these are other memory.
// Grid: (any number of blocks that share the work, the larger of key/value heads and score heads, batch).
__global__ void __launch_bounds__(kCacheThreads)
    copy_cache_kernel(const __grid_constant__ doge_attention_params p, const int number_bytes) {
    const int batch = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
    const RowLengths row = row_lengths(p, batch);
    const int thread = static_cast<int>(blockIdx.x * kCacheThreads + threadIdx.x);
    const int threads = static_cast<int>(gridDim.x) * kCacheThreads;
    const auto copy = [&](void* to, const void* from, std::size_t first, std::size_t count, auto word) {
        using Word = decltype(word);
        if (to == from) return;
        for (std::size_t n = thread; n < count; n += threads) {
            static_cast<Word*>(to)[first + n] = static_cast<const Word*>(from)[first + n];
        }
    };
    if (head < p.num_kv_heads) {
        const std::size_t words = static_cast<std::size_t>(p.head_size) * number_bytes / 16;
        const std::size_t first = (static_cast<std::size_t>(batch) * p.num_kv_heads + head) * p.capacity * words;
        copy(p.present_key, p.past_key, first, row.cached * words, float4{});
        copy(p.present_value, p.past_value, first, row.cached * words, float4{});
    }
    if (head < p.num_score_heads) {
        const std::size_t first = (static_cast<std::size_t>(batch) * p.num_score_heads + head) * p.capacity;
        copy(p.present_score, p.past_score, first, row.cached, float{});
        if (p.past_slots != nullptr) copy(p.present_slots, p.past_slots, first, row.cached, int{});
    }
}

// Puts those of many new tokens that a bounded cache keeps into its free slots and those of the keys that leave it. The
// threshold of the last new token tells which are the w best in the end.
// Grid: (key/value heads, batch). The block first lists the slots that can be had, then gives them to the tokens in
// turn. free_slots: [B, Hkv, min(S, C)].
__global__ void __launch_bounds__(kCacheThreads)
    replace_kernel(const __grid_constant__ doge_attention_params p, const int number_bytes,
                   const std::uint64_t* thresholds, std::int32_t* free_slots) {
    constexpr int kWarps = kCacheThreads / 32;
    auto* counts = dynamic_shared<int>();  // [warps]
    auto* slot_of_rank = counts + kWarps;  // [threads]
    auto* token_of_rank = slot_of_rank + kCacheThreads;
    const int batch = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x);
    const int thread = static_cast<int>(threadIdx.x);
    const RowLengths row = row_lengths(p, batch);
    const ScoreRow scores(p, row, batch, head);
    const std::size_t of_head = static_cast<std::size_t>(batch) * p.num_kv_heads + head;
    const int most = min(p.new_tokens, p.capacity);
    std::int32_t* free = free_slots + of_head * most;
    if (row.fresh == 0) return;
    const OrderKey threshold = thresholds[of_head * p.new_tokens + row.fresh - 1];

    int found = 0;
    for (int first = 0; first < p.capacity && found < most; first += kCacheThreads) {
        const int slot = first + thread;
        const bool keep[1] = {slot < p.capacity && (slot >= row.cached || scores.order(slot) < threshold)};
        int rank[1];
        const int count = rank_kept<kWarps, 1>(keep, rank, counts);
        if (keep[0] && found + rank[0] < most) free[found + rank[0]] = slot;
        found += count;
    }
    __syncthreads();
    int placed = 0;
    for (int first = 0; first < row.fresh; first += kCacheThreads) {
        const int token = first + thread;
        const bool keep[1] = {token < row.fresh && scores.order(row.cached + token) >= threshold};
        int rank[1];
        // As many as there are slots, unless the slots tell places that contradict each other.
        const int count = min(rank_kept<kWarps, 1>(keep, rank, counts), min(found, most) - placed);
        if (keep[0] && rank[0] < count) {
            slot_of_rank[rank[0]] = free[placed + rank[0]];
            token_of_rank[rank[0]] = token;
            store_score(p, row, batch, head, token, slot_of_rank[rank[0]]);
        }
        __syncthreads();
        for (int n = thread / 32; n < count; n += kWarps) {
            store_key_value(p, number_bytes, batch, head, token_of_rank[n], slot_of_rank[n], thread % 32, 32);
        }
        placed += count;
    }
}

}  // namespace doge
#endif
