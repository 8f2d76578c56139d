// What a WebAssembly module has beside the C interface.
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include "doge/cpu.h"
#include "processor.h"

// All that is needed of the C++ library, which zig would otherwise make first, for minutes.
void* operator new(size_t bytes) {
    void* memory = std::malloc(bytes == 0 ? 1 : bytes);
    if (memory == nullptr) __builtin_trap();
    return memory;
}
void* operator new(size_t bytes, std::align_val_t alignment) {
    const size_t step = size_t(alignment);
    void* memory = std::aligned_alloc(step, (bytes + step) / step * step);
    if (memory == nullptr) __builtin_trap();
    return memory;
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace std {
inline namespace __1 {
// A container was asked for too much. The C++ library's own prints a line, by what is a third of a module.
[[noreturn]] void __libcpp_verbose_abort(const char*, ...) noexcept { __builtin_trap(); }
}  // namespace __1
}  // namespace std

namespace doge::cpu {
namespace {

constexpr int BLOCK = 128, LANES = 16, TOKENS = 3;

struct Product {
    float out[TOKENS][LANES];
};

// Extreme codes times extreme activations among usual ones, whose sums floats hold exactly.
Product product(const Kernels& kernels, int kind) {
    alignas(64) static uint8_t weights[BLOCK * LANES + 64];
    alignas(64) static int8_t codes[TOKENS * BLOCK];
    Product result;
    uint32_t seed = 1;
    const auto next = [&] { return (seed = seed * 1664525u + 1013904223u) >> 24; };
    const size_t bytes = size_t(BLOCK) * LANES * size_t(kind) / 8;
    for (size_t i = 0; i < bytes; i++) weights[i] = uint8_t(i % 3 == 0 ? (next() & 1 ? 255 : 0) : next());
    float scales[LANES], factors[TOKENS];
    for (float& scale : scales) scale = 1;
    std::memcpy(weights + bytes, scales, sizeof scales);
    int32_t sums[TOKENS] = {};
    for (int t = 0; t < TOKENS; t++) {
        factors[t] = 1;
        for (int i = 0; i < BLOCK; i++) {
            const int code = i % 2 == 0 ? (next() & 1 ? 127 : -127) : int(next() % 255) - 127;
            sums[t] += codes[t * BLOCK + i] = int8_t(code);
        }
    }
    const Matrix m{weights, LANES, BLOCK, kind, BLOCK, bytes + 64};
    for (int t = 0; t < TOKENS; t += 2) {  // two tokens together, and one alone
        const Activations a{nullptr, codes + t * BLOCK, nullptr, factors + t, sums + t, BLOCK, TOKENS, BLOCK};
        kernels.multiply(m, 0, 1, a, t == 0 ? 2 : 1, Sink{result.out[t], LANES, nullptr, nullptr, LANES});
    }
    return result;
}

}  // namespace
}  // namespace doge::cpu

// 1 where relaxed SIMD gives what SIMD128 gives; 0 where it does not, or this module has none. Engines were seen that compute
// it wrongly.
extern "C" __attribute__((visibility("default"))) int32_t doge_cpu_wasm_self_test(void) {
    using namespace doge::cpu;
    const Kernels *relaxed = kernels_wasmrelaxed(), *plain = kernels_wasm();
    if (relaxed == nullptr) return 0;
    constexpr int kinds[] = {DOGE_CPU_INT8, DOGE_CPU_INT4};
    for (const int kind : kinds) {
        const Product a = product(*relaxed, kind), b = product(*plain, kind);
        if (std::memcmp(&a, &b, sizeof a) != 0) return 0;
    }
    return 1;
}
