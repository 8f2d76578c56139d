// Attention of few new tokens over a long cache: selection, attention and the writing of the cache in one launch.
//
// The rows of a tile are the query heads that share a key/value head, of one new token or of a few (row = token * group
// + head of the group), so that a key is read once for all of them. The keys are split among blocks (flash-decoding,
// Dao et al. 2023), and a block's keys among its warps.
//
// Grid: (splits, key/value heads * tiles of 16 rows, batch). How many splits a row of the batch uses follows from its
// own length; the other blocks leave at once.
//
// A block
//   1. finds the threshold of its heads, where there is a selection. Every block of a head does the same work: a score
//      has 4 bytes where key and value have 512, and no block has to wait for another.
//   2. lists the keys to be read, of its share of the keys, a segment at a time; without selection all are read.
//   3. Each warp goes through tiles of 16 keys of its own with an online softmax, without any barrier of the block:
//      while it multiplies by keys, its next values are arriving, and the other way round.
//   4. The warps' results are merged in shared memory. With one split that is the output; else it goes to the
//      workspace, and the block that ends last (a counter tells) merges the splits' results. It also writes the new
//      tokens into the cache: in a bounded cache that destroys a key, which no block may then still be reading.
//
// Shared memory: 16 rows of queries; per warp 16 keys, 16 values and their scores (in stage 1 the same memory holds the
// bins of the selection and scores, in stage 4 the results to be merged); the list of keys.
#ifndef DOGE_KERNELS_ATTENTION_DECODE_CUH
#define DOGE_KERNELS_ATTENTION_DECODE_CUH

#include "attention_counters.h"
#include "attention_select.cuh"
#include "attention_store.cuh"
#include "attention_tile.cuh"
#include "attention_workspace.h"
#include "launch.cuh"

namespace doge {

constexpr int kDecodeKeys = 16;  // keys of a warp's tile

// See attention_counters.h. Each storage type, being a file of its own, has its own.
static __device__ unsigned decode_counters[kCounterPages][kCountersPerPage];

template <class T, int D>
struct Decode {
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
        int is_last;
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
    __device__ __forceinline__ T* keys() const {
        return reinterpret_cast<T*>(warps() + warp * kWarpBytes);
    }  // of this warp
    __device__ __forceinline__ T* values() const { return keys() + kTileBytes / static_cast<int>(sizeof(T)); }

    const doge_attention_params& p;
    const AttentionWorkspace& workspace;
    const RowLengths row;
    const int batch, kv_head, tile, group, score_heads, first_score_head;
    const int lane, warp;
    __device__ Decode(const doge_attention_params& params, const AttentionWorkspace& scratch)
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
    __device__ __forceinline__ ScoreRow scores_of(int score_head) const {
        return ScoreRow(p, row, batch, first_score_head + score_head);
    }

    __device__ __forceinline__ void load_queries() {
        const T* query = static_cast<const T*>(p.query);
        Rows::template load<kThreads, kTileRows>(queries(), p.query, static_cast<int>(threadIdx.x),
                                                 [&](int r) { return r < rows() ? query + place_of(r) : nullptr; });
        async_commit();
    }

    // Stage 1, of the `count` keys that the tile sees. Returns whether thresholds are in force.
    __device__ bool find_thresholds(int count) {
        auto& shared = *reinterpret_cast<SelectShared*>(warps());
        if (p.past_slots != nullptr) {
            if (count > p.capacity) find_worst(count);
            return false;
        }
        if (p.keep_window_size == 0 || count <= p.keep_window_size) return false;
        if (p.new_tokens == 1) {
            for (int n = 0; n < score_heads; ++n) {
                constexpr int kRoom = (kWarps * kWarpBytes - static_cast<int>(sizeof(SelectShared))) / 4;
                const OrderKey threshold =
                    select<kThreads>(scores_of(n), count, p.keep_window_size, row.past, shared, kRoom);
                if (threadIdx.x < kTileRows && score_head_of(threadIdx.x) == n)
                    notes().threshold[threadIdx.x] = threshold;
                if (threadIdx.x == 0) notes().least[n] = threshold;
            }
        } else if (threadIdx.x < kTileRows) {  // another kernel has found them
            const int r = min(static_cast<int>(threadIdx.x), rows() - 1);
            const std::size_t of_head =
                (static_cast<std::size_t>(batch) * p.num_score_heads + first_score_head + score_head_of(r)) *
                p.new_tokens;
            notes().threshold[threadIdx.x] = workspace.thresholds[of_head + token_of(r)];
            // Thresholds rise from token to token: the tile's first has the least.
            if (static_cast<int>(threadIdx.x) < score_heads) {
                const std::size_t least_head =
                    (static_cast<std::size_t>(batch) * p.num_score_heads + first_score_head + threadIdx.x) *
                    p.new_tokens;
                notes().least[threadIdx.x] = workspace.thresholds[least_head + token_of(0)];
            }
        }
        __syncthreads();
        return true;
    }

    // The worst of all keys, which a full bounded cache drops: a cached one or the new one.
    __device__ void find_worst(int count) {
        OrderKey worst = ~OrderKey{0};
        int number = -1;
        const ScoreRow scores = scores_of(0);
        scores.template for_each<kThreads>(0, count, [&](int candidate, float score) {
            const OrderKey order = order_key(score, scores.place(candidate));
            if (order < worst) {
                worst = order;
                number = candidate;
            }
        });
        const OrderKey own = worst;
        worst = warp_min(worst);
        if (lane == 0) notes().worst[warp] = worst;
        __syncthreads();
        for (int other = 0; other < kWarps; ++other) worst = min(worst, notes().worst[other]);
        if (number >= 0 && own == worst) notes().dropped = number;
    }

    // Stage 2: lists which of the keys first .. end - 1 any row needs. Returns how many.
    __device__ int list_kept(int first, int end) {
        bool keep[kRounds];
        int rank[kRounds];
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
            const int number = first + round * kThreads + static_cast<int>(threadIdx.x);
            keep[round] = false;
            for (int n = 0; n < score_heads && number < end; ++n) {
                keep[round] = keep[round] || scores_of(n).order(number) >= notes().least[n];
            }
        }
        const int count = rank_kept<kWarps, kRounds>(keep, rank, notes().counts);
#pragma unroll
        for (int round = 0; round < kRounds; ++round) {
            if (keep[round]) notes().kept[rank[round]] = first + round * kThreads + static_cast<int>(threadIdx.x);
        }
        __syncthreads();
        return count;
    }

    // Stage 3: the first `count` keys of the list; without selection, `count` keys from number `first` on. The queries
    // may still be arriving when it is called for the first time.
    __device__ __forceinline__ void attend(int first, int count, bool selecting, bool is_first, OnlineSoftmax& softmax,
                                           float (&output)[D / 8][4]) {
        const KeyRows<T, D> rows(p, row, batch, kv_head);
        const auto number_of = [&](int index) { return selecting ? notes().kept[index] : first + index; };
        const auto load_keys = [&](int start) {
            Rows::template load<32, kDecodeKeys>(keys(), p.key, lane, [&](int i) {
                return start + i < count ? rows.row(p.past_key, p.key, number_of(start + i)) : nullptr;
            });
            for (int n = lane; n < score_heads * kDecodeKeys; n += 32) {
                const int index = start + n % kDecodeKeys;
                const bool valid = index < count;
                const float* score = valid ? scores_of(n / kDecodeKeys).address(number_of(index)) : p.score;
                async_copy_4(&notes().score[warp][n / kDecodeKeys][n % kDecodeKeys], score, valid);
            }
            async_commit();
        };
        const auto load_values = [&](int start) {
            Rows::template load<32, kDecodeKeys>(values(), p.value, lane, [&](int i) {
                return start + i < count ? rows.row(p.past_value, p.value, number_of(start + i)) : nullptr;
            });
            async_commit();
        };

        int start = warp * kDecodeKeys;
        load_keys(start);
        load_values(start);
        if (is_first) {
            async_wait<2>();
            __syncthreads();
        }
        for (; start < count; start += kWarps * kDecodeKeys) {
            async_wait<1>();
            __syncwarp();
            float logits[kDecodeKeys / 8][4];
            multiply_keys<T, D, kDecodeKeys>(logits, queries(), 0, keys());
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = lane / 4 + 8 * h;
                const int last = notes().last[r], dropped = notes().dropped;
                const float* scores = notes().score[warp][score_head_of(r)];
#pragma unroll
                for (int c = 0; c < kDecodeKeys / 4; ++c) {
                    const int column = c / 2 * 8 + lane % 4 * 2 + c % 2;
                    float& logit = logits[c / 2][2 * h + c % 2];
                    const bool exists = start + column < count;
                    const int number = exists ? number_of(start + column) : 0;
                    bool seen = exists && number <= last && number != dropped;
                    if (selecting) seen = seen && order_key(scores[column], number) >= notes().threshold[r];
                    logit = seen ? fmaf(p.scale, logit, scores[column]) : -INFINITY;
                }
            }
            __syncwarp();
            load_keys(start + kWarps * kDecodeKeys);
            softmax.add(logits, output);
            async_wait<1>();
            __syncwarp();
            multiply_values<T, D, kDecodeKeys>(output, logits, values());
            __syncwarp();
            load_values(start + kWarps * kDecodeKeys);
        }
        async_wait<0>();
    }

    // Stage 4, within the block: what its keys give, relative to the largest logit, and the sum of their weights.
    __device__ void merge_warps(OnlineSoftmax& softmax, const float (&output)[D / 8][4], int split, int splits) {
        async_wait<0>();  // of queries that nothing was multiplied by
        softmax.finish();
        float* result = reinterpret_cast<float*>(keys());  // [16, D], in this warp's own memory
        __syncwarp();
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = lane / 4 + 8 * h;
            if (r >= rows()) continue;
            if (lane % 4 == 0) {
                notes().largest[warp][r] = softmax.largest[h];
                notes().total[warp][r] = softmax.total[h];
            }
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                *reinterpret_cast<float2*>(result + r * D + 8 * n + lane % 4 * 2) =
                    make_float2(output[n][2 * h], output[n][2 * h + 1]);
            }
        }
        __syncthreads();
        const std::size_t part = part_of(split);
        for (int index = static_cast<int>(threadIdx.x); index < rows() * D / 4; index += kThreads) {
            const int r = index / (D / 4), column = index % (D / 4) * 4;
            float largest = -INFINITY;
#pragma unroll
            for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, notes().largest[w][r]);
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float total = 0.0f;
#pragma unroll
            for (int w = 0; w < kWarps; ++w) {
                const float factor =
                    notes().largest[w][r] == -INFINITY ? 0.0f : __expf(notes().largest[w][r] - largest);
                const float4 x = *reinterpret_cast<const float4*>(warps() + w * kWarpBytes + (r * D + column) * 4);
                sum.x = fmaf(factor, x.x, sum.x);
                sum.y = fmaf(factor, x.y, sum.y);
                sum.z = fmaf(factor, x.z, sum.z);
                sum.w = fmaf(factor, x.w, sum.w);
                total = fmaf(factor, notes().total[w][r], total);
            }
            if (splits == 1) {
                write_output(r, column, sum, total > 0.0f ? 1.0f / total : 0.0f);
            } else {
                *reinterpret_cast<float4*>(workspace.outputs + (part * kTileRows + r) * D + column) = sum;
                if (column == 0) workspace.sums[part * kTileRows + r] = make_float2(largest, total);
            }
        }
    }

    __device__ __forceinline__ void write_output(int r, int column, const float4& sum, float factor) const {
        using Word = typename Pair<T>::Word;
        Word* output = reinterpret_cast<Word*>(static_cast<T*>(p.output) + place_of(r) + column);
        output[0] = Pair<T>::pack(sum.x * factor, sum.y * factor);
        output[1] = Pair<T>::pack(sum.z * factor, sum.w * factor);
    }

    // Whether this block is the last of the `splits` blocks to come here; what the others wrote can then be read. The
    // counter is one of a page (-1: of the workspace).
    __device__ bool is_last(int splits, int page) {
        if (splits == 1) return true;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned* counter =
                (page < 0 ? workspace.counters : decode_counters[page]) + batch * gridDim.y + blockIdx.y;
            notes().is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(splits) - 1;
            if (notes().is_last) *counter = 0;
        }
        __syncthreads();
        __threadfence();
        return notes().is_last;
    }

    // Stage 4, of all splits.
    __device__ void merge_splits(int splits) {
        auto* factors = reinterpret_cast<float*>(warps());                         // [16, splits]
        auto* sums = reinterpret_cast<float4*>(factors + kTileRows * kMaxSplits);  // [threads]
        const std::size_t first = part_of(0);
        for (int r = warp; r < rows(); r += kWarps) {
            float largest = -INFINITY;
            for (int s = lane; s < splits; s += 32) {
                largest = fmaxf(largest, __ldcg(&workspace.sums[(first + s) * kTileRows + r]).x);
            }
            largest = warp_max(largest);
            float total = 0.0f;
            for (int s = lane; s < splits; s += 32) {
                const float2 sum = __ldcg(&workspace.sums[(first + s) * kTileRows + r]);
                const float factor = sum.x == -INFINITY ? 0.0f : __expf(sum.x - largest);
                factors[r * splits + s] = factor;
                total = fmaf(factor, sum.y, total);
            }
            total = warp_sum(total);
            const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
            for (int s = lane; s < splits; s += 32) factors[r * splits + s] *= inverse;
        }
        __syncthreads();

        // Four columns of a row a thread; threads to spare share out the splits.
        const int columns = rows() * (D / 4);
        const int sharers = max(kThreads / columns, 1);
        for (int begin = 0; begin < columns; begin += kThreads) {
            const int index = begin + static_cast<int>(threadIdx.x) % (columns < kThreads ? columns : kThreads);
            const int sharer = columns < kThreads ? static_cast<int>(threadIdx.x) / columns : 0;
            const int r = index / (D / 4), column = index % (D / 4) * 4;
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (index < columns && sharer < sharers) {
#pragma unroll 8
                for (int s = sharer; s < splits; s += sharers) {
                    const float factor = factors[r * splits + s];
                    const float4 x = __ldcg(reinterpret_cast<const float4*>(
                        workspace.outputs + ((first + s) * kTileRows + r) * D + column));
                    sum.x = fmaf(factor, x.x, sum.x);
                    sum.y = fmaf(factor, x.y, sum.y);
                    sum.z = fmaf(factor, x.z, sum.z);
                    sum.w = fmaf(factor, x.w, sum.w);
                }
            }
            if (sharers > 1) {
                sums[threadIdx.x] = sum;
                __syncthreads();
                for (int other = 1; other < sharers && sharer == 0; ++other) {
                    const float4 x = sums[threadIdx.x + other * columns];
                    sum.x += x.x;
                    sum.y += x.y;
                    sum.z += x.z;
                    sum.w += x.w;
                }
            }
            if (index < columns && sharer == 0) write_output(r, column, sum, 1.0f);
        }
    }

    // The new tokens take their slots: the next free ones, or in a full bounded cache the slot of the key that is
    // dropped.
    __device__ void store_tokens() {
        if (tile != 0) return;
        const int dropped = notes().dropped;
        for (int token = 0; token < row.fresh; ++token) {
            const int slot = dropped < 0 ? row.cached + token : dropped;
            if (dropped == row.cached) return;  // the new key itself
            store_key_value(p, static_cast<int>(sizeof(T)), batch, kv_head, token, slot, static_cast<int>(threadIdx.x),
                            kThreads);
            const int head = kv_head * group + static_cast<int>(threadIdx.x);
            if (static_cast<int>(threadIdx.x) < group && writes_scores(p, head)) {
                store_score(p, row, batch, head * p.num_score_heads / p.num_heads, token, slot);
            }
        }
    }

    __device__ void run(int page) {
        // The keys that any row of the tile sees, and how many of them are read.
        const int tokens = min(token_of(rows() - 1) + 1, row.fresh);
        const int count = tokens > 0 ? row.cached + tokens : 0;
        const int read = p.keep_window_size > 0 ? min(count, p.keep_window_size + tokens) : count;
        const int splits =
            min(max((read + kWarps * kDecodeKeys - 1) / (kWarps * kDecodeKeys), 1), static_cast<int>(gridDim.x));
        const int split = static_cast<int>(blockIdx.x);
        if (split >= splits) return;

        load_queries();
        if (threadIdx.x == 0) notes().dropped = -1;
        if (threadIdx.x < kTileRows) {
            const int r = static_cast<int>(threadIdx.x), token = token_of(r);
            notes().last[r] = r < rows() && token < row.fresh ? row.cached + token : -1;
        }
        const bool selecting = find_thresholds(count);

        const int share = ((count + splits - 1) / splits + kDecodeKeys - 1) / kDecodeKeys * kDecodeKeys;
        const int begin = min(split * share, count), end = min(begin + share, count);
        OnlineSoftmax softmax;
        float output[D / 8][4] = {};
        for (int first = begin; first < end;) {  // segments, where they are listed; else all at once
            const int next = selecting ? min(first + kSegment, end) : end;
            const int kept = selecting ? list_kept(first, next) : next - first;
            attend(first, kept, selecting, first == begin, softmax, output);
            first = next;
        }
        merge_warps(softmax, output, split, splits);
        if (!is_last(splits, page)) return;
        if (splits > 1) merge_splits(splits);
        store_tokens();
    }
};

template <class T, int D>
__global__ void __launch_bounds__(Decode<T, D>::kThreads, Decode<T, D>::kBlocks)
    decode_kernel(const __grid_constant__ doge_attention_params p, const __grid_constant__ AttentionWorkspace workspace,
                  const int page) {
    Decode<T, D>(p, workspace).run(page);
}

}  // namespace doge
#endif
