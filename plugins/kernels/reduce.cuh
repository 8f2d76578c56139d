// Sums, maxima and ranks over the threads of a warp or block.
#ifndef DOGE_KERNELS_REDUCE_CUH
#define DOGE_KERNELS_REDUCE_CUH

#include <cuda_runtime.h>

#include <cstdint>

namespace doge {

constexpr unsigned kAllLanes = 0xFFFFFFFF;

// Over the four lanes 4 g .. 4 g + 3, which share the rows of a fragment (mma.cuh).
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
    return x;
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
}
__device__ __forceinline__ std::uint64_t warp_min(std::uint64_t x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        const std::uint64_t other = __shfl_xor_sync(kAllLanes, x, step);
        x = other < x ? other : x;
    }
    return x;
}

// Numbers those of a block's kRounds * kWarps * 32 items that are kept, in the order (round, thread): rank[round] is
// the number of kept items before the thread's item. Returns how many are kept. counts: shared, [kRounds * kWarps]. All
// threads of the block take part; it begins with a barrier, so that counts may be used again at once.
template <int kWarps, int kRounds>
__device__ __forceinline__ int rank_kept(const bool (&keep)[kRounds], int (&rank)[kRounds], int* counts) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const unsigned votes = __ballot_sync(kAllLanes, keep[round]);
        rank[round] = __popc(votes & ((1u << lane) - 1));
        if (lane == 0) counts[round * kWarps + warp] = __popc(votes);
    }
    __syncthreads();
    int total = 0;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
#pragma unroll
        for (int other = 0; other < kWarps; ++other) {
            if (other == warp) rank[round] += total;
            total += counts[round * kWarps + other];
        }
    }
    return total;
}

}  // namespace doge
#endif
