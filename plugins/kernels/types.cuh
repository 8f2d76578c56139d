// The three storage types: conversions from and to float32, in which everything is calculated.
#ifndef DOGE_KERNELS_TYPES_CUH
#define DOGE_KERNELS_TYPES_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace doge {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x) {  // rounded to nearest even
    if constexpr (sizeof(T) == 4) {
        return x;
    } else if constexpr (std::is_same_v<T, __half>) {
        return __float2half_rn(x);
    } else {
        return __float2bfloat16_rn(x);
    }
}

// Two numbers side by side in memory, as one word of 32 or 64 bits; each is rounded once, to nearest even.
template <class T>
struct Pair;
template <>
struct Pair<float> {
    using Word = float2;
    static __device__ __forceinline__ Word pack(float x, float y) { return make_float2(x, y); }
};
template <>
struct Pair<__half> {
    using Word = std::uint32_t;
    static __device__ __forceinline__ Word pack(float x, float y) {
        const __half2 pair = __floats2half2_rn(x, y);
        Word word;
        memcpy(&word, &pair, sizeof word);
        return word;
    }
};
template <>
struct Pair<__nv_bfloat16> {
    using Word = std::uint32_t;
    static __device__ __forceinline__ Word pack(float x, float y) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
        Word word;
        memcpy(&word, &pair, sizeof word);
        return word;
    }
};

}  // namespace doge
#endif
