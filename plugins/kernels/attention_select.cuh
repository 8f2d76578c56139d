// The threshold of the w best keys, by one block and without sorting.
//
// A radix select over an interval of order keys that is known to hold the threshold. Each pass cuts the interval into
// at most 2048 equal bins, counts the keys of each, and goes on with the bin in which the w-th best lies. The first
// interval reaches from the lowest score to the highest, so that no pass is spent on the bits which all scores share
// (the lowest finite score, that of padding, is left out of it: it would stretch the interval over half of the floats).
// It ends as soon as all keys of the interval are wanted; that is after two passes for scores without equals, and after
// two more where places must decide between equal scores. As many scores as fit stay in shared memory from the first
// reading on.
#ifndef DOGE_KERNELS_ATTENTION_SELECT_CUH
#define DOGE_KERNELS_ATTENTION_SELECT_CUH

#include "attention_keys.cuh"
#include "reduce.cuh"

namespace doge {

constexpr int kSelectBins = 2048;

// Shared memory of select; behind it may lie room for scores.
struct SelectShared {
    OrderKey low, high;  // the interval, both ends included
    int wanted;          // how many of the interval's keys are among the best
    int inside;          // how many keys the interval has
    std::uint32_t least, most;
    int warp_totals[32];
    int bins[kSelectBins];

    __device__ float* held_scores() { return reinterpret_cast<float*>(this + 1); }
};

// Within the keys of one score, the interval need not reach below the last place.
__device__ __forceinline__ OrderKey tighten(OrderKey low, OrderKey high, int last_place) {
    const OrderKey lowest_of_score = (high >> 32) << 32 | ~static_cast<std::uint32_t>(last_place);
    return low >> 32 == high >> 32 && low < lowest_of_score ? lowest_of_score : low;
}

__device__ __forceinline__ int bits_of(OrderKey x) {
    const int high = __clz(static_cast<int>(x >> 32));
    return high < 32 ? 64 - high : 32 - __clz(static_cast<int>(x));
}

// Gives a threshold such that exactly `wanted` of the keys 0 .. count - 1 of `scores` are not below it; 1 <= wanted <=
// count. No place exceeds last_place. There is room for `room` scores behind `shared`. All kThreads threads of the
// block take part; begins and ends with a barrier.
template <int kThreads>
__device__ OrderKey select(const ScoreRow& scores, int count, int wanted, int last_place, SelectShared& shared,
                           int room) {
    constexpr int kWarps = kThreads / 32;
    constexpr int kBinsPerThread = kSelectBins / kThreads;
    static_assert(kSelectBins % kThreads == 0 && kWarps <= 32);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const std::uint32_t lowest = ordered_bits(DOGE_NEG);

    // The first interval: the least and the largest score but for DOGE_NEG, and how many there are.
    __syncthreads();
    if (thread == 0) {
        shared.least = 0xFFFFFFFF;
        shared.most = 0;
        shared.inside = 0;
    }
    __syncthreads();
    std::uint32_t least = 0xFFFFFFFF, most = 0;
    int inside = 0;
    float* held = shared.held_scores();
    scores.for_each<kThreads>(0, count, [&](int number, float score) {
        if (number < room) held[number] = score;
        const std::uint32_t bits = ordered_bits(score);
        if (bits > lowest) {
            least = min(least, bits);
            most = max(most, bits);
            ++inside;
        }
    });
    least = __reduce_min_sync(kAllLanes, least);
    most = __reduce_max_sync(kAllLanes, most);
    inside = __reduce_add_sync(kAllLanes, inside);
    if (lane == 0) {
        atomicMin(&shared.least, least);
        atomicMax(&shared.most, most);
        atomicAdd(&shared.inside, inside);
    }
    __syncthreads();
    inside = shared.inside;
    OrderKey low, high;
    if (wanted <= inside) {
        low = static_cast<OrderKey>(shared.least) << 32;
        high = static_cast<OrderKey>(shared.most) << 32 | 0xFFFFFFFF;
    } else {  // all of them, and some keys of DOGE_NEG (or below it: minus infinity)
        wanted -= inside;
        inside = count - inside;
        low = 0;
        high = static_cast<OrderKey>(lowest) << 32 | 0xFFFFFFFF;
    }
    low = tighten(low, high, last_place);

    while (inside != wanted && low != high) {
        const int shift = max(bits_of(high - low) - 11, 0);
        for (int bin = thread; bin < kSelectBins; bin += kThreads) shared.bins[bin] = 0;
        __syncthreads();
        const auto count_key = [&](int number, float score) {
            const OrderKey order = order_key(score, scores.place(number));
            if (order >= low && order <= high) atomicAdd(&shared.bins[(order - low) >> shift], 1);
        };
        for (int number = thread; number < min(room, count); number += kThreads) count_key(number, held[number]);
        scores.for_each<kThreads>(min(room, count), count, count_key);
        __syncthreads();

        // Thread t owns the t-th group of bins counted from the best; a scan over the groups tells how many keys lie in
        // better ones.
        const int first_bin = kSelectBins - (thread + 1) * kBinsPerThread;
        int group = 0;
#pragma unroll
        for (int n = 0; n < kBinsPerThread; ++n) group += shared.bins[first_bin + n];
        int better = group;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const int before = __shfl_up_sync(kAllLanes, better, step);
            if (lane >= step) better += before;
        }
        if (lane == 31) shared.warp_totals[warp] = better;
        if (thread == 0) {  // what ends the search, should the slots of a bounded cache tell places that cannot be
            shared.low = shared.high = low;
            shared.wanted = shared.inside = 0;
        }
        __syncthreads();
        better -= group;
        for (int other = 0; other < warp; ++other) better += shared.warp_totals[other];
        if (better < wanted && wanted <= better + group) {  // one thread only
            int bin = first_bin + kBinsPerThread - 1;
            while (better + shared.bins[bin] < wanted) better += shared.bins[bin--];
            shared.low = low + (static_cast<OrderKey>(bin) << shift);
            shared.high = min(high, shared.low + (OrderKey{1} << shift) - 1);
            shared.wanted = wanted - better;
            shared.inside = shared.bins[bin];
        }
        __syncthreads();
        high = shared.high;
        low = tighten(shared.low, high, last_place);
        wanted = shared.wanted;
        inside = shared.inside;
    }
    __syncthreads();
    return low;
}

}  // namespace doge
#endif
