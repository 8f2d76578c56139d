// What a warp does with a tile: 16 rows of queries against N keys, and their weights against the N values.
//
// Whatever the type, a warp holds numbers of 16 rows in the layout of mma.cuh's C: lane 4 g + t has rows g and g + 8 of
// columns 8 n + 2t and 8 n + 2t + 1, for every n. Two of its four floats belong to "row 0" (g), two to "row 1" (g + 8).
#ifndef DOGE_KERNELS_ATTENTION_TILE_CUH
#define DOGE_KERNELS_ATTENTION_TILE_CUH

#include "attention_keys.cuh"
#include "attention_workspace.h"
#include "mma.cuh"
#include "reduce.cuh"

namespace doge {

// Rows of D numbers in shared memory, made of chunks of 16 bytes. Eight threads that read the same chunk of eight rows
// that follow each other must find it in different banks: where a row has a multiple of eight chunks (of 128 bytes),
// its chunks change places by the row's number; else a row is lengthened by one chunk, which makes its length odd in
// units of 16 or 32 bytes.
template <class T, int D>
struct Tile {
    static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // numbers
    static constexpr int kChunks = D / kChunk;
    static constexpr bool kSwizzled = kChunks % 8 == 0;
    static constexpr int kStride = kSwizzled ? D : D + kChunk;

    static __host__ __device__ constexpr int bytes(int rows) { return rows * kStride * static_cast<int>(sizeof(T)); }
    static __device__ __forceinline__ int at(int row, int chunk) {
        // Only the low three bits change; written so that the others of a constant chunk stay a constant.
        return row * kStride + (kSwizzled ? (chunk & ~7) | ((chunk ^ row) & 7) : chunk) * kChunk;
    }

    // Begins to copy `count` rows to rows 0 .. count - 1 of the tile, shared out among kThreads threads; address(i) is
    // where row i lies in global memory (16 bytes aligned), NULL for a row of zeros.
    template <int kThreads, int kRows, class Address>
    static __device__ __forceinline__ void load(T* tile, const void* anywhere, int thread, Address address) {
        thread = calculated_anew(thread);
        constexpr int kSteps = (kRows * kChunks + kThreads - 1) / kThreads;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int index = step * kThreads + thread;
            const int row = index / kChunks, chunk = index % kChunks;
            if (kRows * kChunks % kThreads != 0 && row >= kRows) break;
            const T* source = address(row);
            const bool valid = source != nullptr;
            async_copy_16(tile + at(row, chunk), valid ? source + chunk * kChunk : anywhere, valid);
        }
    }
};

// scores = Q K^T: 16 rows of the tile `queries` (from first_row on) against N rows of the tile `keys`.
template <class T, int D, int N>
__device__ __forceinline__ void multiply_keys(float (&scores)[N / 8][4], const T* queries, int first_row,
                                              const T* keys) {
    using Rows = Tile<T, D>;
    const int lane = calculated_anew(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < N / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[n][e] = 0.0f;
    }
    if constexpr (sizeof(T) == 2) {
        // Matrices of A: rows 0-7 and 8-15 of chunk 2k, then of chunk 2k + 1. Of B: keys 0-7, both chunks, then keys
        // 8-15.
        const int a_row = first_row + lane % 16, a_chunk = lane / 16;
        const int b_row = lane / 16 * 8 + lane % 8, b_chunk = lane / 8 % 2;
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
            std::uint32_t a[4];
            load_matrices(a, queries + Rows::at(a_row, 2 * k + a_chunk));
#pragma unroll
            for (int n = 0; n < N / 16; ++n) {
                std::uint32_t b[4];
                load_matrices(b, keys + Rows::at(16 * n + b_row, 2 * k + b_chunk));
                multiply_add<T>(scores[2 * n], a, b[0], b[1]);
                multiply_add<T>(scores[2 * n + 1], a, b[2], b[3]);
            }
        }
    } else {
        const int g = lane / 4, t = lane % 4;
#pragma unroll 2
        for (int k = 0; k < Rows::kChunks; ++k) {
            const float4 a[2] = {*reinterpret_cast<const float4*>(queries + Rows::at(first_row + g, k)),
                                 *reinterpret_cast<const float4*>(queries + Rows::at(first_row + g + 8, k))};
#pragma unroll
            for (int n = 0; n < N / 8; ++n) {
                const float4 b[2] = {*reinterpret_cast<const float4*>(keys + Rows::at(8 * n + 2 * t, k)),
                                     *reinterpret_cast<const float4*>(keys + Rows::at(8 * n + 2 * t + 1, k))};
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float4& x = a[e / 2];
                    const float4& y = b[e % 2];
                    scores[n][e] = fmaf(x.x, y.x, fmaf(x.y, y.y, fmaf(x.z, y.z, fmaf(x.w, y.w, scores[n][e]))));
                }
            }
        }
    }
}

// output += W V: 16 rows of N weights in registers against N rows of the tile `values`.
template <class T, int D, int N>
__device__ __forceinline__ void multiply_values(float (&output)[D / 8][4], const float (&weights)[N / 8][4],
                                                const T* values) {
    using Rows = Tile<T, D>;
    const int lane = calculated_anew(threadIdx.x % 32);
    if constexpr (sizeof(T) == 2) {
        // Matrices of B, transposed: keys 0-7 and 8-15 of one chunk (eight columns), then of the next.
        const int b_row = lane % 16, b_chunk = lane / 16;
#pragma unroll
        for (int k = 0; k < N / 16; ++k) {
            const auto& low = weights[2 * k];
            const auto& high = weights[2 * k + 1];
            const std::uint32_t a[4] = {Pair<T>::pack(low[0], low[1]), Pair<T>::pack(low[2], low[3]),
                                        Pair<T>::pack(high[0], high[1]), Pair<T>::pack(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                std::uint32_t b[4];
                load_matrices_transposed(b, values + Rows::at(16 * k + b_row, 2 * n + b_chunk));
                multiply_add<T>(output[2 * n], a, b[0], b[1]);
                multiply_add<T>(output[2 * n + 1], a, b[2], b[3]);
            }
        }
    } else {
        // Not unrolled further: for the largest D the output alone fills half of the registers.
        [[maybe_unused]] constexpr int kUnrolled = D > 128 ? 1 : N / 4;
        const int t = lane % 4;
#pragma unroll 1
        for (int pair = 0; pair < 4; ++pair) {
            const int owner = lane / 4 * 4 + pair;  // in each quad it has the weights of keys 8 n + 2 pair + {0, 1}
#pragma unroll kUnrolled
            for (int k = 0; k < N / 4; ++k) {
                // weights[k / 2][k % 2] and the same of the other row, whether k is a constant or not
                float own[2] = {};
#pragma unroll
                for (int i = 0; i < N / 4; ++i) {
                    own[0] = i == k ? weights[i / 2][i % 2] : own[0];
                    own[1] = i == k ? weights[i / 2][2 + i % 2] : own[1];
                }
                const int key = k / 2 * 8 + 2 * pair + k % 2;
                const float w0 = __shfl_sync(kAllLanes, own[0], owner);
                const float w1 = __shfl_sync(kAllLanes, own[1], owner);
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    const float2 v =
                        *reinterpret_cast<const float2*>(values + Rows::at(key, 2 * n + t / 2) + t % 2 * 2);
                    output[n][0] = fmaf(w0, v.x, output[n][0]);
                    output[n][1] = fmaf(w0, v.y, output[n][1]);
                    output[n][2] = fmaf(w1, v.x, output[n][2]);
                    output[n][3] = fmaf(w1, v.y, output[n][3]);
                }
            }
        }
    }
}

// The softmax of a warp's 16 rows over tiles of keys that come one after the other (Milakov and Gimelshein 2018): the
// output is kept relative to the largest logit so far.
struct OnlineSoftmax {
    float largest[2] = {-INFINITY, -INFINITY};  // of the lane's two rows
    float total[2] = {0.0f, 0.0f};              // of the weights in the lane's own columns only

    // Logits of a further tile become weights; what `output` holds is rescaled. A key that is left out has logit
    // -infinity.
    template <int kColumns, int kOutputs>
    __device__ __forceinline__ void add(float (&logits)[kColumns][4], float (&output)[kOutputs][4]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float tile_largest = -INFINITY;
#pragma unroll
            for (int n = 0; n < kColumns; ++n)
                tile_largest = fmaxf(tile_largest, fmaxf(logits[n][2 * r], logits[n][2 * r + 1]));
            const float largest_now = fmaxf(largest[r], quad_max(tile_largest));
            const float base =
                largest_now == -INFINITY ? 0.0f : largest_now;  // no key yet: -infinity must not meet itself
            const float factor = __expf(largest[r] - base);
            largest[r] = largest_now;
            total[r] *= factor;
#pragma unroll
            for (int n = 0; n < kColumns; ++n) {
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; ++e) {
                    logits[n][e] = __expf(logits[n][e] - base);
                    total[r] += logits[n][e];
                }
            }
#pragma unroll
            for (int n = 0; n < kOutputs; ++n) {
                output[n][2 * r] *= factor;
                output[n][2 * r + 1] *= factor;
            }
        }
    }

    // Call once, at the end: the sums of whole rows.
    __device__ __forceinline__ void finish() {
        total[0] = quad_sum(total[0]);
        total[1] = quad_sum(total[1]);
    }
};

}  // namespace doge
#endif
