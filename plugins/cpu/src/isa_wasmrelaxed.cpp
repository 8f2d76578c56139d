#include "kernels.h"

#if defined(__wasm_relaxed_simd__)
#include "simd_wasm.h"

#include "kernels_of_simd.h"

namespace doge::cpu {
const Kernels* kernels_wasmrelaxed() {
    static constexpr Kernels kernels = table("wasmrelaxed");
    return &kernels;
}
}  // namespace doge::cpu
#else
namespace doge::cpu {
const Kernels* kernels_wasmrelaxed() { return nullptr; }
}  // namespace doge::cpu
#endif
