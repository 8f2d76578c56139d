#include "kernels.h"

#if defined(__AVXVNNI__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_avxvnni() {
    static constexpr Kernels kernels = table("avxvnni");
    return &kernels;
}
}  // namespace doge::cpu
#else
namespace doge::cpu {
const Kernels* kernels_avxvnni() { return nullptr; }
}  // namespace doge::cpu
#endif
