// The functions of kernels.h over whatever simd_*.h was included before.
#pragma once
#include "kernels.h"
#include "layout.h"
#include "matrix_kernels.h"
#include "vector_kernels.h"
#include "attention_kernels.h"
#ifndef DOGE_CPU_NO_SCREEN
#include "screen_kernel.h"
#endif

namespace doge::cpu {
namespace {

#ifdef DOGE_WIDENS
void widen_all(const int8_t* codes, int n, int16_t* wide) {
    for (int i = 0; i < n; i++) wide[i] = codes[i];
}
#else
constexpr void (*widen_all)(const int8_t*, int, int16_t*) = nullptr;
#endif

#ifdef DOGE_CPU_NO_SCREEN
constexpr void (*screen)(const ScreenedHead&, const ScreenedInput&, int, int, float*, float*) = nullptr;
#endif

constexpr Kernels table(const char* name) {
    return {name, widen_all, quantise, rms_norm, multiply, gated, rotate, attend, screen, largest_of, row_dot, row_add};
}

}  // namespace
}  // namespace doge::cpu
