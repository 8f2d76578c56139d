#include "kernels.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include "simd_neon.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_neondot() {
    static constexpr Kernels kernels = table("neondot");
    return &kernels;
}
}  // namespace doge::cpu
#else
namespace doge::cpu {
const Kernels* kernels_neondot() { return nullptr; }
}  // namespace doge::cpu
#endif
