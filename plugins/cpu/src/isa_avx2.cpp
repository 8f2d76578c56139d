#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_avx2() {
    static constexpr Kernels kernels = table("avx2");
    return &kernels;
}
}  // namespace doge::cpu
#else
namespace doge::cpu {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace doge::cpu
#endif
