// Attention of few new tokens over a long cache: selection, attention and the writing of the cache in one launch.
//
// The rows of a tile are the query heads that share a key/value head, of one new token or of a few (row = token * group
// + head of the group), so that a key is read once for all of them. The keys are split among blocks (flash-decoding,
// Dao et al. 2023), and a block's keys among its warps.
//
// Grid: (splits, key/value heads * tiles of 16 rows, batch). How many splits a row of the batch uses follows from its
// own length; the other blocks leave at once.
//
// A block (attention_decode_block.cuh)
//   1. finds the threshold of its heads, where there is a selection. Every block of a head does the same work: a score
//      has 4 bytes where key and value have 512, and no block has to wait for another.
//   2. lists the keys to be read, of its share of the keys, a segment at a time; without selection all are read
//      (attention_decode_select.cuh).
//   3. Each warp goes through tiles of 16 keys of its own with an online softmax (attention_decode_attend.cuh).
//   4. The warps' results are merged in shared memory. With one split that is the output; else it goes to the
//      workspace, and the block that ends last (tickets.cuh) merges the splits' results (attention_decode_merge.cuh).
//      It also writes the new tokens into the cache: in a bounded cache that destroys a key, which no block may then
//      still be reading.
#ifndef DOGE_KERNELS_ATTENTION_DECODE_CUH
#define DOGE_KERNELS_ATTENTION_DECODE_CUH

#include "attention_decode_attend.cuh"
#include "attention_decode_block.cuh"
#include "attention_decode_merge.cuh"
#include "attention_decode_select.cuh"
#include "attention_store.cuh"
#include "launch.cuh"
#include "tickets.cuh"

namespace doge {

static_assert(kMaxSplits <= kMaxTicketBlocks, "the splits of a tile wait for each other");

template <class T, int D>
__device__ __forceinline__ void load_queries(const DecodeBlock<T, D>& block) {
    using Block = DecodeBlock<T, D>;
    const T* query = static_cast<const T*>(block.p.query);
    Block::Rows::template load<Block::kThreads, kTileRows>(
        block.queries(), query, static_cast<int>(threadIdx.x),
        [&](int r) { return r < block.rows() ? query + block.place_of(r) : nullptr; });
    async_commit();
}

// The new tokens take their slots: the next free ones, or in a full bounded cache the slot of the key that is
// dropped.
template <class T, int D>
__device__ __forceinline__ void store_tokens(const DecodeBlock<T, D>& block) {
    using Block = DecodeBlock<T, D>;
    const auto& p = block.p;
    if (block.tile != 0) return;
    const int dropped = block.notes().dropped;
    for (int token = 0; token < block.row.fresh; ++token) {
        const int slot = dropped < 0 ? block.row.cached + token : dropped;
        if (dropped == block.row.cached) return;  // the new key itself
        store_key_value(p, static_cast<int>(sizeof(T)), block.batch, block.kv_head, token, slot,
                        static_cast<int>(threadIdx.x), Block::kThreads);
        const int head = block.kv_head * block.group + static_cast<int>(threadIdx.x);
        if (static_cast<int>(threadIdx.x) < block.group && writes_scores(p, head)) {
            store_score(p, block.row, block.batch, head * p.num_score_heads / p.num_heads, token, slot);
        }
    }
}

// `load(block)` is called by all threads of a block that has work to do, before it reads new tokens; it begins to fill
// the tile of queries.
template <class T, int D, class Load>
__device__ __forceinline__ void decode(const doge_attention_params& p, const AttentionWorkspace& workspace, Load load) {
    using Block = DecodeBlock<T, D>;
    const Block block(p, workspace);
    auto& notes = block.notes();
    // The keys that any row of the tile sees, and how many of them are read.
    const int tokens = min(block.token_of(block.rows() - 1) + 1, block.row.fresh);
    const int count = tokens > 0 ? block.row.cached + tokens : 0;
    const int read = p.keep_window_size > 0 ? min(count, p.keep_window_size + tokens) : count;
    constexpr int kAtOnce = Block::kWarps * kDecodeKeys;
    const int splits = min(max((read + kAtOnce - 1) / kAtOnce, 1), static_cast<int>(gridDim.x));
    const int split = static_cast<int>(blockIdx.x);
    if (split >= splits) return;

    load(block);
    if (threadIdx.x == 0) notes.dropped = -1;
    if (threadIdx.x < kTileRows) {
        const int r = static_cast<int>(threadIdx.x), token = block.token_of(r);
        notes.last[r] = r < block.rows() && token < block.row.fresh ? block.row.cached + token : -1;
    }
    const bool selecting = find_thresholds(block, count);

    const int share = ((count + splits - 1) / splits + kDecodeKeys - 1) / kDecodeKeys * kDecodeKeys;
    const int begin = min(split * share, count), end = min(begin + share, count);
    OnlineSoftmax softmax;
    float output[D / 8][4] = {};
    for (int first = begin; first < end;) {  // segments, where they are listed; else all at once
        const int next = selecting ? min(first + Block::kSegment, end) : end;
        const int kept = selecting ? list_kept(block, first, next) : next - first;
        attend(block, first, kept, selecting, first == begin, softmax, output);
        first = next;
    }
    merge_warps(block, softmax, output, split, splits);
    if (splits > 1) {
        Ticket* ticket = workspace.tickets + block.batch * gridDim.y + blockIdx.y;
        if (!is_last_block(ticket, splits, notes.is_last)) return;
        merge_splits(block, splits);
    }
    store_tokens(block);
}

template <class T, int D>
__global__ void __launch_bounds__(DecodeBlock<T, D>::kThreads, DecodeBlock<T, D>::kBlocks)
    decode_kernel(const __grid_constant__ doge_attention_params p,
                  const __grid_constant__ AttentionWorkspace workspace) {
    decode<T, D>(p, workspace, [](const DecodeBlock<T, D>& block) { load_queries(block); });
}

}  // namespace doge
#endif
