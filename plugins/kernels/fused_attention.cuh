// Fused attention: from the packed projection of the new tokens to the output, the caches written.
//
//   one new token (a step of decoding): one launch of fused_decode_kernel. A block makes the queries of its heads, in
//     shared memory, and the new key and scores, in scratch memory that is its own, and then goes on as decode_kernel
//     does (attention_decode.cuh). Blocks that share a head do the same work, and none waits for another: D + X numbers
//     are read where the block's share of the cache has thousands. Values are read where the projection has them.
//   several: fused_prepare_kernel makes all of that, once, and attention as it is follows.
#ifndef DOGE_KERNELS_FUSED_ATTENTION_CUH
#define DOGE_KERNELS_FUSED_ATTENTION_CUH

#include "attention_decode.cuh"
#include "fused_prepare.cuh"
#include "fused_workspace.h"

namespace doge {

constexpr int kPrepareThreads = 256;

// What decode takes in the place of `fused.attention`: places of the new token for blocks of this split and head.
template <class T>
__device__ __forceinline__ doge_attention_params params_of_block(const doge_fused_attention_params& fused,
                                                                 const FusedWorkspace& workspace) {
    doge_attention_params p = fused.attention;
    const std::size_t split = blockIdx.x, rows = split * p.batch;
    const int kv_head = static_cast<int>(blockIdx.y);
    p.key = static_cast<T*>(workspace.key) + rows * p.num_kv_heads * p.head_size;
    // Of one score head for all key/value heads each has a copy, which no other block writes.
    p.score = workspace.score + (rows * p.num_kv_heads + static_cast<std::size_t>(kv_head) * p.batch) * p.num_score_heads;
    // So that row b's values, as far apart as queries and keys leave them, are found at [b, Hkv, D].
    p.value = static_cast<const T*>(fused.projected) +
              (blockIdx.z + std::size_t{1}) * (p.num_heads + p.num_kv_heads) * p.head_size;
    return p;
}

// The new token's queries and scores of a block's heads, and its key: one a warp. Rows of the tile of queries that are
// nobody's keep what they hold: they see no key.
template <class T, int D>
__device__ __forceinline__ void prepare_token(const doge_fused_attention_params& fused, const DecodeBlock<T, D>& block) {
    const auto& p = block.p;
    const FusedToken<T> token{fused, static_cast<std::size_t>(block.batch)};
    using Rows = typename DecodeBlock<T, D>::Rows;
    const int heads = block.group + 1 + block.score_heads;
    for (int n = block.warp; n < heads; n += DecodeBlock<T, D>::kWarps) {
        if (n < block.group) {
            const auto place = [&](int d) {
                return block.queries() + Rows::at(n, d / Rows::kChunk) + d % Rows::kChunk;
            };
            token.prepare_query(place, block.kv_head * block.group + n, block.lane);
        } else if (n == block.group) {
            const std::size_t row = static_cast<std::size_t>(block.batch) * p.num_kv_heads + block.kv_head;
            token.prepare_key(static_cast<T*>(const_cast<void*>(p.key)) + row * D, block.kv_head, block.lane);
        } else {
            const int head = block.first_score_head + n - block.group - 1;
            const float score = token.score(head, block.lane);
            if (block.lane == 0) {
                const_cast<float*>(p.score)[static_cast<std::size_t>(block.batch) * p.num_score_heads + head] = score;
            }
        }
    }
    __syncthreads();
}

// Grid: (splits, key/value heads, batch).
template <class T, int D>
__global__ void __launch_bounds__(DecodeBlock<T, D>::kThreads, DecodeBlock<T, D>::kBlocks)
    fused_decode_kernel(const __grid_constant__ doge_fused_attention_params fused,
                        const __grid_constant__ FusedWorkspace workspace) {
    const doge_attention_params p = params_of_block<T>(fused, workspace);
    decode<T, D>(p, workspace.attention, [&](const DecodeBlock<T, D>& block) { prepare_token(fused, block); });
}

// Grid: (new tokens, batch). A warp makes one head after the other.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads)
    fused_prepare_kernel(const __grid_constant__ doge_fused_attention_params fused,
                         const __grid_constant__ FusedWorkspace workspace) {
    const doge_attention_params& p = fused.attention;
    const std::size_t place = static_cast<std::size_t>(blockIdx.y) * p.new_tokens + blockIdx.x;
    const FusedToken<T> token{fused, place};
    const int lane = static_cast<int>(threadIdx.x) % 32, size = p.head_size;
    const int keys = p.num_heads, values = keys + p.num_kv_heads, scores = values + p.num_kv_heads;
    for (int n = static_cast<int>(threadIdx.x) / 32; n < scores + p.num_score_heads; n += kPrepareThreads / 32) {
        if (n < keys) {
            T* query = static_cast<T*>(workspace.query) + (place * p.num_heads + n) * size;
            token.prepare_query([&](int d) { return query + d; }, n, lane);
        } else if (n < values) {
            const int head = n - keys;
            token.prepare_key(static_cast<T*>(workspace.key) + (place * p.num_kv_heads + head) * size, head, lane);
        } else if (n < scores) {
            const int head = n - values;
            T* to = static_cast<T*>(workspace.value) + (place * p.num_kv_heads + head) * size;
            const T* from = token.value(head);
            for (int d = lane; d < size; d += 32) to[d] = from[d];
        } else {
            const float score = token.score(n - scores, lane);
            if (lane == 0) workspace.score[place * p.num_score_heads + n - scores] = score;
        }
    }
}

}  // namespace doge
#endif
