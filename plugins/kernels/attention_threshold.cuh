// Which keys each of many new tokens keeps: the order key of the worst of the w best keys that it sees.
//
// Tokens are taken 128 at a time. For the first of them that sees w keys or more ("the base") one radix select over all
// its keys finds the threshold. For those behind it nothing is searched again, for the w best of a growing set only
// gain: when t new keys have come, the w + t keys "w best of the base and new ones" lose their t worst, and the next
// one is the threshold. The t worst of them, and the next, are always among the 128 worst kept by the base and the new
// keys.
//
// Grid: (tiles of 128 tokens, score heads, batch). A block of 256 threads selects twice (the w best of the base, and
// the w - 128 best; between the two lie the 128 worst), sorts the up to 255 candidates by counting for each how many
// are worse, and gives each token to a thread, which walks up the sorted candidates, leaving out those that came after
// its token.
//
// Slots of a bounded cache that contradict each other (two of one token) give wrong thresholds, but are survived:
// TensorRT tries plugins on memory of any content.
#ifndef DOGE_KERNELS_ATTENTION_THRESHOLD_CUH
#define DOGE_KERNELS_ATTENTION_THRESHOLD_CUH

#include "attention_select.cuh"
#include "attention_workspace.h"
#include "launch.cuh"

namespace doge {

constexpr int kThresholdTokens = 128;
constexpr int kThresholdThreads = 256;

struct ThresholdShared {
    SelectShared select;
    OrderKey candidates[2 * kThresholdTokens];
    OrderKey sorted[2 * kThresholdTokens];
    int age_of_sorted[2 * kThresholdTokens];  // 0: there from the base on; t: came with the t-th token behind it
    int count;
};

__global__ void __launch_bounds__(kThresholdThreads, 2)
    threshold_kernel(const __grid_constant__ doge_attention_params p, std::uint64_t* thresholds) {
    auto& shared = *dynamic_shared<ThresholdShared>();
    const int batch = static_cast<int>(blockIdx.z), score_head = static_cast<int>(blockIdx.y);
    const int thread = static_cast<int>(threadIdx.x);
    const RowLengths row = row_lengths(p, batch);
    const ScoreRow scores(p, row, batch, score_head);
    const int keep = p.keep_window_size;

    const int first = static_cast<int>(blockIdx.x) * kThresholdTokens;
    const int end = min(first + kThresholdTokens, p.new_tokens);
    const int real_end = min(end, row.fresh);
    const int base = max(first, keep - row.cached - 1);
    std::uint64_t* out = thresholds + (static_cast<std::size_t>(batch) * p.num_score_heads + score_head) * p.new_tokens;
    // Tokens that see too few keys to lose one, and padding.
    if (first + thread < end && (first + thread < base || first + thread >= real_end)) out[first + thread] = 0;
    if (base >= real_end) return;

    const int seen = row.cached + base + 1;
    const int last_place = row.past + base;
    const OrderKey kept = select<kThresholdThreads>(scores, seen, keep, last_place, shared.select, 0);
    OrderKey safe = ~OrderKey{0};  // no token of the tile can lose a key from here on
    if (keep > kThresholdTokens) {
        safe = select<kThresholdThreads>(scores, seen, keep - kThresholdTokens, last_place, shared.select, 0);
    }
    if (thread == 0) shared.count = 0;
    __syncthreads();
    scores.for_each<kThresholdThreads>(0, seen, [&](int number, float score) {
        const OrderKey order = order_key(score, scores.place(number));
        if (order < kept || order >= safe) return;
        const int at = atomicAdd(&shared.count, 1);
        if (at < kThresholdTokens) shared.candidates[at] = order;
    });
    __syncthreads();
    const int old = min(shared.count, kThresholdTokens);
    const int behind = real_end - base - 1;
    if (thread < behind) shared.candidates[old + thread] = scores.order(row.cached + base + 1 + thread);
    __syncthreads();

    const int count = old + behind;
    if (thread < count) {
        const OrderKey own = shared.candidates[thread];
        int worse = 0;
        for (int other = 0; other < count; ++other) {
            worse += shared.candidates[other] < own || (shared.candidates[other] == own && other < thread);
        }
        shared.sorted[worse] = own;
        shared.age_of_sorted[worse] = max(thread - old + 1, 0);
    }
    __syncthreads();
    if (thread <= behind) {
        int place = -1;
        for (int left = thread + 1; left > 0 && place < count - 1; left -= shared.age_of_sorted[place] <= thread) {
            ++place;
        }
        out[base + thread] = place < 0 ? kept : shared.sorted[place];
    }
}

}  // namespace doge
#endif
