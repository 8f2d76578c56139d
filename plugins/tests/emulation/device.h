// What a kernel sees of CUDA: qualifiers, built-in variables, barriers, warp collectives, atomics, intrinsics.
//
// Stricter than a GPU: a thread must not exit while others of its block wait in a barrier, and every lane named by a
// mask must come to the same line. There are no `__shared__` variables: use doge::dynamic_shared (launch.cuh), which
// is poisoned for every block.
#ifndef DOGE_EMULATION_DEVICE_H
#define DOGE_EMULATION_DEVICE_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "scheduler.h"
#include "vector_types.h"

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// --- barriers ---

inline void __syncthreads(doge::emulation::Site site = doge::emulation::Site::here()) {
    doge::emulation::block_barrier("__syncthreads", 0, 0, false, site);
}
inline int __syncthreads_count(int predicate, doge::emulation::Site site = doge::emulation::Site::here()) {
    return doge::emulation::block_barrier("__syncthreads_count", 0, 0, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, doge::emulation::Site site = doge::emulation::Site::here()) {
    return doge::emulation::block_barrier("__syncthreads_or", 0, 0, predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, doge::emulation::Site site = doge::emulation::Site::here()) {
    return doge::emulation::block_barrier("__syncthreads_and", 0, 0, predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFF, doge::emulation::Site site = doge::emulation::Site::here()) {
    int nothing = 0;
    doge::emulation::warp_collective("__syncwarp", mask, nothing, [](int* const*) {}, site);
}
inline void __threadfence() { doge::emulation::maybe_yield(); }
inline void __threadfence_block() { doge::emulation::maybe_yield(); }
inline void __threadfence_system() { doge::emulation::maybe_yield(); }

// --- shuffles ---

namespace doge::emulation {

template <class T>
struct ShuffleLane {
    T value;
    int source;  // the lane to read
    T result;
};

template <class T>
T shuffle(const char* name, unsigned mask, T value, int source, Site site) {
    ShuffleLane<T> lane{value, source, value};
    warp_collective(
        name, mask, lane,
        [name, site](ShuffleLane<T>* const* lanes) {
            for (int i = 0; i < 32; ++i) {
                if (!lanes[i]) continue;
                const ShuffleLane<T>* from = lanes[lanes[i]->source];
                if (!from) {
                    throw KernelError(std::string(name) + " at line " + std::to_string(site.line) +
                                      " reads a lane that is not in the mask");
                }
                lanes[i]->result = from->value;
            }
        },
        site);
    return lane.result;
}

inline int lane_index() {
    return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

}  // namespace doge::emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              doge::emulation::Site site = doge::emulation::Site::here()) {
    const int lane = doge::emulation::lane_index();
    return doge::emulation::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) + (source & (width - 1)), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  doge::emulation::Site site = doge::emulation::Site::here()) {
    const int lane = doge::emulation::lane_index();
    const int source = lane ^ lane_mask;
    return doge::emulation::shuffle("__shfl_xor_sync", mask, value, source / width <= lane / width ? source : lane,
                                    site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   doge::emulation::Site site = doge::emulation::Site::here()) {
    const int lane = doge::emulation::lane_index();
    const int source = lane + static_cast<int>(delta);
    return doge::emulation::shuffle("__shfl_down_sync", mask, value, source / width == lane / width ? source : lane,
                                    site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 doge::emulation::Site site = doge::emulation::Site::here()) {
    const int lane = doge::emulation::lane_index();
    const int source = lane - static_cast<int>(delta);
    return doge::emulation::shuffle("__shfl_up_sync", mask, value, source >= lane / width * width ? source : lane,
                                    site);
}

// --- votes and reductions ---

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              doge::emulation::Site site = doge::emulation::Site::here()) {
    unsigned lane = predicate != 0;
    doge::emulation::warp_collective(
        "__ballot_sync", mask, lane,
        [](unsigned* const* lanes) {
            unsigned votes = 0;
            for (int i = 0; i < 32; ++i) votes |= lanes[i] && *lanes[i] ? 1u << i : 0u;
            for (int i = 0; i < 32; ++i) {
                if (lanes[i]) *lanes[i] = votes;
            }
        },
        site);
    return lane;
}
inline int __any_sync(unsigned mask, int predicate, doge::emulation::Site site = doge::emulation::Site::here()) {
    return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, doge::emulation::Site site = doge::emulation::Site::here()) {
    return __ballot_sync(mask, predicate, site) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, doge::emulation::Site site = doge::emulation::Site::here()) {
    struct Lane {
        T value;
        unsigned same;
    } lane{value, 0};
    doge::emulation::warp_collective(
        "__match_any_sync", mask, lane,
        [](Lane* const* lanes) {
            for (int i = 0; i < 32; ++i) {
                for (int j = 0; lanes[i] && j < 32; ++j) {
                    if (lanes[j] && lanes[j]->value == lanes[i]->value) lanes[i]->same |= 1u << j;
                }
            }
        },
        site);
    return lane.same;
}

namespace doge::emulation {

template <class T, class Combine>
T reduce(const char* name, unsigned mask, T value, Combine combine, Site site) {
    warp_collective(
        name, mask, value,
        [combine](T* const* lanes) {
            T total{};
            bool first = true;
            for (int i = 0; i < 32; ++i) {
                if (!lanes[i]) continue;
                total = first ? *lanes[i] : combine(total, *lanes[i]);
                first = false;
            }
            for (int i = 0; i < 32; ++i) {
                if (lanes[i]) *lanes[i] = total;
            }
        },
        site);
    return value;
}

}  // namespace doge::emulation

#define DOGE_REDUCE(name, type, expression)                                                                          \
    inline type name(unsigned mask, type value, doge::emulation::Site site = doge::emulation::Site::here()) {        \
        return doge::emulation::reduce(#name, mask, value, [](type a, type b) -> type { return expression; }, site); \
    }
DOGE_REDUCE(__reduce_add_sync, unsigned, a + b)
DOGE_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
DOGE_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
DOGE_REDUCE(__reduce_min_sync, int, a < b ? a : b)
DOGE_REDUCE(__reduce_max_sync, unsigned, a < b ? b : a)
DOGE_REDUCE(__reduce_max_sync, int, a < b ? b : a)
DOGE_REDUCE(__reduce_and_sync, unsigned, (a & b))
DOGE_REDUCE(__reduce_or_sync, unsigned, a | b)
DOGE_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef DOGE_REDUCE

// --- atomics: indivisible anyway, for only one fiber runs; others may come first ---

#define DOGE_ATOMIC(name, expression)                 \
    template <class T>                                \
    T name(T* address, std::common_type_t<T> value) { \
        doge::emulation::maybe_yield();               \
        const T old = *address;                       \
        *address = static_cast<T>(expression);        \
        return old;                                   \
    }
DOGE_ATOMIC(atomicAdd, old + value)
DOGE_ATOMIC(atomicSub, old - value)
DOGE_ATOMIC(atomicExch, value)
DOGE_ATOMIC(atomicMin, old < value ? old : value)
DOGE_ATOMIC(atomicMax, old < value ? value : old)
DOGE_ATOMIC(atomicAnd, (old & value))
DOGE_ATOMIC(atomicOr, old | value)
DOGE_ATOMIC(atomicXor, old ^ value)
DOGE_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
DOGE_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef DOGE_ATOMIC

template <class T>
T atomicCAS(T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
    doge::emulation::maybe_yield();
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

// --- loads and stores with cache hints ---

#define DOGE_LOAD(name)        \
    template <class T>         \
    T name(const T* address) { \
        return *address;       \
    }
DOGE_LOAD(__ldg)
DOGE_LOAD(__ldca)
DOGE_LOAD(__ldcg)
DOGE_LOAD(__ldcs)
DOGE_LOAD(__ldcv)
#undef DOGE_LOAD

#define DOGE_STORE(name)                                 \
    template <class T>                                   \
    void name(T* address, std::common_type_t<T> value) { \
        *address = value;                                \
    }
DOGE_STORE(__stcg)
DOGE_STORE(__stcs)
DOGE_STORE(__stwb)
#undef DOGE_STORE

// --- arithmetic ---

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

namespace doge::emulation {
template <class To, class From>
To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
}  // namespace doge::emulation

inline unsigned __float_as_uint(float x) { return doge::emulation::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return doge::emulation::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return doge::emulation::bits_as<float>(x); }
inline float __int_as_float(int x) { return doge::emulation::bits_as<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t{a} * b >> 32); }

// Macros, for glibc declares functions of some of these names.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define rsqrtf(x) (1.0f / sqrtf(x))
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }

[[noreturn]] inline void __trap() { throw doge::emulation::KernelError("__trap"); }

#endif
