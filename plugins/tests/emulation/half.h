// __half and __nv_bfloat16 with round-to-nearest-even, and the conversions that the kernels use.
#ifndef DOGE_EMULATION_HALF_H
#define DOGE_EMULATION_HALF_H

#include <cstdint>
#include <cstring>

#include "vector_types.h"

namespace doge::emulation {

inline std::uint32_t float_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float bits_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint16_t float_to_half(float value) {
    const std::uint32_t bits = float_bits(value);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    const std::uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FFF;                                      // NaN
    if (magnitude >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);  // 65520 and more: infinity
    std::uint32_t rounded;
    if (magnitude >= 0x38800000) {  // normal: 13 bits fall off
        rounded = magnitude - 0x38000000;
        rounded = (rounded + 0xFFF + (rounded >> 13 & 1)) >> 13;
    } else {  // subnormal: adding 2^-1 leaves the value in units of 2^-24 in the low bits, rounded by the addition
        rounded = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
    }
    return static_cast<std::uint16_t>(sign | rounded);
}

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16;
    const std::uint32_t magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00) return bits_float(sign | 0x7F800000 | magnitude << 13);
    const float value = bits_float(magnitude << 13) * 0x1p112f;  // a float whose exponent is 112 too low
    return bits_float(sign | float_bits(value));
}

inline std::uint16_t float_to_bfloat16(float value) {
    const std::uint32_t bits = float_bits(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float bfloat16_to_float(std::uint16_t bfloat16) {
    return bits_float(static_cast<std::uint32_t>(bfloat16) << 16);
}

}  // namespace doge::emulation

struct __half {
    std::uint16_t bits;
    __half() = default;
    __half(float value) : bits(doge::emulation::float_to_half(value)) {}
    operator float() const { return doge::emulation::half_to_float(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
};
struct __nv_bfloat16 {
    std::uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : bits(doge::emulation::float_to_bfloat16(value)) {}
    operator float() const { return doge::emulation::bfloat16_to_float(bits); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) {
    __half x;
    x.bits = bits;
    return x;
}

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}

#endif
