// Conversions of 16-bit numbers; to them with round-to-nearest-even.
#ifndef DOGE_EMULATION_HALF_H
#define DOGE_EMULATION_HALF_H

#include <cstdint>
#include <cstring>

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

#endif
