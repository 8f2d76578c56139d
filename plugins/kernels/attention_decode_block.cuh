// A block of decode_kernel: how large it is, what lies where in its shared memory, and which rows and keys are its own.
//
// Shared memory: 16 rows of queries; per warp 16 keys, 16 values and their scores (while thresholds are searched the
// same memory holds the bins of the selection and scores, at the end the results to be merged); the list of keys.
#ifndef DOGE_KERNELS_ATTENTION_DECODE_BLOCK_CUH
#define DOGE_KERNELS_ATTENTION_DECODE_BLOCK_CUH

#include "attention_select.cuh"
#include "attention_tile.cuh"
#include "attention_workspace.h"
#include "launch.cuh"

namespace doge {

constexpr int kDecodeKeys = 16;  // keys of a warp's tile

template <class T, int D>
struct DecodeBlock {
    using Rows = Tile<T, D>;
    // More warps hide the waiting of each other, but 99 KiB must do.
    static constexpr int kRowBytes = D * static_cast<int>(sizeof(T));
    static constexpr int kWarps = kRowBytes <= 256 ? 8 : kRowBytes <= 512 ? 4 : 2;
    static constexpr int kThreads = 32 * kWarps;
    // Of a multiprocessor, as far as registers go.
    static constexpr int kBlocks = kThreads <= 128 || (kRowBytes <= 160 && sizeof(T) == 2) ? 2 : 1;
    static constexpr int kRounds = 4;  // keys that a thread looks at together when keys are listed
    static constexpr int kSegment = kRounds * kThreads;

    static constexpr int kTileBytes = Rows::bytes(kDecodeKeys);
    static constexpr int kResultBytes = kTileRows * D * 4;
    static constexpr int kWarpBytes = 2 * kTileBytes > kResultBytes ? 2 * kTileBytes : kResultBytes;

    // What the threads of a block tell each other.
    struct Notes {
        OrderKey threshold[kTileRows];  // of each row
        int last[kTileRows];            // the last key that each row may see; -1 where the row is nobody's
        OrderKey least[kTileRows];      // by score head of the group: the least threshold of its rows
        float largest[kWarps][kTileRows];
        float total[kWarps][kTileRows];
        float score[kWarps][kTileRows][kDecodeKeys];  // [.., score head of the group, key]
        int kept[kSegment];
        int counts[kSegment / 32];
        OrderKey worst[kWarps];
        int dropped;  // the number of the one key that a full bounded cache loses; -1: none
        int is_last;  // this block, of all splits
    };

    static constexpr int kSharedBytes = Rows::bytes(kTileRows) + kWarps * kWarpBytes + static_cast<int>(sizeof(Notes));
    static_assert(kSharedBytes <= 99 * 1024);
    static_assert(kWarps * kWarpBytes >= static_cast<int>(sizeof(SelectShared)));
    static_assert(kWarps * kWarpBytes >= kMaxSplits * kTileRows * 4 + kThreads * 16);

    // The parts of the shared memory. Its address is a constant, so that these cost no registers.
    static __device__ __forceinline__ T* queries() { return dynamic_shared<T>(); }
    static __device__ __forceinline__ char* warps() { return dynamic_shared<char>() + Rows::bytes(kTileRows); }
    static __device__ __forceinline__ Notes& notes() {
        return *reinterpret_cast<Notes*>(warps() + kWarps * kWarpBytes);
    }
    // Of this warp.
    __device__ __forceinline__ T* keys() const { return reinterpret_cast<T*>(warps() + warp * kWarpBytes); }
    __device__ __forceinline__ T* values() const { return keys() + kTileBytes / static_cast<int>(sizeof(T)); }

    const doge_attention_params& p;
    const AttentionWorkspace& workspace;
    const RowLengths row;
    const int batch, kv_head, tile, group, score_heads, first_score_head;
    const int lane, warp;
    __device__ DecodeBlock(const doge_attention_params& params, const AttentionWorkspace& scratch)
        : p(params),
          workspace(scratch),
          row(row_lengths(params, static_cast<int>(blockIdx.z))),
          batch(static_cast<int>(blockIdx.z)),
          kv_head(static_cast<int>(blockIdx.y) % params.num_kv_heads),
          tile(static_cast<int>(blockIdx.y) / params.num_kv_heads),
          group(params.num_heads / params.num_kv_heads),
          score_heads(params.num_score_heads == params.num_heads ? group : 1),
          first_score_head(kv_head * group * params.num_score_heads / params.num_heads),
          lane(static_cast<int>(threadIdx.x) % 32),
          warp(static_cast<int>(threadIdx.x) / 32) {}

    __device__ __forceinline__ int token_of(int r) const { return (tile * kTileRows + r) / group; }
    __device__ __forceinline__ int head_of(int r) const { return (tile * kTileRows + r) % group; }
    __device__ __forceinline__ int score_head_of(int r) const { return score_heads == 1 ? 0 : head_of(r); }
    __device__ __forceinline__ int rows() const { return min(p.new_tokens * group - tile * kTileRows, kTileRows); }
    // Of query and output: [B, S, Hq, D].
    __device__ __forceinline__ std::size_t place_of(int r) const {
        return ((static_cast<std::size_t>(batch) * p.new_tokens + token_of(r)) * p.num_heads + kv_head * group +
                head_of(r)) *
               D;
    }
    // Of a split's results in the workspace.
    __device__ __forceinline__ std::size_t part_of(int split) const {
        return (static_cast<std::size_t>(batch) * gridDim.y + blockIdx.y) * gridDim.x + split;
    }
    // Found by another kernel: [S].
    __device__ __forceinline__ const OrderKey* thresholds_of(int score_head) const {
        const std::size_t head = static_cast<std::size_t>(batch) * p.num_score_heads + first_score_head + score_head;
        return workspace.thresholds + head * p.new_tokens;
    }
    __device__ __forceinline__ ScoreRow scores_of(int score_head) const {
        return ScoreRow(p, row, batch, first_score_head + score_head);
    }
};

}  // namespace doge
#endif
