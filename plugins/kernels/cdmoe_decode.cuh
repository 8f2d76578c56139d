// CDMoE for few tokens: routing, experts and their sum in one launch.
//
// Grid: (routing heads * splits, tokens); plan_decode chooses splits so that the experts of even a single token are
// read by several multiprocessors. Each block
//   1. routes its token and routing head (all splits of a head do the same: cheaper than a launch of its own) and takes
//      picks [split * picks_per_block, ...) of the result;
//   2. computes their activations: a warp multiplies one or two rows of down_embed at a time with the hidden state,
//      which lies in shared memory. What step 3 reads first is on its way meanwhile;
//   3. sums activation * up_embed over its picks: a thread owns the 8 (float32: 4) columns of a 16-byte vector, and
//      where a row has fewer vectors than the block threads, groups of threads share the picks and add up through
//      shared memory;
//   4. writes the output, if it is the token's only block. Else it leaves its sum in the workspace, and the last block
//      of the token to do so adds all up, always in the order of the blocks: the result does not depend on who is last.
//
// Who is last is told by a ticket of the token, in the workspace: see tickets.cuh.
//
// Shared memory: DecodeShared, the hidden state [H] T, and [groups, H] float32 if there is more than one group.
#ifndef DOGE_KERNELS_CDMOE_DECODE_CUH
#define DOGE_KERNELS_CDMOE_DECODE_CUH

#include "cdmoe_experts.cuh"
#include "cdmoe_routing.cuh"
#include "launch.cuh"
#include "mma.cuh"
#include "tickets.cuh"

namespace doge::cdmoe {

static_assert(kDecodeBlocks <= kMaxTicketBlocks, "all blocks of a launch may be those of one token");

struct alignas(16) DecodeShared {
    Routing routing;
    float activation[kMaxPicks];
    int is_last;
};

// Threads that read a row of up_embed, a vector each, in whole warps; the block has kThreads / group_threads such
// groups.
__host__ __device__ __forceinline__ int group_threads(int vectors) {
    return vectors >= kThreads ? kThreads : (vectors + 31) / 32 * 32;
}

inline std::size_t decode_shared_bytes(const doge_cdmoe_params& p) {
    const std::size_t row_bytes = static_cast<std::size_t>(p.hidden_size) * element_bytes(p);
    const int groups = kThreads / group_threads(static_cast<int>(row_bytes / 16));
    return sizeof(DecodeShared) + row_bytes + (groups > 1 ? sizeof(float) * groups * p.hidden_size : 0);
}

// The products of `kRows` rows of down_embed with the hidden state, the same in all lanes.
template <class T, int kRows>
__device__ __forceinline__ void warp_products(float (&products)[kRows], const uint4* const (&rows)[kRows],
                                              const Vector<T>* hidden, int vectors) {
#pragma unroll
    for (int n = 0; n < kRows; ++n) products[n] = 0;
#pragma unroll 4
    for (int v = threadIdx.x % 32; v < vectors; v += 32) {
        Vector<T> of_row[kRows];
#pragma unroll
        for (int n = 0; n < kRows; ++n) of_row[n] = Vector<T>::load(rows[n], v);
#pragma unroll
        for (int n = 0; n < kRows; ++n) products[n] = add_dot(products[n], of_row[n], hidden[v]);
    }
#pragma unroll
    for (int n = 0; n < kRows; ++n) products[n] = warp_sum(products[n]);
}

// Step 2, for picks first .. first + count - 1 of the routing.
template <class T>
__device__ __forceinline__ void compute_activations(DecodeShared& shared, const doge_cdmoe_params& p,
                                                    const Vector<T>* hidden, int vectors, int first, int count) {
    const auto finish = [&](int n, float product) {
        if (threadIdx.x % 32 == 0) {
            shared.activation[n] = activation(product, shared.routing.weight[first + n], p.weights_inside != 0);
        }
    };
    const auto down = [&](int n) { return row(p.down_embed, shared.routing.expert[first + n], vectors); };
    for (int n = threadIdx.x / 32; n < count; n += 2 * kWarps) {
        if (n + kWarps < count) {
            float products[2];
            warp_products<T, 2>(products, {down(n), down(n + kWarps)}, hidden, vectors);
            finish(n, products[0]);
            finish(n + kWarps, products[1]);
        } else {
            float products[1];
            warp_products<T, 1>(products, {down(n)}, hidden, vectors);
            finish(n, products[0]);
        }
    }
}

// Vector `column` of rows of up_embed: of picks n, n + groups, ..., as many as are loaded at once.
template <class T>
struct UpBatch {
    static constexpr int size = 8;
    Vector<T> vectors[size];

    __device__ __forceinline__ void load(const Routing& routing, const void* up, int row_vectors, int column, int first,
                                         int count, int n, int groups) {
#pragma unroll
        for (int i = 0; i < size; ++i) {
            if (n + i * groups < count) {
                vectors[i] = Vector<T>::load(row(up, routing.expert[first + n + i * groups], row_vectors), column);
            }
        }
    }
    __device__ __forceinline__ void add_to(float (&sums)[Vector<T>::width], const float* activation, int count, int n,
                                           int groups) const {
#pragma unroll
        for (int i = 0; i < size; ++i) {
            if (n + i * groups < count) add_scaled(sums, activation[n + i * groups], vectors[i]);
        }
    }
};

// Step 4, the last block of a token: the sum of [slots, H] partial sums, in the order of slots.
template <class T>
__device__ __forceinline__ void add_up_slots(T* output, const float* partials, int slots, int hidden_size) {
    constexpr int width = Vector<T>::width;
    for (int column = threadIdx.x * width; column < hidden_size; column += kThreads * width) {
        float sums[width] = {};
#pragma unroll 4
        for (int slot = 0; slot < slots; ++slot) {
            const auto* partial =
                reinterpret_cast<const float4*>(partials + static_cast<std::size_t>(slot) * hidden_size + column);
#pragma unroll
            for (int i = 0; i < width / 4; ++i) {
                const float4 four = __ldcg(partial + i);  // from L2: other multiprocessors wrote it
                sums[4 * i] += four.x;
                sums[4 * i + 1] += four.y;
                sums[4 * i + 2] += four.z;
                sums[4 * i + 3] += four.w;
            }
        }
        store_vector(output + column, sums);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    cdmoe_decode(const doge_cdmoe_params p, DecodePlan plan, Ticket* tickets, float* all_partials) {
    constexpr int width = Vector<T>::width;
    const int token = blockIdx.y, slot = blockIdx.x, slots = gridDim.x;
    const int head = slot / plan.splits, split = slot % plan.splits;
    const int vectors = p.hidden_size / width;
    const int first = split * plan.picks_per_block;
    const int count = min(plan.picks_per_block, p.num_experts_per_tok - first);

    auto& shared = *dynamic_shared<DecodeShared>();
    auto* hidden = reinterpret_cast<Vector<T>*>(&shared + 1);
    auto* group_sums = reinterpret_cast<float*>(hidden + vectors);
    const uint4* hidden_row = row(p.hidden, token, vectors);
    for (int v = threadIdx.x; v < vectors; v += kThreads) async_copy_16(hidden + v, hidden_row + v, true);
    async_commit();
    const std::size_t scores = static_cast<std::size_t>(token) * p.score_stride + head * p.num_keys;
    route(shared.routing, p.scores_x + scores, p.scores_y + scores, p.num_keys, p.num_experts_per_tok);
    async_wait<0>();
    __syncthreads();

    const int per_group = group_threads(vectors), groups = kThreads / per_group;
    const int group = threadIdx.x / per_group, own_column = threadIdx.x % per_group;
    const bool has_column = group < groups && own_column < vectors;
    UpBatch<T> batch;
    if (has_column) batch.load(shared.routing, p.up_embed, vectors, own_column, first, count, group, groups);
    compute_activations<T>(shared, p, hidden, vectors, first, count);
    __syncthreads();

    T* output = static_cast<T*>(p.output) + static_cast<std::size_t>(token) * p.hidden_size;
    float* partials = all_partials + static_cast<std::size_t>(token) * slots * p.hidden_size;
    const auto finish_column = [&](int column, const float (&sums)[width]) {
        if (slots == 1) {
            store_vector(output + column * width, sums);
            return;
        }
        auto* partial =
            reinterpret_cast<float4*>(partials + static_cast<std::size_t>(slot) * p.hidden_size + column * width);
#pragma unroll
        for (int i = 0; i < width / 4; ++i) {
            __stcg(partial + i, make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
        }
    };
    for (int column = own_column; has_column && column < vectors; column += per_group) {
        float sums[width] = {};
        for (int n = group; n < count; n += UpBatch<T>::size * groups) {
            if (column != own_column || n != group) {
                batch.load(shared.routing, p.up_embed, vectors, column, first, count, n, groups);
            }
            batch.add_to(sums, shared.activation, count, n, groups);
        }
        if (groups == 1) {
            finish_column(column, sums);
        } else {
#pragma unroll
            for (int i = 0; i < width; ++i) group_sums[(group * width + i) * vectors + column] = sums[i];
        }
    }
    if (groups > 1) {
        __syncthreads();
        if (const int column = threadIdx.x; column < vectors) {
            float sums[width] = {};
            for (int other = 0; other < groups; ++other) {
#pragma unroll
                for (int i = 0; i < width; ++i) sums[i] += group_sums[(other * width + i) * vectors + column];
            }
            finish_column(column, sums);
        }
    }
    if (slots > 1 && is_last_block(tickets + token, slots, shared.is_last)) {
        add_up_slots(output, partials, slots, p.hidden_size);
    }
}

}  // namespace doge::cdmoe
#endif
