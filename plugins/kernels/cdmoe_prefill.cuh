// CDMoE for many tokens: three launches for each chunk of tokens, which reads an expert's rows from DRAM once.
//
// What is picked: T tokens pick T * R * k experts, and each pick uses two rows of H numbers. Nothing makes neighbours
// in the text pick alike: of 64 experts of 16384 two tokens share a quarter of one, so no tile of tokens and experts is
// worth keeping in shared memory. Grouping picks by expert does not help either. For down_embed it would read a row
// once, but then, from L2, a token's row for each pick; for up_embed it would turn the sum over a token's picks into
// atomic additions of float32, in any order. So every pick costs two rows from L2, and what can be saved is DRAM:
//
// The tables are cut into slices of 512 bytes of each row. A slice of E = 16384 rows has 8 MiB and stays in L2 while
// all tokens of the chunk pass over it: blocks start in the order of slices, for blockIdx.x (tokens) runs faster than
// blockIdx.y (slices).
//
//   cdmoe_route    block = token and routing head: the experts and weights of its k picks
//   cdmoe_down     warp = token and slice: products of the hidden state's slice with that of its picks' rows of
//                  down_embed
//   cdmoe_up       warp = token and slice: activations, from the products added over slices in order; then the slice of
//                  the output, the sum over picks in order
//
// A lane holds one 16-byte vector of a slice; the lanes beyond the end of the row idle. Eight rows are loaded at a
// time. cdmoe_route has a Routing in shared memory, the others none.
#ifndef DOGE_KERNELS_CDMOE_PREFILL_CUH
#define DOGE_KERNELS_CDMOE_PREFILL_CUH

#include "cdmoe_experts.cuh"
#include "cdmoe_routing.cuh"
#include "launch.cuh"

namespace doge::cdmoe {

// The picks of a chunk; a token's routing heads follow each other: pick = (token * R + head) * k + n.
struct Picks {
    int* experts;
    float* weights;
    float* products;  // [slices, tokens * R * k]
};

// Grid: tokens * routing heads. Static: the same for every T, and in more than one translation unit of the tests.
static __global__ void __launch_bounds__(kThreads) cdmoe_route(const doge_cdmoe_params p, Picks picks) {
    auto& routing = *dynamic_shared<Routing>();
    const std::size_t at = static_cast<std::size_t>(blockIdx.x);  // token * R + head
    const std::size_t scores = at / p.num_routing_heads * p.score_stride + at % p.num_routing_heads * p.num_keys;
    route(routing, p.scores_x + scores, p.scores_y + scores, p.num_keys, p.num_experts_per_tok);
    __syncthreads();
    const int n = threadIdx.x;
    if (n < p.num_experts_per_tok) {
        picks.experts[at * p.num_experts_per_tok + n] = routing.expert[n];
        picks.weights[at * p.num_experts_per_tok + n] = routing.weight[n];
    }
}

// What a warp works on.
template <class T>
struct TokenSlice {
    int token, slice, vectors, column, picks;
    bool has_column;

    __device__ __forceinline__ explicit TokenSlice(const doge_cdmoe_params& p)
        : token(blockIdx.x * kWarps + threadIdx.x / 32),
          slice(blockIdx.y),
          vectors(p.hidden_size / Vector<T>::width),
          column(slice * 32 + threadIdx.x % 32),
          picks(p.num_routing_heads * p.num_experts_per_tok),
          has_column(column < vectors) {}
};

constexpr int kRowsAtOnce = 8;

// Eight sums over the warp for the price of nine shuffles: in each of three steps the lanes split in halves that go on
// with half of the values each. Lane l gets the sum of value l / 4.
__device__ __forceinline__ float warp_sum_of_eight(const float (&values)[8]) {
    float left[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) left[i] = values[i];
#pragma unroll
    for (int step = 16, half = 4; half >= 1; step /= 2, half /= 2) {
        const bool upper = threadIdx.x & step;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const float given = upper ? left[i] : left[i + half];
            left[i] = (upper ? left[i + half] : left[i]) + __shfl_xor_sync(kAllLanes, given, step);
        }
    }
    left[0] += __shfl_xor_sync(kAllLanes, left[0], 2);
    return left[0] + __shfl_xor_sync(kAllLanes, left[0], 1);
}

// Grid: (ceil(tokens / kWarps), slices).
template <class T>
__global__ void __launch_bounds__(kThreads, 4) cdmoe_down(const doge_cdmoe_params p, Picks picks) {
    const TokenSlice<T> at(p);
    if (at.token >= p.tokens) return;
    const int lane = threadIdx.x % 32;
    const std::size_t first_pick = static_cast<std::size_t>(at.token) * at.picks;
    float* products = picks.products + static_cast<std::size_t>(at.slice) * p.tokens * at.picks + first_pick;
    Vector<T> hidden;
    if (at.has_column) hidden = Vector<T>::load(row(p.hidden, at.token, at.vectors), at.column);
    for (int first = 0; first < at.picks; first += 32) {
        const int expert = first + lane < at.picks ? picks.experts[first_pick + first + lane] : 0;
        for (int n = 0; n < 32 && first + n < at.picks; n += kRowsAtOnce) {
            Vector<T> rows[kRowsAtOnce];
#pragma unroll
            for (int i = 0; i < kRowsAtOnce; ++i) {
                const int of = __shfl_sync(kAllLanes, expert, n + i);
                if (at.has_column && first + n + i < at.picks)
                    rows[i] = Vector<T>::load(row(p.down_embed, of, at.vectors), at.column);
            }
            float sums[kRowsAtOnce];
#pragma unroll
            for (int i = 0; i < kRowsAtOnce; ++i) sums[i] = add_dot(0.0f, rows[i], hidden);
            const float product = warp_sum_of_eight(sums);
            const int pick = first + n + lane / 4;
            if (lane % 4 == 0 && pick < at.picks) products[pick] = product;
        }
    }
}

// Grid: (ceil(tokens / kWarps), slices).
template <class T>
__global__ void __launch_bounds__(kThreads, 4) cdmoe_up(const doge_cdmoe_params p, Picks picks) {
    const TokenSlice<T> at(p);
    if (at.token >= p.tokens) return;
    const int lane = threadIdx.x % 32;
    const std::size_t first_pick = static_cast<std::size_t>(at.token) * at.picks;
    const std::size_t all_picks = static_cast<std::size_t>(p.tokens) * at.picks;
    float sums[Vector<T>::width] = {};
    for (int first = 0; first < at.picks; first += 32) {
        int expert = 0;
        float scale = 0;
        if (first + lane < at.picks) {
            const std::size_t pick = first_pick + first + lane;
            float product = 0;
            for (int slice = 0; slice < static_cast<int>(gridDim.y); ++slice)
                product += picks.products[slice * all_picks + pick];
            scale = activation(product, picks.weights[pick], p.weights_inside != 0);
            expert = picks.experts[pick];
        }
        for (int n = 0; n < 32 && first + n < at.picks; n += kRowsAtOnce) {
            Vector<T> rows[kRowsAtOnce];
#pragma unroll
            for (int i = 0; i < kRowsAtOnce; ++i) {
                const int of = __shfl_sync(kAllLanes, expert, n + i);
                if (at.has_column && first + n + i < at.picks)
                    rows[i] = Vector<T>::load(row(p.up_embed, of, at.vectors), at.column);
            }
#pragma unroll
            for (int i = 0; i < kRowsAtOnce; ++i) add_scaled(sums, __shfl_sync(kAllLanes, scale, n + i), rows[i]);
        }
    }
    if (at.has_column) {
        store_vector(static_cast<T*>(p.output) + static_cast<std::size_t>(at.token) * p.hidden_size +
                         at.column * Vector<T>::width,
                     sums);
    }
}

}  // namespace doge::cdmoe
#endif
