#include "kernels.h"

#if defined(DOGE_AVX512_EMULATED) || (defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__F16C__))
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
