#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace doge {
namespace {

// A binary format of IEEE 754's shape: one sign bit, exponent bits, fraction bits.
struct Format {
    int exponent_bits;
    int fraction_bits;

    constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    constexpr uint32_t infinity() const { return ((1u << exponent_bits) - 1) << fraction_bits; }
    constexpr uint32_t sign() const { return 1u << (exponent_bits + fraction_bits); }
};

constexpr Format kFloat16{5, 10};
constexpr Format kBfloat16{8, 7};

uint32_t encode(Format format, double value) {
    const uint32_t sign = std::signbit(value) ? format.sign() : 0;
    if (std::isnan(value)) {
        return sign | format.infinity() | 1u << (format.fraction_bits - 1);
    }
    const double magnitude = std::fabs(value);
    if (std::isinf(magnitude)) {
        return sign | format.infinity();
    }
    int exponent = 0;
    std::frexp(magnitude, &exponent);  // magnitude = m 2^exponent with 0.5 <= m < 1
    const int smallest_normal = 1 - format.bias();
    // Of a subnormal number the last place stays that of the smallest normal one.
    const int binade = magnitude == 0 || exponent - 1 < smallest_normal ? smallest_normal : exponent - 1;
    // In units of the last place; the default rounding mode is to nearest, to even in a tie.
    const double units = std::nearbyint(std::ldexp(magnitude, format.fraction_bits - binade));
    // The hidden bit of a normal number adds one to the exponent field, and so does a carry out of the fraction.
    const uint64_t field = static_cast<uint64_t>(binade - smallest_normal) << format.fraction_bits;
    const uint64_t bits = field + static_cast<uint64_t>(units);
    return sign | (bits < format.infinity() ? static_cast<uint32_t>(bits) : format.infinity());
}

float decode(Format format, uint32_t bits) {
    const uint32_t fraction = bits & ((1u << format.fraction_bits) - 1);
    const int exponent = static_cast<int>((bits & format.infinity()) >> format.fraction_bits);
    float magnitude;
    if (exponent == (1 << format.exponent_bits) - 1) {
        magnitude = fraction == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
    } else {
        const uint32_t units = exponent == 0 ? fraction : fraction | 1u << format.fraction_bits;
        const int binade = (exponent == 0 ? 1 : exponent) - format.bias();
        magnitude = std::ldexp(static_cast<float>(units), binade - format.fraction_bits);
    }
    return bits & format.sign() ? -magnitude : magnitude;
}

// Every number of a format, by its bits.
std::vector<float> table_of(Format format) {
    std::vector<float> numbers(1u << 16);
    for (uint32_t bits = 0; bits < numbers.size(); ++bits) {
        numbers[bits] = decode(format, bits);
    }
    return numbers;
}

const std::vector<float>& table(doge_dtype dtype) {
    static const std::vector<float> float16 = table_of(kFloat16);
    static const std::vector<float> bfloat16 = table_of(kBfloat16);
    return dtype == DOGE_FLOAT16 ? float16 : bfloat16;
}

}  // namespace

size_t size_of(doge_dtype dtype) { return dtype == DOGE_FLOAT32 ? 4 : 2; }

std::vector<float> read(doge_dtype dtype, const void* memory, size_t first, size_t count) {
    std::vector<float> numbers(count);
    if (dtype == DOGE_FLOAT32) {
        std::copy_n(static_cast<const float*>(memory) + first, count, numbers.begin());
        return numbers;
    }
    const uint16_t* stored = static_cast<const uint16_t*>(memory) + first;
    const std::vector<float>& value_of = table(dtype);
    for (size_t i = 0; i < count; ++i) {
        numbers[i] = value_of[stored[i]];
    }
    return numbers;
}

void write(doge_dtype dtype, void* memory, size_t place, double value) {
    if (dtype == DOGE_FLOAT32) {
        static_cast<float*>(memory)[place] = static_cast<float>(value);
    } else {
        const Format format = dtype == DOGE_FLOAT16 ? kFloat16 : kBfloat16;
        static_cast<uint16_t*>(memory)[place] = static_cast<uint16_t>(encode(format, value));
    }
}

}  // namespace doge
