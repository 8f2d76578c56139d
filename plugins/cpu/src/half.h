// Numbers of 16 bits, one at a time.
#pragma once
#include <cstdint>
#include <cstring>

namespace doge::cpu {

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float from_bfloat16(uint16_t x) { return float_of(uint32_t(x) << 16); }

inline uint16_t to_bfloat16(float x) {  // to the nearest, ties to even; NaN stays NaN
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Moves the exponent by multiplying with a power of two, which also makes subnormal numbers come out right.
inline float from_float16(uint16_t x) {
    const uint32_t magnitude = uint32_t(x & 0x7fff) << 13, sign = uint32_t(x & 0x8000) << 16;
    if (magnitude >= 0x0f800000) return float_of(sign | 0x70000000 | magnitude);  // infinity, NaN
    return float_of(sign | bits_of(float_of(magnitude) * 0x1p112f));
}

inline uint16_t to_float16(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // rounds to 65536 or more
    if (magnitude < 0x38800000)  // subnormal: adding 0.5 leaves steps of 2^-24, rounded as hardware rounds
        return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
    return uint16_t(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

}  // namespace doge::cpu
