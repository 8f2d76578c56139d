// CDMoE routing: the k best of x[a] + y[b] over all K * K pairs of a token and routing head, by one block.
//
// Sort both halves, best first. The pair of ranks (i, j) has (i + 1) * (j + 1) - 1 others that are no worse, namely
// those of ranks (<= i, <= j): so only pairs under the hyperbola (i + 1) * (j + 1) <= k can be among the k best. There
// are some k ln k of them, 280 for k = 64, of the 16384 that there may be.
//
// Sums are float32, and rounding makes equal sums of different pairs: then the lower a * K + b is better, and that pair
// may lie beyond the hyperbola. Values do not: the k-th best *value* is the same. Hence:
//   1. Candidates are the pairs under the hyperbola and, of each row and column, the first beyond it (its border).
//   2. A threshold is searched bit by bit so that exactly k candidates are at or above it. Where there is one, they are
//      the answer: a pair farther out is no better than its border, and were a border that good, more than k would be.
//   3. Else the search ends at the k-th best value, and there are ties at it. What is above it is picked; the rest is
//      taken from the pairs equal to it, in the order of a * K + b, looking at the whole grid.
//
// The hyperbola has eight arms. Arm m is row m from the diagonal to the right, and column m from there down.
//
// Block: 256 threads. Thread t < 128 ranks x[t], the others y; all lay out the candidates; warp 0 selects and computes
// the softmax. Three barriers.
#ifndef DOGE_KERNELS_CDMOE_ROUTING_CUH
#define DOGE_KERNELS_CDMOE_ROUTING_CUH

#include "cdmoe_plan.h"
#include "reduce.cuh"
#include "types.cuh"

namespace doge::cdmoe {

constexpr int kMaxKeys = 128;          // K
constexpr int kMaxPicks = 64;          // k
constexpr int kRanks = kMaxPicks + 1;  // ranks that candidates have, borders included
constexpr int kArms = 8;               // an arm begins on the diagonal, under or on the hyperbola: floor(sqrt(64))
static_assert(kArms * kArms == kMaxPicks && 2 * kMaxKeys == kThreads, "the layout of a block");

// The arms are those of k = 64 whatever k is: more candidates do no harm. Arm m ends at its border, rank 64 / (m + 1).
__host__ __device__ constexpr int arm_border(int arm) { return kMaxPicks / (arm + 1); }
__host__ __device__ constexpr int arm_size(int arm) { return 2 * (arm_border(arm) - arm) + 1; }
__host__ __device__ constexpr int arm_start(int arm) { return arm == 0 ? 0 : arm_start(arm - 1) + arm_size(arm - 1); }
constexpr int kCandidates = arm_start(kArms);
constexpr int kCandidatesPerLane = (kCandidates + 31) / 32;

struct Routing {
    // The result.
    int expert[kMaxPicks];
    float weight[kMaxPicks];  // float32 softmax of the sums
    // On the way; [0] is x, [1] is y. Keys are order_key of scores, 0 where there is none.
    alignas(16) std::uint32_t key[2][kMaxKeys];
    std::uint32_t sorted_key[2][kRanks];
    int sorted_place[2][kRanks];
    std::uint32_t candidate_key[kCandidatesPerLane * 32];
    int candidate_pair[kCandidatesPerLane * 32];  // a * K + b
};

// Unsigned integers in the order of the numbers, at least 1, equal for -0 and 0; NaN lies at the ends.
__device__ __forceinline__ std::uint32_t order_key(float value) {
    const std::uint32_t bits = __float_as_uint(value + 0.0f);
    return max(bits & 0x80000000 ? ~bits : bits | 0x80000000, 1u);
}
__device__ __forceinline__ float key_value(std::uint32_t key) {
    return __uint_as_float(key & 0x80000000 ? key & 0x7FFFFFFF : ~key);
}
__device__ __forceinline__ std::uint32_t sum_key(std::uint32_t x, std::uint32_t y) {
    return order_key(key_value(x) + key_value(y));
}

// Thread t finds the rank of its score, of equal scores the lower index first, and puts it there.
__device__ __forceinline__ void sort_scores(Routing& r, int num_keys) {
    const int half = threadIdx.x / kMaxKeys, place = threadIdx.x % kMaxKeys;
    const int warp_first = place / 32 * 32;
    const std::uint32_t mine = r.key[half][place];
    const auto count_above = [&](int first, std::uint32_t bound) {
        const uint4 four = *reinterpret_cast<const uint4*>(&r.key[half][first]);
        return (four.x > bound) + (four.y > bound) + (four.z > bound) + (four.w > bound);
    };
    int rank = 0;
    // All places before this warp's win a draw: at or above `mine` is above `mine - 1`. Those behind it lose it.
#pragma unroll 4
    for (int first = 0; first < warp_first; first += 4) rank += count_above(first, mine - 1);
#pragma unroll 4
    for (int first = warp_first + 32; first < num_keys; first += 4) rank += count_above(first, mine);
#pragma unroll 8
    for (int other = warp_first; other < warp_first + 32; ++other) {
        const std::uint32_t key = r.key[half][other];
        rank += key > mine || (key == mine && other < place);
    }
    if (place < num_keys && rank < kRanks) {
        r.sorted_key[half][rank] = mine;
        r.sorted_place[half][rank] = place;
    }
}

// Thread t lays out candidates t and t + 256: of arm 0, then 1, ...; of arm m (m, m), (m, m + 1), (m + 1, m),
// (m, m + 2), (m + 2, m), ... to its border.
__device__ __forceinline__ void lay_out_candidates(Routing& r, int num_keys) {
#pragma unroll
    for (int candidate = threadIdx.x; candidate < kCandidatesPerLane * 32; candidate += kThreads) {
        int arm = 0, start = 0;
#pragma unroll
        for (int later = 1; later < kArms; ++later) {
            if (candidate >= arm_start(later)) {
                arm = later;
                start = arm_start(later);
            }
        }
        const int n = candidate - start, out = arm + (n + 1) / 2;
        const int i = n % 2 ? arm : out, j = n % 2 ? out : arm;
        std::uint32_t key = 0;
        int pair = 0;
        if (candidate < kCandidates && i < num_keys && j < num_keys) {
            key = sum_key(r.sorted_key[0][i], r.sorted_key[1][j]);
            pair = r.sorted_place[0][i] * num_keys + r.sorted_place[1][j];
        }
        r.candidate_key[candidate] = key;
        r.candidate_pair[candidate] = pair;
    }
}

__device__ __forceinline__ int count_at_least(const std::uint32_t (&keys)[kCandidatesPerLane], std::uint32_t bound) {
    unsigned count = 0;
#pragma unroll
    for (std::uint32_t key : keys) count += key >= bound;
    return static_cast<int>(__reduce_add_sync(kAllLanes, count));
}

// The largest threshold that k candidates reach, or one that exactly k reach: by bits, the highest first. Bits that all
// candidates share are not looked at.
__device__ __forceinline__ std::uint32_t find_threshold(const std::uint32_t (&keys)[kCandidatesPerLane], int k,
                                                        bool& exact) {
    std::uint32_t highest = 0, lowest = 0xFFFFFFFF;
#pragma unroll
    for (std::uint32_t key : keys) {
        highest = max(highest, key);
        lowest = min(lowest, key == 0 ? 0xFFFFFFFF : key);
    }
    highest = __reduce_max_sync(kAllLanes, highest);
    lowest = __reduce_min_sync(kAllLanes, lowest);
    const int free_bits = 32 - __clz(static_cast<int>(highest ^ lowest));
    std::uint32_t threshold = free_bits == 32 ? 0 : highest >> free_bits << free_bits;
    exact = false;
    for (int bit = free_bits - 1; bit >= 0 && !exact; --bit) {
        const std::uint32_t higher = threshold | 1u << bit;
        const int count = count_at_least(keys, higher);
        if (count >= k) threshold = higher;
        exact = count == k;
    }
    if (!exact) exact = count_at_least(keys, max(threshold, 1u)) == k;
    return max(threshold, 1u);
}

// Adds picks `found` .. k - 1: the first pairs of the grid whose sum is `tie`. Rows whose best sum is below it are
// passed over.
__device__ __forceinline__ void pick_ties(Routing& r, int num_keys, std::uint32_t tie, int found, int k) {
    const int lane = threadIdx.x % 32;
    const unsigned lanes_before = (1u << lane) - 1;
    for (int first_row = 0; first_row < num_keys && found < k; first_row += 32) {
        const int row = first_row + lane;
        const bool reaches = row < num_keys && sum_key(r.key[0][row], r.sorted_key[1][0]) >= tie;
        for (unsigned rows = __ballot_sync(kAllLanes, reaches); rows != 0 && found < k; rows &= rows - 1) {
            const int a = first_row + __ffs(static_cast<int>(rows)) - 1;
            for (int first = 0; first < num_keys && found < k; first += 32) {
                const int b = first + lane;
                const bool tied = b < num_keys && sum_key(r.key[0][a], r.key[1][b]) == tie;
                const unsigned votes = __ballot_sync(kAllLanes, tied);
                const int pick = found + __popc(votes & lanes_before);
                if (tied && pick < k) {
                    r.expert[pick] = a * num_keys + b;
                    r.weight[pick] = key_value(tie);
                }
                found += __popc(votes);
            }
        }
    }
    for (int pick = found + lane; pick < k; pick += 32) {  // only where scores are NaN: no expert that does not exist
        r.expert[pick] = pick;
        r.weight[pick] = key_value(tie);
    }
}

// Warp 0: the k best candidates, their experts and sums (in r.weight).
__device__ __forceinline__ void select(Routing& r, int num_keys, int k) {
    const int lane = threadIdx.x;
    std::uint32_t keys[kCandidatesPerLane];
#pragma unroll
    for (int n = 0; n < kCandidatesPerLane; ++n) keys[n] = r.candidate_key[n * 32 + lane];
    bool exact;
    const std::uint32_t threshold = find_threshold(keys, k, exact);
    int found = 0;
#pragma unroll
    for (int n = 0; n < kCandidatesPerLane; ++n) {
        const bool picked = exact ? keys[n] >= threshold : keys[n] > threshold;
        const unsigned votes = __ballot_sync(kAllLanes, picked);
        const int pick = found + __popc(votes & ((1u << lane) - 1));
        if (picked && pick < k) {
            r.expert[pick] = r.candidate_pair[n * 32 + lane];
            r.weight[pick] = key_value(keys[n]);
        }
        found += __popc(votes);
    }
    if (!exact) pick_ties(r, num_keys, threshold, found, k);
    __syncwarp();
}

// Warp 0: softmax of r.weight[0 .. k), in place.
__device__ __forceinline__ void softmax(Routing& r, int k) {
    constexpr int kPerLane = kMaxPicks / 32;
    const int lane = threadIdx.x;
    float weights[kPerLane], largest = -INFINITY, total = 0;
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
        const int pick = n * 32 + lane;
        weights[n] = pick < k ? r.weight[pick] : -INFINITY;
        largest = fmaxf(largest, weights[n]);
    }
    largest = warp_max(largest);
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
        weights[n] = n * 32 + lane < k ? expf(weights[n] - largest) : 0.0f;
        total += weights[n];
    }
    total = warp_sum(total);
#pragma unroll
    for (int n = 0; n < kPerLane; ++n) {
        if (n * 32 + lane < k) r.weight[n * 32 + lane] = weights[n] / total;
    }
}

// By all threads of the block: fills r.expert and r.weight, [k] each, for scores x and y, [K] each. They may be read
// after the next barrier.
__device__ __forceinline__ void route(Routing& r, const float* x, const float* y, int num_keys, int k) {
    const int half = threadIdx.x / kMaxKeys, place = threadIdx.x % kMaxKeys;
    r.key[half][place] = place < num_keys ? order_key((half == 0 ? x : y)[place]) : 0;
    __syncthreads();
    sort_scores(r, num_keys);
    __syncthreads();
    lay_out_candidates(r, num_keys);
    __syncthreads();
    if (threadIdx.x < 32) {
        select(r, num_keys, k);
        softmax(r, k);
    }
}

}  // namespace doge::cdmoe
#endif
