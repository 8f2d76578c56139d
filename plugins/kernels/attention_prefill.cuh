// Attention of many new tokens: the reading of a prompt, from an empty cache or behind a cached prefix.
//
// Tiled online-softmax attention (FlashAttention-2, Dao 2023) with the score of each key added and causality and
// selection applied inside. Which keys a token keeps is told by one threshold a token (attention_threshold.cuh). As
// thresholds rise from token to token, a key below the threshold of a block's first token is below all: such keys are
// not read.
//
// Grid: (query heads, tiles of tokens, batch). The work of a tile grows with the keys that it sees. Blocks start in the
// order of the grid, so the last tiles come first, to leave the small ones for the end. Where all blocks run at the
// same time, two on a multiprocessor, there is no later: then a multiprocessor that has a large tile should get a small
// one for its second, which the small tiles in rising order give ("folded").
//
// A block takes 64 tokens of one query head (16 a warp) and goes through the keys that they see, at most 64 at a time:
//   values of this tile begin to arrive | logits = Q K^T, each warp of its own rows
//   keys of the next tile begin to arrive | scores, causality, thresholds, softmax, output += weights V
// Where there is a selection, the block lists the keys of the next tile by going over the scores.
// At last it writes the output and, for the query head that is the first of its key/value head, the new tokens into the
// cache: keys are read from past cache and inputs only, so nobody can meet them there.
//
// Shared memory: queries, one tile of keys, one of values; numbers and scores of the keys of this tile and the next.
// For D = 128 in 16 bits that is 49 KiB, and two blocks just fit a multiprocessor of sm_89.
#ifndef DOGE_KERNELS_ATTENTION_PREFILL_CUH
#define DOGE_KERNELS_ATTENTION_PREFILL_CUH

#include "attention_store.cuh"
#include "attention_tile.cuh"
#include "attention_workspace.h"
#include "launch.cuh"

namespace doge {

template <class T, int D>
struct Prefill {
    using Rows = Tile<T, D>;
    static constexpr int kRowBytes = D * static_cast<int>(sizeof(T));
    static constexpr int kWarps = kRowBytes <= 512 ? 4 : 2;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kTokens = kTileRows * kWarps;
    // Blocks a multiprocessor must have the registers for. 0 leaves it to the compiler, which may prefer spills to a
    // block less.
    static constexpr int kBlocks = sizeof(T) == 4 && D == 64 ? 2 : 0;
    static constexpr int kKeys = sizeof(T) == 4 ? (D <= 128 ? 32 : 16) : D <= 128 ? 64 : 32;
    static constexpr int kRounds = 4;  // keys that a thread looks at together when a tile is listed

    struct Notes {
        int numbers[2][kKeys];  // of the keys of a tile, -1 where there is none; this tile and the next
        float scores[2][kKeys];
    };
    static constexpr int kSharedBytes = Rows::bytes(kTokens) + 2 * Rows::bytes(kKeys) + static_cast<int>(sizeof(Notes));
    static_assert(kSharedBytes <= 99 * 1024);
    static_assert(D != 128 || sizeof(T) == 4 ||
                  kSharedBytes <= 49 * 1024);  // two of 100 KiB, of which each takes one more

    T* queries;
    T* keys;
    T* values;
    Notes& notes;

    const doge_attention_params& p;
    const RowLengths row;
    const int batch, head, kv_head, first_token, lane, warp;
    const ScoreRow scores;
    const std::uint64_t* thresholds;  // [S], NULL without selection
    OrderKey least;                   // of the block's thresholds

    __device__ Prefill(const doge_attention_params& params, const AttentionWorkspace& workspace, bool selecting,
                       bool folded, char* shared)
        : queries(reinterpret_cast<T*>(shared)),
          keys(reinterpret_cast<T*>(shared + Rows::bytes(kTokens))),
          values(reinterpret_cast<T*>(shared + Rows::bytes(kTokens) + Rows::bytes(kKeys))),
          notes(*reinterpret_cast<Notes*>(shared + Rows::bytes(kTokens) + 2 * Rows::bytes(kKeys))),
          p(params),
          row(row_lengths(params, static_cast<int>(blockIdx.z))),
          batch(static_cast<int>(blockIdx.z)),
          head(static_cast<int>(blockIdx.x)),
          kv_head(head * params.num_kv_heads / params.num_heads),
          first_token(tile_of(static_cast<int>(blockIdx.y), static_cast<int>(gridDim.y), folded) * kTokens),
          lane(static_cast<int>(threadIdx.x) % 32),
          warp(static_cast<int>(threadIdx.x) / 32),
          scores(params, row, batch, head * params.num_score_heads / params.num_heads),
          thresholds(selecting ? workspace.thresholds + (static_cast<std::size_t>(batch) * params.num_score_heads +
                                                         head * params.num_score_heads / params.num_heads) *
                                                            params.new_tokens
                               : nullptr),
          least(selecting ? thresholds[first_token] : 0) {}

    static __device__ __forceinline__ int tile_of(int index, int tiles, bool folded) {
        const int large = (tiles + 1) / 2;
        return folded && index >= large ? index - large : tiles - 1 - index;
    }
    // Of query and output: [B, S, Hq, D].
    __device__ __forceinline__ std::size_t place_of(int token) const {
        return ((static_cast<std::size_t>(batch) * p.new_tokens + token) * p.num_heads + head) * D;
    }

    // Writes numbers and scores of the next tile's keys, beginning with key `next`: those of 0 .. count - 1 that are
    // not below every threshold. Returns the key to begin with after it.
    __device__ int list_keys(int next, int count, int buffer) {
        const int thread = static_cast<int>(threadIdx.x);
        if (least == 0) {
            if (thread < kKeys) {
                const bool exists = next + thread < count;
                notes.numbers[buffer][thread] = exists ? next + thread : -1;
                async_copy_4(&notes.scores[buffer][thread], exists ? scores.address(next + thread) : p.score, exists);
            }
            return next + kKeys;  // others see the list after the next barrier; load does not need it
        }
        if (thread < kKeys) {
            notes.numbers[buffer][thread] = -1;
            notes.scores[buffer][thread] = 0.0f;
        }
        // These lie in the tile of keys, which nobody uses while a list is made.
        int* counts = reinterpret_cast<int*>(keys);
        int& behind_list = counts[kRounds * kWarps];
        int listed = 0;
        while (listed < kKeys && next < count) {
            bool keep[kRounds];
            int rank[kRounds];
            float score[kRounds];
#pragma unroll
            for (int round = 0; round < kRounds; ++round) {
                const int number = next + round * kThreads + thread;
                score[round] = number < count ? scores.score(number) : 0.0f;
                keep[round] = number < count && order_key(score[round], scores.place(number)) >= least;
            }
            const int kept = rank_kept<kWarps, kRounds>(keep, rank, counts);
#pragma unroll
            for (int round = 0; round < kRounds; ++round) {
                const int place = listed + rank[round];
                if (!keep[round] || place >= kKeys) continue;
                const int number = next + round * kThreads + thread;
                notes.numbers[buffer][place] = number;
                notes.scores[buffer][place] = score[round];
                if (place == kKeys - 1) behind_list = number + 1;
            }
            __syncthreads();
            listed += kept;
            next = listed >= kKeys ? behind_list : next + kRounds * kThreads;
        }
        __syncthreads();
        return next;
    }

    // Begins to copy the keys or values of a listed tile; where all keys are read, those from `first` on.
    __device__ __forceinline__ void load(T* tile, const KeyRows<T, D>& rows, const void* past, const void* fresh,
                                         int first, int count, int buffer) {
        Rows::template load<kThreads, kKeys>(tile, fresh, static_cast<int>(threadIdx.x), [&](int i) {
            const int number = least == 0 ? (first + i < count ? first + i : -1) : notes.numbers[buffer][i];
            return number < 0 ? nullptr : rows.row(past, fresh, number);
        });
        async_commit();
    }

    // Adds the scores to the products of a tile and leaves out what the lane's two rows do not see.
    __device__ __forceinline__ void finish_logits(float (&logits)[kKeys / 8][4], const int (&last)[2],
                                                  const OrderKey (&threshold)[2], int buffer) {
        const int last_number = notes.numbers[buffer][kKeys - 1];
        const bool all_seen = thresholds == nullptr && last_number >= 0 && last_number <= row.cached + first_token &&
                              first_token + kTokens <= row.fresh;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
            const int column = 8 * n + lane % 4 * 2;
            const float2 score = *reinterpret_cast<const float2*>(&notes.scores[buffer][column]);
            const int2 number = *reinterpret_cast<const int2*>(&notes.numbers[buffer][column]);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float own_score = e % 2 == 0 ? score.x : score.y;
                const int own_number = e % 2 == 0 ? number.x : number.y;
                float logit = fmaf(p.scale, logits[n][e], own_score);
                if (!all_seen) {
                    bool seen = own_number >= 0 && own_number <= last[e / 2];
                    if (thresholds != nullptr && seen) {
                        seen = order_key(own_score, scores.place(own_number)) >= threshold[e / 2];
                    }
                    logit = seen ? logit : -INFINITY;
                }
                logits[n][e] = logit;
            }
        }
    }

    __device__ void write_output(OnlineSoftmax& softmax, const float (&output)[D / 8][4]) {
        softmax.finish();
        using Word = typename Pair<T>::Word;
        const int first_row = warp * kTileRows;
        __syncwarp();
        // Through the warp's own rows of the queries, so that whole rows are written.
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = first_row + lane / 4 + 8 * h;
            const float factor = softmax.total[h] > 0.0f ? 1.0f / softmax.total[h] : 0.0f;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                const int column = 8 * n + lane % 4 * 2;
                T* to = queries + Rows::at(r, column / Rows::kChunk) + column % Rows::kChunk;
                *reinterpret_cast<Word*>(to) = Pair<T>::pack(output[n][2 * h] * factor, output[n][2 * h + 1] * factor);
            }
        }
        __syncwarp();
        for (int index = lane; index < kTileRows * Rows::kChunks; index += 32) {
            const int r = first_row + index / Rows::kChunks, chunk = index % Rows::kChunks;
            if (first_token + r >= p.new_tokens) break;
            *reinterpret_cast<float4*>(static_cast<T*>(p.output) + place_of(first_token + r) + chunk * Rows::kChunk) =
                *reinterpret_cast<const float4*>(queries + Rows::at(r, chunk));
        }
    }

    __device__ void store_tokens() {
        if (p.past_slots != nullptr) return;  // which tokens a bounded cache keeps is not known yet
        const bool is_first = head % (p.num_heads / p.num_kv_heads) == 0;
        const int end = min(first_token + kTokens, row.fresh);
        for (int token = first_token + warp; token < end && is_first; token += kWarps) {
            store_key_value(p, static_cast<int>(sizeof(T)), batch, kv_head, token, row.cached + token, lane, 32);
        }
        const int token = first_token + static_cast<int>(threadIdx.x);
        if (token < end && writes_scores(p, head)) {
            store_score(p, row, batch, head * p.num_score_heads / p.num_heads, token, row.cached + token);
        }
    }

    __device__ void run() {
        const int tokens = min(first_token + kTokens, row.fresh);  // those up to the tile's last
        const int count = first_token < tokens ? row.cached + tokens : 0;
        const KeyRows<T, D> rows(p, row, batch, kv_head);

        const T* query = static_cast<const T*>(p.query);
        Rows::template load<kThreads, kTokens>(queries, query, static_cast<int>(threadIdx.x), [&](int r) {
            return first_token + r < p.new_tokens ? query + place_of(first_token + r) : nullptr;
        });
        int last[2];
        OrderKey threshold[2] = {0, 0};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int token = first_token + warp * kTileRows + lane / 4 + 8 * h;
            last[h] = token < row.fresh ? row.cached + token : -1;
            if (thresholds != nullptr && token < row.fresh) threshold[h] = thresholds[token];
        }

        OnlineSoftmax softmax;
        float output[D / 8][4] = {};
        int buffer = 0;
        int first = 0;
        int next = list_keys(first, count, buffer);
        load(keys, rows, p.past_key, p.key, first, count, buffer);
        while (count > 0) {
            async_wait<0>();
            __syncthreads();
            load(values, rows, p.past_value, p.value, first, count, buffer);
            float logits[kKeys / 8][4];
            multiply_keys<T, D, kKeys>(logits, queries, warp * kTileRows, keys);
            async_wait<0>();
            __syncthreads();
            const bool is_last = next >= count;
            if (!is_last) {
                first = next;
                next = list_keys(first, count, buffer ^ 1);
                load(keys, rows, p.past_key, p.key, first, count, buffer ^ 1);
            }
            finish_logits(logits, last, threshold, buffer);
            softmax.add(logits, output);
            multiply_values<T, D, kKeys>(output, logits, values);
            if (is_last) break;
            buffer ^= 1;
        }
        async_wait<0>();
        __syncthreads();
        write_output(softmax, output);
        store_tokens();
    }
};

template <class T, int D>
__global__ void __launch_bounds__(Prefill<T, D>::kThreads, Prefill<T, D>::kBlocks)
    prefill_kernel(const __grid_constant__ doge_attention_params p,
                   const __grid_constant__ AttentionWorkspace workspace, const bool selecting, const bool folded) {
    Prefill<T, D>(p, workspace, selecting, folded, dynamic_shared<char>()).run();
}

}  // namespace doge
#endif
