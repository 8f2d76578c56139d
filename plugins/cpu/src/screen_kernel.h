// Bounds of a float head's logits from its int8 copy; see screen.h for why they hold.
#pragma once

namespace doge::cpu {
namespace {

void screen(const ScreenedHead& head, const ScreenedInput& in, int first, int last, float* lower, float* upper) {
    const int blocks = head.columns / head.block, chunks = head.block / 4;
    const size_t codes = size_t(head.block) * 16, size = codes + 3 * 64;
    const F rounding = splat(in.rounding), infinite = splat(INFINITY), lowest = splat(-INFINITY);
    for (int g = first; g < last; g++) {
        const uint8_t* p = head.bytes + size_t(g) * size_t(blocks) * size;
        F logit = splat(0.0f), bound = splat(1e-30f);
        for (int b = 0; b < blocks; b++, p += size) {
            const size_t at = size_t(b) * 2;
            I acc[2] = {splat_int(0), splat_int(0)};
            dots8<2>(p, chunks, in.codes.codes + at * size_t(head.block), size_t(head.block), in.codes.sums + at, acc);
            const float* numbers = reinterpret_cast<const float*>(p + codes);
            const F scales = load(numbers), error = load(numbers + 16), norm = load(numbers + 32);
            const F product = fma(to_float(acc[1]), splat(in.codes.scales[at + 1]),
                                  mul(to_float(acc[0]), splat(in.codes.scales[at])));
            logit = fma(product, scales, logit);
            const F length = splat(in.norms[b]), rest = splat(in.rests[b]);
            const F weights = add(norm, error);
            bound = fma(error, length, bound);
            bound = fma(weights, fma(rounding, length, rest), bound);
        }
        // Rows or inputs that are no finite numbers: nothing is known.
        const F least = sub(logit, bound), most = add(logit, bound);
        const Mask known = both(greater(least, lowest), greater(infinite, most));
        store(lower + g * 16, select(known, least, lowest));
        store(upper + g * 16, select(known, most, infinite));
    }
}

}  // namespace
}  // namespace doge::cpu
