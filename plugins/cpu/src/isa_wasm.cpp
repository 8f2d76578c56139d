#include "kernels.h"

#if defined(__wasm_simd128__)
#include "simd_wasm.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_wasm() {
    static constexpr Kernels kernels = table("wasm");
    return &kernels;
}
}  // namespace doge::cpu
#else
namespace doge::cpu {
const Kernels* kernels_wasm() { return nullptr; }
}  // namespace doge::cpu
#endif
