// Which keys a row of the batch has, where they lie, and in which order they are preferred.
//
// The keys of a row are numbered: first the live slots of the past cache, 0 .. cached - 1, then the new tokens, cached
// .. cached + fresh - 1, which are taken from the inputs. Nobody reads what a launch writes into the present cache, so
// that caches may be written in place while other blocks still read.
#ifndef DOGE_KERNELS_ATTENTION_KEYS_CUH
#define DOGE_KERNELS_ATTENTION_KEYS_CUH

#include <cstdint>

#include "doge/operators.h"
#include "types.cuh"

namespace doge {

// The lengths of one row of the batch.
struct RowLengths {
    int past;    // P, tokens read so far: the place in the text of the first new one
    int cached;  // live slots of the past cache
    int fresh;   // new tokens that count: neither padding nor beyond the capacity
};

__device__ __forceinline__ RowLengths row_lengths(const doge_attention_params& p, int batch) {
    const int past = max(p.past_lengths[batch], 0);
    const int cached = min(past, p.capacity);
    int fresh = p.new_lengths == nullptr ? p.new_tokens : max(min(p.new_lengths[batch], p.new_tokens), 0);
    if (p.past_slots == nullptr) fresh = min(fresh, p.capacity - cached);
    return {past, cached, fresh};
}

// A score as an unsigned integer of the same order; of the two zeros, which are equal, one is made.
__device__ __forceinline__ std::uint32_t ordered_bits(float score) {
    const std::uint32_t bits = __float_as_uint(score + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The total order of selection as one integer: the larger, the better. Higher scores are better, of equal ones the
// lower place. No two keys of a row have the same, so "the w best" are those not below a threshold of this type.
using OrderKey = std::uint64_t;

__device__ __forceinline__ OrderKey order_key(float score, int place) {
    return static_cast<OrderKey>(ordered_bits(score)) << 32 | ~static_cast<std::uint32_t>(place);
}

// The scores of one row and score head, by key number.
struct ScoreRow {
    const float* cache;         // [cached]
    const float* fresh_scores;  // [fresh], stride apart
    const std::int32_t*
        slots;  // [cached] places of the cached keys in a bounded cache; else NULL: slot j holds token j
    int stride;
    int cached;
    int past;

    __device__ ScoreRow(const doge_attention_params& p, const RowLengths& row, int batch, int score_head)
        : cache(p.past_score + (static_cast<std::size_t>(batch) * p.num_score_heads + score_head) * p.capacity),
          fresh_scores(p.score + static_cast<std::size_t>(batch) * p.new_tokens * p.num_score_heads + score_head),
          slots(p.past_slots == nullptr
                    ? nullptr
                    : p.past_slots + (static_cast<std::size_t>(batch) * p.num_score_heads + score_head) * p.capacity),
          stride(p.num_score_heads),
          cached(row.cached),
          past(row.past) {}

    __device__ __forceinline__ const float* address(int number) const {
        return number < cached ? cache + number : fresh_scores + static_cast<std::size_t>(number - cached) * stride;
    }
    __device__ __forceinline__ float score(int number) const { return *address(number); }
    __device__ __forceinline__ int place(int number) const {
        if (number >= cached) return past + (number - cached);
        return slots == nullptr ? number : slots[number];
    }
    __device__ __forceinline__ OrderKey order(int number) const { return order_key(score(number), place(number)); }

    // Calls visit(number, score) for the keys first .. count - 1, shared out among the kThreads threads of the block.
    // Loads are issued many at a time, for each takes long.
    template <int kThreads, class Visit>
    __device__ __forceinline__ void for_each(int first, int count, Visit visit) const {
        constexpr int kAtOnce = 12;
        const int cached_count = min(count, cached);
        for (int begin = first + static_cast<int>(threadIdx.x); begin < cached_count; begin += kThreads * kAtOnce) {
            float scores[kAtOnce];
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                const int number = begin + n * kThreads;
                scores[n] = number < cached_count ? cache[number] : 0.0f;
            }
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                const int number = begin + n * kThreads;
                if (number < cached_count) visit(number, scores[n]);
            }
        }
        const int first_fresh = max(first, cached) + static_cast<int>(threadIdx.x);
        for (int number = first_fresh; number < count; number += kThreads) visit(number, score(number));
    }
};

// Where the keys and values of one row and key/value head lie, by key number.
template <class T, int D>
struct KeyRows {
    std::size_t cache_place;  // of slot 0, counted in numbers
    std::size_t fresh_place;  // of the first new token
    int stride;               // from one new token to the next
    int cached;

    __device__ KeyRows(const doge_attention_params& p, const RowLengths& row, int batch, int kv_head)
        : cache_place((static_cast<std::size_t>(batch) * p.num_kv_heads + kv_head) * p.capacity * D),
          fresh_place((static_cast<std::size_t>(batch) * p.new_tokens * p.num_kv_heads + kv_head) * D),
          stride(p.num_kv_heads * D),
          cached(row.cached) {}

    // The D numbers of a key in `cache` [B, Hkv, C, D] or `fresh` [B, S, Hkv, D].
    __device__ __forceinline__ const T* row(const void* cache, const void* fresh, int number) const {
        return number < cached
                   ? static_cast<const T*>(cache) + cache_place + static_cast<std::size_t>(number) * D
                   : static_cast<const T*>(fresh) + fresh_place + static_cast<std::size_t>(number - cached) * stride;
    }
};

}  // namespace doge
#endif
