// Every float16 and every bfloat16: what is read and written again is the same, and halfway between two neighbours a
// number goes to the even one, a hair from there to the nearer one.
#include "numbers.h"

#include <cmath>
#include <cstdio>
#include <limits>

namespace {

int failures = 0;

void check(bool good, const char* what, double value) {
    if (!good) {
        ++failures;
        std::printf("failed: %s, at %.17g\n", what, value);
    }
}

double number(doge_dtype dtype, uint16_t bits) { return doge::read(dtype, &bits, 0, 1)[0]; }

uint16_t bits_of(doge_dtype dtype, double value) {
    uint16_t bits[2] = {0xAAAA, 0xAAAA};
    doge::write(dtype, bits, 1, value);
    check(bits[0] == 0xAAAA, "writes one number only", value);
    return bits[1];
}

void test_format(doge_dtype dtype, uint16_t infinity) {
    for (uint32_t bits = 0; bits <= 0xFFFF; ++bits) {
        const double value = number(dtype, static_cast<uint16_t>(bits));
        const bool should_be_nan = (bits & 0x7FFF) > infinity;
        check(std::isnan(value) == should_be_nan, "NaN is what lies beyond infinity", bits);
        const uint16_t again = bits_of(dtype, value);
        check(should_be_nan ? (again & 0x7FFF) > infinity : again == bits, "read and written again", value);
    }
    for (uint16_t bits = 0; bits < infinity; ++bits) {
        const double below = number(dtype, bits);
        // The last neighbour would be 2^(largest exponent + 1), if there were one: from halfway on it is infinity.
        const bool is_last = bits + 1 == infinity;
        const double above = is_last ? 2 * below - number(dtype, bits - 1) : number(dtype, bits + 1);
        const double middle = (below + above) / 2;
        const uint16_t even = bits % 2 == 0 ? bits : bits + 1;
        check(below < above, "numbers rise with their bits", below);
        check(bits_of(dtype, middle) == even, "halfway: to even", middle);
        check(bits_of(dtype, -middle) == (even | 0x8000), "halfway, negative: to even", -middle);
        check(bits_of(dtype, std::nextafter(middle, 0.0)) == bits, "less than halfway: down", middle);
        check(bits_of(dtype, std::nextafter(middle, above * 2 + 1)) == bits + 1, "more than halfway: up", middle);
    }
    check(bits_of(dtype, 1e300) == infinity, "too large: infinite", 1e300);
    check(bits_of(dtype, 1e-300) == 0, "too small: zero", 1e-300);
    check(bits_of(dtype, -0.0) == 0x8000, "zero keeps its sign", -0.0);
}

}  // namespace

int main() {
    test_format(DOGE_FLOAT16, 0x7C00);
    test_format(DOGE_BFLOAT16, 0x7F80);
    // Known by their definition, so that reading and writing cannot be wrong together.
    check(number(DOGE_FLOAT16, 0x3C00) == 1 && number(DOGE_FLOAT16, 0x7BFF) == 65504, "float16 1 and 65504", 1);
    check(number(DOGE_FLOAT16, 0x0001) == std::ldexp(1, -24), "the smallest float16", 1);
    check(number(DOGE_BFLOAT16, 0x3F80) == 1 && number(DOGE_BFLOAT16, 0xC040) == -3, "bfloat16 1 and -3", 1);
    std::printf(failures == 0 ? "ok\n" : "%d checks failed\n", failures);
    return failures == 0 ? 0 : 1;
}
