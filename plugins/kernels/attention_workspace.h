// The scratch memory of attention. Its content need not be cleared by anybody, and nothing in it outlives a launch.
#ifndef DOGE_KERNELS_ATTENTION_WORKSPACE_H
#define DOGE_KERNELS_ATTENTION_WORKSPACE_H

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "doge/operators.h"
#include "tickets.cuh"

namespace doge {

constexpr int kTileRows = 16;          // rows of queries that a warp works on
constexpr int kMaxSplits = 256;        // of the keys of one head
constexpr int kMaxDecodeBlocks = 512;  // at most so many blocks for the sake of splitting
constexpr int kMaxDecodeRows = 32;     // new tokens * group, beyond which a prompt is being read

constexpr std::size_t kAlignment = 256;  // of a workspace and of its parts

inline std::size_t number_bytes(doge_dtype dtype) { return dtype == DOGE_FLOAT32 ? 4 : 2; }

// Takes a part from the end of `total` bytes; where it begins.
inline std::size_t take_bytes(std::size_t& total, std::size_t bytes) {
    const std::size_t begin = total;
    total += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return begin;
}

struct AttentionWorkspace {
    Ticket* tickets;            // [B, tiles, Hkv]: which of the splits of a decode launch is the last
    float2* sums;               // [parts, 16]: largest logit, sum of the weights relative to it
    float* outputs;             // [parts, 16, D], relative to the largest logit
    std::uint64_t* thresholds;  // [B, Hs, S]: the order key of the worst key that a new token sees
    std::int32_t* free_slots;   // [B, Hkv, min(S, C)]: slots for the new tokens that a bounded cache keeps
};

// Where each part begins, in bytes, for the largest launch of these sizes.
struct AttentionWorkspacePlan {
    std::size_t tickets = 0, sums = 0, outputs = 0, thresholds = 0, free_slots = 0, total = 0;

    explicit AttentionWorkspacePlan(const doge_attention_params& params);
    AttentionWorkspace at(void* memory) const;
};

// At most how many blocks a decode launch has.
std::size_t decode_parts(const doge_attention_params& params);

// Tiles of 16 rows of a decode launch: query heads that share a key/value head, of every new token.
int decode_tiles(const doge_attention_params& params);

}  // namespace doge
#endif
