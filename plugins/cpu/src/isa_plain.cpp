#include "simd_plain.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_plain() {
    static constexpr Kernels kernels = table("plain");
    return &kernels;
}
}  // namespace doge::cpu
