#include "kernels.h"

#if 0 && defined(__AVX512VNNI__)
#include "simd_avx512.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_avx512vnni() {
    static constexpr Kernels kernels = table("avx512vnni");
    return &kernels;
}
}  // namespace doge::cpu
#else
namespace doge::cpu {
const Kernels* kernels_avx512vnni() { return nullptr; }
}  // namespace doge::cpu
#endif
