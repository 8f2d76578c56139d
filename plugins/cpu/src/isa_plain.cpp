#if defined(__wasm__)
#include "kernels.h"

namespace doge::cpu {
const Kernels* kernels_plain() { return nullptr; }  // SIMD128 is everywhere, and a module is downloaded
}  // namespace doge::cpu
#else
#include "simd_plain.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_plain() {
    static constexpr Kernels kernels = table("plain");
    return &kernels;
}
}  // namespace doge::cpu
#endif
