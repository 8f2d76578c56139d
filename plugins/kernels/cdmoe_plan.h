// How CDMoE is spread over a GPU, and the scratch memory that it takes: decided from sizes alone, on the host.
#ifndef DOGE_KERNELS_CDMOE_PLAN_H
#define DOGE_KERNELS_CDMOE_PLAN_H

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "doge/operators.h"

namespace doge::cdmoe {

constexpr int kThreads = 256;  // of a block, in every kernel of CDMoE
constexpr int kWarps = kThreads / 32;

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

inline int element_bytes(const doge_cdmoe_params& p) { return p.dtype == DOGE_FLOAT32 ? 4 : 2; }
inline std::int64_t picks_per_token(const doge_cdmoe_params& p) {
    return std::int64_t{p.num_routing_heads} * p.num_experts_per_tok;
}

// --- Decode: one launch of at most kDecodeBlocks blocks, about two for each multiprocessor of an RTX 4090 or H200 ---

constexpr int kDecodeBlocks = 256;
// A block is not worth starting for less: with eight each warp of it reads one row, and what the blocks of a token
// leave to the last of them (4 H bytes each) stays about as much as what each reads itself.
constexpr int kMinPicksPerBlock = 8;

struct DecodePlan {
    int picks_per_block;  // of one routing head
    int splits;           // blocks per token and routing head
};

inline bool is_decode(const doge_cdmoe_params& p) {
    return std::int64_t{p.tokens} * p.num_routing_heads <= kDecodeBlocks;
}

inline DecodePlan plan_decode(const doge_cdmoe_params& p) {
    const int splits_wanted = kDecodeBlocks / (p.tokens * p.num_routing_heads);
    const auto picks = static_cast<int>(divide_up(p.num_experts_per_tok, splits_wanted));
    const int picks_per_block = std::max(picks, kMinPicksPerBlock);
    return {picks_per_block, static_cast<int>(divide_up(p.num_experts_per_tok, picks_per_block))};
}

// Workspace: a ticket (uint64) for each token, then [tokens, routing heads * splits, H] float32 partial sums.
constexpr std::size_t kTicketBytes = aligned(kDecodeBlocks * sizeof(std::uint64_t));

inline std::size_t decode_workspace_bytes(const doge_cdmoe_params& p) {  // of any p, so that it grows with every size
    const std::int64_t blocks =
        std::int64_t{p.tokens} * p.num_routing_heads * divide_up(p.num_experts_per_tok, kMinPicksPerBlock);
    return kTicketBytes + std::min<std::int64_t>(blocks, kDecodeBlocks) * p.hidden_size * sizeof(float);
}

// --- Prefill: tokens in chunks, three launches each ---

// A chunk reads both tables once; it has enough tokens to make that cheap, and few enough to bound the workspace. The
// emulator's builds have smaller ones, so that several chunks take seconds.
#ifndef DOGE_CHUNK_PICKS
#define DOGE_CHUNK_PICKS (1 << 18)
#endif
constexpr std::int64_t kChunkPicks = DOGE_CHUNK_PICKS;
// Rows are read in slices of one 16-byte vector for each lane of a warp.
constexpr int kSliceBytes = 512;

inline int slices(const doge_cdmoe_params& p) {
    return static_cast<int>(divide_up(std::int64_t{p.hidden_size} * element_bytes(p), kSliceBytes));
}

inline int chunk_tokens(const doge_cdmoe_params& p) {
    return static_cast<int>(
        std::min<std::int64_t>(p.tokens, std::max<std::int64_t>(1, kChunkPicks / picks_per_token(p))));
}

// Workspace: [picks] int32 experts, [picks] float32 weights, [slices, picks] float32 products; picks of a chunk.
struct PrefillWorkspace {
    std::size_t experts, weights, products, bytes;  // offsets, and the end
};

inline PrefillWorkspace prefill_workspace(const doge_cdmoe_params& p) {
    const std::int64_t picks = std::min(p.tokens * picks_per_token(p), std::max(kChunkPicks, picks_per_token(p)));
    PrefillWorkspace w{};
    w.weights = aligned(picks * sizeof(std::int32_t));
    w.products = w.weights + aligned(picks * sizeof(float));
    w.bytes = w.products + aligned(slices(p) * picks * sizeof(float));
    return w;
}

inline std::size_t workspace_bytes(const doge_cdmoe_params& p) {
    return std::max(decode_workspace_bytes(p), is_decode(p) ? 0 : prefill_workspace(p).bytes);
}

}  // namespace doge::cdmoe
#endif
