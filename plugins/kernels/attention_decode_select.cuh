// Stages 1 and 2 of decode_kernel: which keys a tile needs.
#ifndef DOGE_KERNELS_ATTENTION_DECODE_SELECT_CUH
#define DOGE_KERNELS_ATTENTION_DECODE_SELECT_CUH

#include "attention_decode_block.cuh"
#include "attention_select.cuh"

namespace doge {

// The worst of all keys, which a full bounded cache drops: a cached one or the new one. It goes to notes.
template <class T, int D>
__device__ __forceinline__ void find_worst(const DecodeBlock<T, D>& block, int count) {
    using Block = DecodeBlock<T, D>;
    auto& notes = block.notes();
    OrderKey worst = ~OrderKey{0};
    int number = -1;
    const ScoreRow scores = block.scores_of(0);
    scores.template for_each<Block::kThreads>(0, count, [&](int candidate, float score) {
        const OrderKey order = order_key(score, scores.place(candidate));
        if (order < worst) {
            worst = order;
            number = candidate;
        }
    });
    const OrderKey own = worst;
    worst = warp_min(worst);
    if (block.lane == 0) notes.worst[block.warp] = worst;
    __syncthreads();
    for (int other = 0; other < Block::kWarps; ++other) worst = min(worst, notes.worst[other]);
    if (number >= 0 && own == worst) notes.dropped = number;
}

// Stage 1: the thresholds of the tile's rows, in notes, of the `count` keys that it sees. Returns whether they are in
// force.
template <class T, int D>
__device__ __forceinline__ bool find_thresholds(const DecodeBlock<T, D>& block, int count) {
    using Block = DecodeBlock<T, D>;
    const auto& p = block.p;
    auto& notes = block.notes();
    auto& shared = *reinterpret_cast<SelectShared*>(block.warps());
    if (p.past_slots != nullptr) {
        if (count > p.capacity) find_worst(block, count);
        return false;
    }
    if (p.keep_window_size == 0 || count <= p.keep_window_size) return false;
    if (p.new_tokens == 1) {
        for (int n = 0; n < block.score_heads; ++n) {
            constexpr int kRoom = (Block::kWarps * Block::kWarpBytes - static_cast<int>(sizeof(SelectShared))) / 4;
            const OrderKey threshold = select<Block::kThreads>(block.scores_of(n), count, p.keep_window_size,
                                                               block.row.past, shared, kRoom);
            if (threadIdx.x < kTileRows && block.score_head_of(threadIdx.x) == n)
                notes.threshold[threadIdx.x] = threshold;
            if (threadIdx.x == 0) notes.least[n] = threshold;
        }
    } else if (threadIdx.x < kTileRows) {  // another kernel has found them
        const int r = min(static_cast<int>(threadIdx.x), block.rows() - 1);
        const OrderKey* of_tokens = block.thresholds_of(block.score_head_of(r));
        notes.threshold[threadIdx.x] = of_tokens[block.token_of(r)];
        // Thresholds rise from token to token: the tile's first has the least.
        if (static_cast<int>(threadIdx.x) < block.score_heads) {
            notes.least[threadIdx.x] = block.thresholds_of(static_cast<int>(threadIdx.x))[block.token_of(0)];
        }
    }
    __syncthreads();
    return true;
}

// Stage 2: lists, in notes, which of the keys first .. end - 1 any row needs. Returns how many.
template <class T, int D>
__device__ __forceinline__ int list_kept(const DecodeBlock<T, D>& block, int first, int end) {
    using Block = DecodeBlock<T, D>;
    auto& notes = block.notes();
    bool keep[Block::kRounds];
    int rank[Block::kRounds];
#pragma unroll
    for (int round = 0; round < Block::kRounds; ++round) {
        const int number = first + round * Block::kThreads + static_cast<int>(threadIdx.x);
        keep[round] = false;
        for (int n = 0; n < block.score_heads && number < end; ++n) {
            keep[round] = keep[round] || block.scores_of(n).order(number) >= notes.least[n];
        }
    }
    const int count = rank_kept<Block::kWarps, Block::kRounds>(keep, rank, notes.counts);
#pragma unroll
    for (int round = 0; round < Block::kRounds; ++round) {
        if (keep[round]) notes.kept[rank[round]] = first + round * Block::kThreads + static_cast<int>(threadIdx.x);
    }
    __syncthreads();
    return count;
}

}  // namespace doge
#endif
